"""Memory: freed pages kept instead of asked for again, and batches that fit."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import Tensor, nn

from variational_diffusion.errors import InputError

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h of glibc
_NEVER = 2**31 - 1
_LARGEST_THRESHOLDS = 2**30, 2**25  # older versions refuse more than 32 MiB

_SHARE = 0.25  # of the memory, that what the modules of a network return may take
_SURELY = 4096  # times the size of a row of z: less than this is never measured

_bytes_of_a_row: WeakKeyDictionary[nn.Module, dict[object, int]] = WeakKeyDictionary()


def keep_freed_memory() -> bool:
    """Let this process keep the memory it frees; return whether the C library could be told so.

    glibc returns a large block to the system when it is freed, and the system clears its pages when
    they are asked for again. A training step does that with every activation: measured, it costs
    5 to 17 % of a step on a CPU (docs/performance.md). The process then holds on to its largest
    size. Not done at import: it is the program, not the library, that decides on its memory.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    kept = any(mallopt(_M_MMAP_THRESHOLD, size) for size in _LARGEST_THRESHOLDS)
    return bool(kept and mallopt(_M_TRIM_THRESHOLD, _NEVER) and mallopt(_M_TOP_PAD, 2**26))


def memory_of(device: torch.device) -> int:
    """Return the bytes of memory of a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return int(psutil.virtual_memory().total)


def check_room(name: str, value: object, size: int, device: torch.device) -> None:
    """Raise `InputError` before work whose result would not fit into the memory of a device.

    name, value: what was asked for. size: of the result, in bytes.
    """
    room = memory_of(device)
    if size > room:
        raise InputError(
            f"{name} = {value}: the result takes {size / 2**30:,.0f} GiB, and this machine has "
            f"{room / 2**30:,.0f}: give a smaller {name}, and repeat with other seeds"
        )


def rows_at_once(network: nn.Module, z: Tensor, run: Callable[[slice], Tensor]) -> int:
    """Return how many rows of a batch go through a network together, where nothing needs gradients.

    So many that all that its modules return would take a quarter of the memory, which is several
    times what is alive at a time. It is the same for every call with such rows on one machine.

    run: puts some rows of the batch through the network.
    """
    size = z[:1].numel() * z.element_size()
    room = _SHARE * memory_of(z.device)
    if len(z) * size * _SURELY <= room:
        return len(z)
    known = _bytes_of_a_row.setdefault(network, {})
    kind = z.shape[1:], z.dtype, torch.is_autocast_enabled(z.device.type)
    if kind not in known:
        known[kind] = _returned(network, lambda: run(slice(0, 1)))
    return max(1, int(room / max(size, known[kind])))


def _returned(network: nn.Module, run: Callable[[], Tensor]) -> int:
    """Return the bytes of all tensors that the modules of a network return in a call."""
    total = 0

    def count(_: nn.Module, __: object, output: object) -> None:
        nonlocal total
        if isinstance(output, Tensor):
            total += output.numel() * output.element_size()

    hooks = [module.register_forward_hook(count) for module in network.modules()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return total
