"""The device and the threads a command runs on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
import torch
from torch import nn

from variational_diffusion.errors import InputError
from variational_diffusion.memory import keep_freed_memory

Command = TypeVar("Command", bound=Callable[..., Any])

COMPILE_MODES: dict[str, dict[str, Any] | None] = {
    "off": None,
    "default": {},
    "cuda-graphs": {"mode": "reduce-overhead"},
}
"""What --compile stands for: options of `torch.compile`."""


def use_device(name: str, threads: int | None) -> torch.device:
    """Set the number of CPU threads and how memory is kept; return the device of --device."""
    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device = {name!r} is not at hand ({str(error).splitlines()[0]}); "
            "type --device cpu, or leave it out"
        ) from error
    return device


def compile_option(command: Command) -> Command:
    """Add --compile; `compiled` acts on it."""
    return click.option(
        "--compile",
        "compile_mode",
        type=click.Choice(list(COMPILE_MODES)),
        default="off",
        help="Compile the network: a minute at the start, faster steps (docs/performance.md).",
    )(command)


def compiled(network: nn.Module, mode: str) -> None:
    """Compile a network in place, as --compile says; its parameters keep their names."""
    options = COMPILE_MODES[mode]
    if options is not None:
        network.compile(dynamic=False, **options)
