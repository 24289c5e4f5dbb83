"""The device and the threads a command runs on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from variational_diffusion.machine.execution import Execution
from variational_diffusion.machine.memory import keep_freed_memory
from variational_diffusion.model import VDM

Command = TypeVar("Command", bound=Callable[..., Any])


def use_device(name: str, threads: int | None) -> torch.device:
    """Set the number of CPU threads and how memory is kept; return the device of --device."""
    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    return Execution(name, threads).target()


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
