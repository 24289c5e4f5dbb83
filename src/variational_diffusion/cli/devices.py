"""The device and the threads a command runs on."""

from __future__ import annotations

import torch

from variational_diffusion.errors import InputError


def use_device(name: str, threads: int | None) -> torch.device:
    """Set the number of CPU threads, and return the device that --device names."""
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
