"""Files of flax, read without jax or flax: MessagePack maps of maps, with arrays at their ends.

An array is MessagePack's extension type 1 with (shape, name of the type, bytes in row-major order).
Nothing in such a file can run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from variational_diffusion.errors import InputError, needs

_ARRAY = 1
_TYPES = ("float32", "float64", "int32", "int64")
_LONGEST_NAME, _MOST_NAMES, _MOST_AXES, _DEEPEST = 100, 10_000, 8, 20

Arrays = dict[str, Tensor]
"""By path, with a "/" between the names."""


def read_tree(path: Path) -> dict[Any, Any]:
    """Return the nested maps, arrays in them still as bytes.

    The limits keep a file from asking for more memory than its own size: a map or an array that
    claims more entries than these, or more than there are bytes, is refused before it is made.
    """
    with needs("official"):
        import msgpack  # noqa: PLC0415 (an extra)
    if not path.is_file():
        raise InputError(f"'{path}' is no file: give the checkpoint, such as checkpoints-0.flax")
    content = path.read_bytes()
    try:
        tree = msgpack.unpackb(
            content,
            max_ext_len=len(content),
            max_map_len=_MOST_NAMES,
            max_array_len=_MOST_AXES,
            max_str_len=_LONGEST_NAME,
            max_bin_len=_LONGEST_NAME,
        )
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise InputError(
            f"'{path}' is no flax checkpoint ({error or type(error).__name__})"
        ) from error
    if not isinstance(tree, dict):
        raise InputError(f"'{path}' is no flax checkpoint (no map at its top)")
    return tree


def arrays_of(tree: Mapping[Any, Any], prefix: str = "") -> Arrays:
    """Return the arrays of a map as float32; raise `InputError` that names one that is damaged."""
    if prefix.count("/") > _DEEPEST:
        raise InputError(f"its maps lie deeper than {_DEEPEST} in each other")
    found: Arrays = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict):
            found |= arrays_of(value, f"{path}/")
        else:
            array = array_of(path, value).astype(np.float32)
            if not np.isfinite(array).all():
                raise InputError(f"{path} has entries that are not finite")
            found[path] = torch.from_numpy(array)
    return found


def array_of(name: str, value: Any) -> np.ndarray:
    """Return an array of a map of `read_tree`, not to be written to.

    Raises InputError unless it has a known type and as many bytes as it says.
    """
    import msgpack  # noqa: PLC0415 (an extra)

    if not isinstance(value, msgpack.ExtType) or value.code != _ARRAY:
        raise InputError(f"{name} is no array")
    try:
        shape, kind, content = msgpack.unpackb(
            value.data,
            max_array_len=_MOST_AXES,
            max_str_len=_LONGEST_NAME,
            max_map_len=0,
            max_ext_len=0,
        )
        shape = tuple(int(axis) for axis in shape)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise InputError(f"{name} is damaged ({error or type(error).__name__})") from error
    if str(kind) not in _TYPES or not isinstance(content, bytes):
        raise InputError(f"{name} has type {kind!r}: known are {', '.join(_TYPES)}")
    dtype = np.dtype(kind).newbyteorder("<")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(content):
        raise InputError(f"{name} has shape {shape} and {len(content)} bytes, which do not fit")
    return np.frombuffer(content, dtype).reshape(shape)
