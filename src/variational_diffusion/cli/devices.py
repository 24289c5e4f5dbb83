"""The device and the threads a command runs on."""

from __future__ import annotations

import torch

from variational_diffusion.machine.execution import Execution
from variational_diffusion.machine.memory import keep_freed_memory


def use_device(name: str, threads: int | None) -> torch.device:
    """Set the number of CPU threads and how memory is kept; return the device of --device."""
    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    return Execution(name, threads).target()
