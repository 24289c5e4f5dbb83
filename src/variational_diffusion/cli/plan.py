"""`vdm plan`: what a run will take, before it is begun."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import click
import torch

from variational_diffusion.cli.console import print_json, print_table
from variational_diffusion.cli.devices import use_device
from variational_diffusion.cli.options import Shape, data_config, data_options, device_options
from variational_diffusion.cli.train import parsed_settings
from variational_diffusion.config import Component, ModelConfig, TrainingConfig
from variational_diffusion.data import open_dataset
from variational_diffusion.errors import InputError
from variational_diffusion.machine.execution import multiplies_bfloat16
from variational_diffusion.plan import (
    HARDWARE,
    Estimate,
    Footprint,
    Hardware,
    estimate,
    footprint,
    measured,
    memory,
    this_machine,
)
from variational_diffusion.presets import configure, parts

_STEPS = 100_000
_HERE = "this machine"
_SHARDINGS = {"replicated": "replicated", "node": "sharded in the node", "sharded": "sharded"}


@click.command()
@click.argument("data", required=False)
@click.option("--preset", help="Complete configuration to start from; default: by the shape.")
@click.option("--shape", type=Shape(), help="Of one example, as 3,32,32, in place of DATA.")
@click.option("--network", help="Network: unet, transformer, paper-unet, mlp.")
@click.option("--batch-size", type=click.IntRange(1), help="Examples in a step, of all devices.")
@click.option("--accumulate", type=click.IntRange(1), default=1, help="Passes in a step.")
@click.option("--set", "settings", multiple=True, metavar="SECTION.FIELD=VALUE")
@click.option(
    "--hardware",
    "names",
    multiple=True,
    type=click.Choice(list(HARDWARE)),
    help="Devices to plan for; default: all of these.",
)
@click.option("--devices", type=click.IntRange(1), default=1, help="How many of them.")
@click.option("--steps", type=click.IntRange(1), default=_STEPS, show_default=True)
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto")
@click.option("--checkpointing", is_flag=True, help="Compute activations again in backward.")
@click.option("--sharding", type=click.Choice(list(_SHARDINGS)), default="replicated")
@click.option("--measure", is_flag=True, help="Train a few steps here; compare with the plan.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
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
    """
    model, training = _configured(data, options)
    share = options["devices"] * options["accumulate"]
    if share > training.batch_size:
        raise InputError(
            f"batch_size = {training.batch_size}: {options['devices']} devices with "
            f"{options['accumulate']} passes take at least {share}; give --batch-size {share}"
        )
    batch = math.ceil(training.batch_size / share)

    def counted(precision: str, batch: int, *, on_cpu: bool) -> Footprint:
        return footprint(
            model,
            training,
            batch,
            precision=precision,
            checkpointing=options["checkpointing"],
            on_cpu=on_cpu,
        )

    def planned(hardware: Hardware, step: Footprint) -> Estimate:
        return estimate(
            step,
            hardware,
            devices=options["devices"],
            sharding=_SHARDINGS[options["sharding"]],
            passes=options["accumulate"],
        )

    precision = "bfloat16" if options["precision"] == "auto" else options["precision"]
    step = counted(precision, batch, on_cpu=False)
    found: dict[str, Any] = {
        "parameters": step.parameters,
        "flops": {"forward": step.forward_flops, "training": step.training_flops},
        "batch_size": training.batch_size,
        "batch_of_a_device": batch,
        "precision": precision,
        "memory": _by_batch(lambda n: counted(precision, n, on_cpu=False), step, options),
        "hardware": {
            name: _summary(planned(HARDWARE[name], step), HARDWARE[name], options["steps"])
            for name in names or HARDWARE
        },
    }
    if measure:
        found["measured"] = _compared(
            model, training, use_device(device, threads), options, counted
        )
    if as_json:
        print_json(found)
    else:
        _print(found, options)


