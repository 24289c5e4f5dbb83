"""`vdm plan`: what a run will take, before it is begun."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from variational_diffusion.cli.shared.console import print_json, print_table
from variational_diffusion.cli.shared.options import (
    accumulate_option,
    checkpointing_option,
    data_config,
    data_options,
    device_options,
    json_option,
    parsed_settings,
    precision_option,
    settings_option,
)
from variational_diffusion.cli.shared.types import OneOf, Shape
from variational_diffusion.errors import InputError

if TYPE_CHECKING:
    from variational_diffusion.config import ModelConfig, TrainingConfig
    from variational_diffusion.run.plan import Plan

HARDWARE = ("h100", "h200", "b200", "a100", "l4", "rtx-4090")
"""As in `plan`, which imports torch; a test compares them."""

_STEPS = 100_000
_HERE = "this machine"


@click.command()
@click.argument("data", type=click.Path(), required=False)
@click.option("--preset", help="Complete configuration to start from; default: by the shape.")
@click.option("--shape", type=Shape(), help="Of one example, as 3,32,32, in place of DATA.")
@click.option("--network", help="Network: unet, transformer, paper-unet, mlp.")
@click.option("--batch-size", type=click.IntRange(1), help="Examples in one step.")
@accumulate_option
@settings_option
@click.option(
    "--hardware",
    "names",
    multiple=True,
    type=OneOf(HARDWARE),
    help="Devices to plan for; default: all of these.",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=_STEPS,
    help=f"Steps of training (default {_STEPS:,}).",
)
@precision_option
@checkpointing_option
@click.option("--measure", is_flag=True, help="Train a few steps here; compare with the plan.")
@json_option
@data_options
@device_options
def command(
    data: str | None,
    names: tuple[str, ...],
    measure: bool,
    as_json: bool,
    device: str,
    threads: int | None,
    **options: Any,
) -> None:
    """Say what training on DATA, or on examples of --shape and --levels (default 256), takes.

    Memory, time and energy are estimates from operations that are counted and figures of data
    sheets; energy is of the devices alone, at their rated power. With --measure, this machine is
    measured too.

    Example: vdm plan --shape 3,64,64 --batch-size 64 --hardware h100
    """
    from variational_diffusion.run.plan import plan

    model, training = _configured(data, options)
    found = plan(
        model,
        training,
        hardware=names or HARDWARE,
        **{name: options[name] for name in ("accumulate", "precision", "checkpointing")},
        measure=measure,
        device=device,
        threads=threads,
    )
    if as_json:
        print_json(found.as_json())
    else:
        _print(found, options)


def _configured(data: str | None, options: dict[str, Any]) -> tuple[ModelConfig, TrainingConfig]:
    from variational_diffusion.config import Component
    from variational_diffusion.data import open_dataset
    from variational_diffusion.presets import configure, parts

    settings = {"training.steps": options["steps"], **parsed_settings(options["settings"])}
    if options["batch_size"] is not None:
        settings["training.batch_size"] = options["batch_size"]
    chosen = {"preset": options["preset"], "network": options["network"], "settings": settings}
    if (data is None) == (options["shape"] is None):
        raise InputError(
            f"data = {data!r} and shape = {options['shape']}: give one of them, "
            "for example --shape 3,32,32"
        )
    if data is None:
        levels = options["levels"] or 256
        decoder = Component(name="discretized", options={"levels": levels})
        return parts(options["shape"], levels, decoder, **chosen)
    source = data_config(data, options)
    config = configure(source, open_dataset(source), **chosen)
    return config.model, config.training


def _print(found: Plan, options: dict[str, Any]) -> None:
    flops = found.flops
    print_table(
        f"a step of {found.batch_size} images",
        ["", ""],
        [
            ("parameters", f"{found.parameters:,}"),
            ("operations of sampling or evaluating, an image and pass", _si(flops["forward"])),
            ("operations of training, an image", _si(flops["training"])),
        ],
    )
    columns = ["weights", "gradients", "optimizer", "average", "activations", "total"]
    print_table(
        f"memory by the batch of a pass, with {found.precision}",
        ["batch", *columns],
        [(str(row["batch"]), *(_size(row[name]) for name in columns)) for row in found.memory],
    )
    print_table(
        f"one of each, to {options['steps']:,} steps",
        ["hardware", "memory", "fits", "steps/s", "images/s", "hours", "kWh"],
        [
            (
                name,
                _size(row["memory"]),
                "yes" if row["fits"] else "no",
                f"{row['steps_per_second']:.3g}",
                f"{row['images_per_second']:.0f}",
                f"{row['hours']:.1f}",
                f"{row['kilowatt_hours']:.1f}",
            )
            for name, row in found.hardware.items()
        ],
    )
    here = found.measured
    if here is not None:
        print_table(
            f"{_HERE}, one process, {here['precision']}: products of matrices "
            f"{_si(here['peak'])}/s, convolutions {here['achieved']:.0%} of that, "
            f"copying {here['bandwidth'] / 1e9:.1f} GB/s",
            ["a step", "estimate", "measured", "ratio"],
            [
                (
                    name,
                    show(here["estimate"][name]),
                    show(here["measurement"][name]),
                    f"{here['estimate'][name] / here['measurement'][name]:.3f}",
                )
                for name, show in (
                    ("flops", _si),
                    ("memory", _size),
                    ("seconds", lambda value: f"{value:.4f}"),
                )
            ],
        )


def _si(value: int | float) -> str:
    """Return a number of operations with three digits and a prefix."""
    power = min(5, int(math.log10(max(value, 1)) // 3))
    return f"{value / 1000**power:.3g} {['', 'k', 'M', 'G', 'T', 'P'][power]}FLOP"


def _size(value: int | float) -> str:
    """Return a number of bytes in MiB or GiB."""
    return f"{value / 2**20:.1f} MiB" if value < 2**30 else f"{value / 2**30:.1f} GiB"
