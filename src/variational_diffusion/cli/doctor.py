"""`vdm doctor`: what is installed, which device there is, and what is missing for which command."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING, Any

import click

from variational_diffusion.cli.shared.console import print_json, print_table
from variational_diffusion.cli.shared.options import json_option

if TYPE_CHECKING:
    from variational_diffusion.machine.environment import Package

_GIB = 2**30


@click.command()
@json_option
def command(as_json: bool) -> None:
    """Say what is installed and what is missing for which command.

    Exit code 1 where a package that is always needed is missing or too old.

    Example: vdm doctor
    """
    from variational_diffusion.machine.environment import EXTRAS, packages

    found, machine = packages(), _machine()
    ailing = [package for package in found if package.extra is None and not package.fits]
    if as_json:
        print_json(
            {
                **machine,
                "packages": {
                    package.name: {
                        "wanted": package.wanted,
                        "installed": package.installed,
                        "extra": package.extra,
                        "fits": package.fits,
                    }
                    for package in found
                },
                "extras": {
                    extra: all(package.fits for package in found if package.extra == extra)
                    for extra in EXTRAS
                },
            }
        )
    else:
        _show(found, machine)
    if ailing:
        names = ", ".join(package.name for package in ailing)
        click.echo(f"vdm: missing or too old: {names}; {_install()}", err=True)
        click.get_current_context().exit(1)


def _machine() -> dict[str, Any]:
    import psutil
    import torch

    from variational_diffusion.data import DATASETS
    from variational_diffusion.data.idx import FASHION_MNIST, is_idx_folder
    from variational_diffusion.machine.environment import processor, version
    from variational_diffusion.machine.execution import multiplies_bfloat16

    gpus = []
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        gpus.append(f"{properties.name}, {properties.total_memory / _GIB:.0f} GiB")
    data = [name for name in DATASETS if name != "fashion-mnist" or is_idx_folder(FASHION_MNIST)]
    return {
        "version": version(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "torch": torch.__version__,
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / _GIB, 1),
        "bfloat16": multiplies_bfloat16(torch.device("cpu")),
        "gpus": gpus,
        "device": "cuda" if gpus else "cpu",
        "data": data,
    }


def _show(found: list[Package], machine: dict[str, Any]) -> None:
    from variational_diffusion.machine.environment import DISTRIBUTION, EXTRAS

    units = "with" if machine["bfloat16"] else "without"
    data = ", ".join(machine["data"])
    if "fashion-mnist" not in machine["data"]:
        data += "; for fashion-mnist: apt-get install dataset-fashion-mnist"
    rows = [
        ("Python", f"{machine['python']} on {machine['system']}"),
        ("torch", machine["torch"]),
        ("processor", f"{machine['processor']}, {machine['cores']} cores, {units} bfloat16"),
        ("memory", f"{machine['memory_gib']} GiB"),
        ("GPUs", ", ".join(machine["gpus"]) or "none that torch can use"),
        ("commands run on", machine["device"]),
        ("data sets at hand", data),
    ]
    print_table(f"{DISTRIBUTION} {machine['version']}", ["", ""], rows, numbers=False)
    missing = [package for package in found if package.extra is None and not package.fits]
    needed = sum(package.extra is None for package in found)
    click.echo(
        f"\n{needed - len(missing)} of {needed} packages that every command needs are there."
    )
    for package in missing:
        click.echo(f"  {package.name} {package.wanted}: {package.installed or 'missing'}")
    rows = []
    for extra, use in EXTRAS.items():
        lacking = [p.name for p in found if p.extra == extra and not p.fits]
        rows.append((use, _install(extra) if lacking else "ready"))
    print_table("\nExtras", ["for", "state, or what to type"], rows, numbers=False)


def _install(extra: str | None = None) -> str:
    from variational_diffusion.machine.environment import DISTRIBUTION

    name = DISTRIBUTION if extra is None else f"{DISTRIBUTION}[{extra}]"
    return f'pip install "{name}"'
