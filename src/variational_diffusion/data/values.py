"""Examples in memory that have the shape a model takes: a tensor or an array as a split."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from variational_diffusion.data.source import Split, verify
from variational_diffusion.errors import InputError


class Values:
    """The examples of an array, shape (n, *shape), as a `Source`; see `examples_of`."""

    def __init__(self, values: np.ndarray, levels: int | None) -> None:
        self._values = values
        self.shape: tuple[int, ...] = values.shape[1:]
        self.levels = levels

    def __len__(self) -> int:
        return len(self._values)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the examples of these indices, shape (n, *shape)."""
        return self._values[indices]


def examples_of(values: np.ndarray | Tensor, shape: tuple[int, ...], levels: int | None) -> Split:
    """Return examples in memory as a split of all of them, in their order.

    values: shape (n, *shape), integers in 0..levels-1, or real numbers where levels is None.
    Raises InputError for another shape or type, for no examples, and for a value that is not
    allowed.
    """
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.shape[1:] != shape or not len(array):
        raise InputError(
            f"data has shape {array.shape}: the model takes (n, {', '.join(map(str, shape))})"
        )
    if array.dtype.kind not in ("biu" if levels is not None else "biuf"):
        kind = "real numbers" if levels is None else f"integers from 0 to {levels - 1}"
        raise InputError(f"data holds {array.dtype}: the model takes {kind}")
    if levels is None:
        array = array if array.dtype.kind == "f" else array.astype(np.float32)
    verify(array, levels, None, lambda row: f"data, example {row}")
    if levels is not None:
        array = array.astype(np.uint8 if levels <= 256 else np.uint16)
    return Split(Values(array, levels), np.arange(len(array)))