def _configured(data: str | None, options: dict[str, Any]) -> tuple[ModelConfig, TrainingConfig]:
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


def _by_batch(
    counted: Callable[[int], Footprint], step: Footprint, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return the memory of a device for a half, once, twice and four times the planned batch.

    Activations grow in proportion to the batch, so two counts give all.
    """

    def of(step: Footprint) -> dict[str, float]:
        used = memory(
            step,
            devices=options["devices"],
            sharding=_SHARDINGS[options["sharding"]],
            passes=options["accumulate"],
        )
        return dataclasses.asdict(used)

    one, two = of(step), of(counted(2 * step.batch))
    sizes = sorted({max(1, step.batch // 2), step.batch, 2 * step.batch, 4 * step.batch})
    return [
        {
            "batch": size,
            **{name: one[name] + (size / step.batch - 1) * (two[name] - one[name]) for name in one},
        }
        for size in sizes
    ]


def _summary(found: Estimate, hardware: Hardware, steps: int) -> dict[str, Any]:
    hours = steps * found.seconds / 3600
    watts = hardware.watts
    return {
        "memory": found.memory.total,
        "fits": found.fits,
        "steps_per_second": 1 / found.seconds,
        "images_per_second": found.images_per_second,
        "share_waiting": found.exchange / found.seconds,
        "hours": hours,
        "kilowatt_hours": None if watts is None else hours * watts * found.devices / 1000,
    }


def _compared(
    model: ModelConfig,
    training: TrainingConfig,
    device: torch.device,
    options: dict[str, Any],
    counted: Callable[..., Footprint],
) -> dict[str, Any]:
    """Return estimate and measurement of a step of the whole batch on this machine."""
    here = this_machine(device)
    precision = options["precision"]
    if precision == "auto":
        precision = "bfloat16" if multiplies_bfloat16(device) else "float32"
    step = counted(precision, training.batch_size, on_cpu=here.on_cpu)
    plan = estimate(step, here)
    found = measured(
        model,
        training,
        device,
        precision=precision,
        threads=torch.get_num_threads(),
        checkpointing=options["checkpointing"],
    )
    ends = step.end_passes * step.forward_flops  # which the measured step does not have
    return {
        "precision": precision,
        "peak": here.peak[precision],
        "achieved": here.achieved["tf32" if precision == "float32" else precision],
        "bandwidth": here.bandwidth,
        "estimate": {
            "flops": step.batch * (step.training_flops - ends),
            "memory": plan.memory.total,
            "seconds": plan.seconds,
        },
        "measurement": dataclasses.asdict(found),
    }


def _print(found: dict[str, Any], options: dict[str, Any]) -> None:
    flops = found["flops"]
    print_table(
        f"a step of {found['batch_size']} images",
        ["", ""],
        [
            ("parameters", f"{found['parameters']:,}"),
            ("operations of sampling or evaluating, an image and pass", _si(flops["forward"])),
            ("operations of training, an image", _si(flops["training"])),
        ],
    )
    columns = ["weights", "gradients", "optimizer", "average", "activations", "total"]
    print_table(
        f"memory of one device by its batch, with {found['precision']}",
        ["batch", *columns],
        [(str(row["batch"]), *(_size(row[name]) for name in columns)) for row in found["memory"]],
    )
    print_table(
        f"{options['devices']} of each, {options['sharding']}, to {options['steps']:,} steps",
        ["hardware", "memory", "fits", "steps/s", "images/s", "waiting", "hours", "kWh"],
        [
            (
                name,
                _size(row["memory"]),
                "yes" if row["fits"] else "no",
                f"{row['steps_per_second']:.3g}",
                f"{row['images_per_second']:.0f}",
                f"{row['share_waiting']:.0%}",
                f"{row['hours']:.1f}",
                f"{row['kilowatt_hours']:.1f}",
            )
            for name, row in found["hardware"].items()
        ],
    )
    if "measured" in found:
        here = found["measured"]
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
