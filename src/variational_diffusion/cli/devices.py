"""The device and the threads a command runs on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
import torch

from variational_diffusion.machine.execution import COMPILE_MODES, PRECISIONS, Execution
from variational_diffusion.machine.memory import keep_freed_memory
from variational_diffusion.model import VDM

Command = TypeVar("Command", bound=Callable[..., Any])


def use_device(name: str, threads: int | None) -> torch.device:
    """Set the number of CPU threads and how memory is kept; return the device of --device."""
    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    return Execution(name, threads).target()


def speed_options(command: Command) -> Command:
    """Add --compile and --channels-last, for a model that stays as it is."""
    return _compile_option(COMPILE_MODES[:2])(_channels_last(command))


def training_speed_options(command: Command) -> Command:
    """Add what `speed_options` does, --compile cuda-graphs and --precision."""
    precision = click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default="auto",
        help="Of the network's products in training; auto: bfloat16 where the device has units or "
        "instructions for it.",
    )
    return _compile_option(COMPILE_MODES)(_channels_last(precision(command)))


def _compile_option(modes: Sequence[str]) -> Callable[[Command], Command]:
    return click.option(
        "--compile",
        "compile_mode",
        type=click.Choice(modes),
        default="off",
        help="Compile the network: a minute at the start, faster steps (docs/performance.md).",
    )


_channels_last = click.option(
    "--channels-last",
    is_flag=True,
    help="Keep the channels of a pixel side by side: faster for some networks "
    "(docs/performance.md).",
)


def speed_up(
    vdm: VDM, *, compile_mode: str, precision: str = "float32", channels_last: bool = False
) -> None:
    """Set up a model in place as the options say; its parameters keep their values."""
    device = vdm.schedule.initial_end_points.device
    vdm.prepare(
        Execution(
            str(device),
            precision=precision,
            compile=compile_mode,
            channels_last=channels_last,
        )
    )
