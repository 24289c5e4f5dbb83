"""`vdm doctor`: what is installed, which device there is, and what is missing for which command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from variational_diffusion.cli.shared.console import print_json, print_table, say
from variational_diffusion.cli.shared.options import json_option

if TYPE_CHECKING:
    from variational_diffusion.machine.environment import Package


@click.command()
@json_option
def command(as_json: bool) -> None:
    """Say what is installed and what is missing for which command.

    Exit code 1 where a package that is always needed is missing or too old.

    Example: vdm doctor
    """
    from variational_diffusion.data import at_hand
    from variational_diffusion.machine.environment import EXTRAS, machine, packages

    found, here = packages(), {**machine(), "data": at_hand()}
    ailing = [package for package in found if package.extra is None and not package.fits]
    if as_json:
        print_json(
            {
                **here,
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
        _show(found, here)
    if ailing:
        names = ", ".join(package.name for package in ailing)
        say(f"vdm: missing or too old: {names}; {_install()}", err=True)
        click.get_current_context().exit(1)


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
        ("threads", _threads(machine)),
        ("memory", f"{machine['memory_gib']} GiB"),
        ("GPUs", ", ".join(machine["gpus"]) or "none that torch can use"),
        ("commands run on", machine["device"]),
        ("data sets at hand", data),
    ]
    print_table(f"{DISTRIBUTION} {machine['version']}", ["", ""], rows, numbers=False)
    missing = [package for package in found if package.extra is None and not package.fits]
    needed = sum(package.extra is None for package in found)
    say()
    say(f"{needed - len(missing)} of {needed} packages that every command needs are there.")
    for package in missing:
        say(f"  {package.name} {package.wanted}: {package.installed or 'missing'}")
    rows = []
    for extra, use in EXTRAS.items():
        lacking = [p.name for p in found if p.extra == extra and not p.fits]
        rows.append((use, _install(extra) if lacking else "ready"))
    say()
    print_table("Extras", ["for", "state, or what to type"], rows, numbers=False)


def _threads(machine: dict[str, Any]) -> str:
    """Return how many threads commands use, and what decides it."""
    quota = machine["cpu_quota"]
    words = [f"up to {machine['threads']} of {machine['cores']}, as many as pay"]
    if quota is not None:
        words.append(f"the container's quota is {quota:g} processors")
    if machine["others_running"]:
        words.append(f"{machine['others_running']} threads of other programs run now")
    words += [f"{name} = {value} is set" for name, value in machine["variables"].items()]
    return "; ".join(words)


def _install(extra: str | None = None) -> str:
    from variational_diffusion.machine.environment import DISTRIBUTION

    name = DISTRIBUTION if extra is None else f"{DISTRIBUTION}[{extra}]"
    return f'pip install "{name}"'
