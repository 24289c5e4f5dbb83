"""How arithmetic is carried out: device, threads, precision, compilation.

None of it is part of a run's configuration: the same model gives the same figures up to rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch

from variational_diffusion.errors import InputError, one_of, whole
from variational_diffusion.machine.distributed import launched, local_device
from variational_diffusion.machine.memory import keep_freed_memory
from variational_diffusion.machine.threads import computing_with

COMPILE_MODES = ("off", "default", "cuda-graphs")
"""Nothing; torch.compile of the network; that, and a training step recorded as CUDA graphs."""

VARIABLE = "VDM_DEVICE"
"""Environment variable: the device where none is given."""

PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class Execution:
    """How arithmetic is carried out.

    device: "cpu", "cuda", "cuda:1", …; "auto": what the environment variable VDM_DEVICE names;
    without it, cuda if there is any. threads: of the CPU; None: as many as pay at the moment (see
    `machine.threads`). Their number may change the last digits of whatever has gradients in it,
    such as training and the likelihood of the ODE. precision: of the network's products, an entry
    of `PRECISIONS`; "auto": bfloat16 where the device has units or instructions for it. compile: an
    entry of `COMPILE_MODES`. channels_last: keep the channels of a pixel side by side.
    """

    device: str = "auto"
    threads: int | None = None
    precision: str = "float32"
    compile: str = "off"
    channels_last: bool = False

    def __post_init__(self) -> None:
        for name, known in (("precision", PRECISIONS), ("compile", COMPILE_MODES)):
            value = getattr(self, name)
            one_of(name, value, known)
        if self.threads is not None:
            whole("threads", self.threads)

    def target(self) -> torch.device:
        """Return the device; raise `InputError` where it is not at hand."""
        name = self.device
        if name == "auto":
            name = os.environ.get(VARIABLE, "").strip() or "auto"
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(local_device(name))
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(
                f"device = {name!r} is not at hand ({str(error).splitlines()[0]}); "
                "give device cpu, or leave it out"
            ) from error
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
        if self.compile == "cuda-graphs" and device.type != "cuda":
            raise InputError(
                f"compile = 'cuda-graphs' is for a GPU, and the device is {device}: "
                "type --compile default"
            )
        return device

    def autocast(self, device: torch.device) -> torch.dtype | None:
        """Return the type of the network's products on a device; None: that of its weights."""
        if self.precision == "auto":
            return torch.bfloat16 if multiplies_bfloat16(device) else None
        return torch.bfloat16 if self.precision == "bfloat16" else None

    @contextmanager
    def begun(self, *, follow: bool = True) -> Iterator[torch.device]:
        """Yield the device; the number of threads is what it was when the work is done.

        follow: whether that number may change during the work, where it is not given.
        """
        device = self.target()
        keep_freed_memory()
        alone = device.type == "cpu" and launched() == 1 and self.compile == "off"
        with computing_with(self.threads, follow=follow and alone):
            yield device


def execution_of(options: dict[str, Any]) -> tuple[Execution, dict[str, Any]]:
    """Return what the options say of how arithmetic is carried out, and the other options."""
    names = {field.name for field in fields(Execution)}
    own = {key: value for key, value in options.items() if key in names}
    return Execution(**own), {k: v for k, v in options.items() if k not in names}


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether a device has units or vector instructions for products in bfloat16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))
    return False
