"""The C library's memory: kept between steps instead of handed back and asked for again."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h of glibc
_NEVER = 2**31 - 1
_LARGEST_THRESHOLDS = 2**30, 2**25  # older versions refuse more than 32 MiB


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
