"""The device and the threads a command runs on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
import torch

from variational_diffusion.errors import InputError
from variational_diffusion.machine.distributed import local_device
from variational_diffusion.machine.memory import keep_freed_memory
from variational_diffusion.model import VDM

Command = TypeVar("Command", bound=Callable[..., Any])

COMPILE_MODES = ["off", "default", "cuda-graphs"]
"""What --compile stands for: nothing; torch.compile of the network; that, and a whole training
step recorded as CUDA graphs."""

PRECISIONS = ["auto", "float32", "bfloat16"]


def use_device(name: str, threads: int | None) -> torch.device:
    """Set the number of CPU threads and how memory is kept; return the device of --device."""
    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(local_device(name))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device = {name!r} is not at hand ({str(error).splitlines()[0]}); "
            "type --device cpu, or leave it out"
        ) from error
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


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


def _compile_option(modes: list[str]) -> Callable[[Command], Command]:
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
    if precision == "auto":
        precision = "bfloat16" if multiplies_bfloat16(device) else "float32"
    vdm.autocast = torch.bfloat16 if precision == "bfloat16" else None
    if compile_mode == "cuda-graphs" and device.type != "cuda":
        raise InputError(
            f"compile = 'cuda-graphs' is for a GPU, and the device is {device}: "
            "type --compile default"
        )
    if channels_last:
        # torch documents this call and leaves it out of its annotations
        vdm.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compile_mode != "off":
        vdm.network.compile(dynamic=False)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether a device has units or vector instructions for products in bfloat16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))
    return False
