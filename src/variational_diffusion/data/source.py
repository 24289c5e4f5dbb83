"""Sources, splits and data sets: examples by index, with every value checked at the door."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from variational_diffusion.errors import InputError

SPLITS = ("train", "validation", "test")

MAX_LEVELS = 65_536
"""Largest number of levels that integer data may have: 16 bits."""


@runtime_checkable
class Source(Protocol):
    """A numbered set of examples of one shape, read only when asked.

    shape: of one example; images are (channels, height, width).
    levels: number of values of integer data, which are then 0..levels-1; None for real values.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def levels(self) -> int | None: ...

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the examples of these indices, shape (n, *shape).

        Up to 256 levels come as uint8, more as uint16, real values as float32. Every value has
        been verified; InputError names the example that holds one which is not allowed.
        """
        ...


@dataclass(frozen=True, eq=False)
class Split:
    """Some of a source's examples, in a fixed order; what torch calls a map-style data set.

    indices: the examples' numbers in the source, shape (n,).
    """

    source: Source
    indices: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.source.shape

    @property
    def levels(self) -> int | None:
        """Number of values of integer data; None for real values."""
        return self.source.levels

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Tensor:
        """Return one example, shape (*shape)."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Return a batch in one reading, shape (n, *shape).

        uint8 up to 256 levels, int32 above (torch does next to nothing with uint16), float32 for
        real values.
        """
        values = self.read(np.asarray(indices, dtype=np.int64))
        return torch.from_numpy(values.astype(np.int32) if values.dtype == np.uint16 else values)

    def read(self, indices: np.ndarray | None = None) -> np.ndarray:
        """Return examples by their position in the split (all without one), as `Source.read`."""
        return self.source.read(self.indices if indices is None else self.indices[indices])

    def limit(self, n: int) -> Split:
        """Return the first n examples; all where there are fewer."""
        if n < 1:
            raise InputError(f"limit = {n}: at least one example is needed; give --limit 1 or more")
        return Split(self.source, self.indices[:n])

    def mean_and_std(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation for each entry of the first axis of an example.

        Two float64 arrays of shape (shape[0],): channels of an image, entries of a vector. Read in
        pieces, and summed about the first piece's mean, so that a large offset costs no digits.
        """
        total, squares, count = np.zeros(self.shape[0]), np.zeros(self.shape[0]), 0
        centre: np.ndarray | None = None
        for first in range(0, len(self), 1024):
            values = self.source.read(self.indices[first : first + 1024]).astype(np.float64)
            rows = np.moveaxis(values, 1, 0).reshape(self.shape[0], -1)
            centre = rows.mean(1) if centre is None else centre
            rows = rows - centre[:, None]
            total += rows.sum(1)
            squares += np.square(rows).sum(1)
            count += rows.shape[1]
        assert centre is not None
        mean = total / count
        return centre + mean, np.sqrt(np.maximum(squares / count - mean**2, 0))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits without a common example, and what was noticed on opening.

    source: a name of `DATASETS`, or an absolute path: opens the same data again from anywhere.
    splits: "train", "validation" and "test", none of them empty.
    notes: remarks of one line each, such as "12 damaged images skipped".
    """

    source: str
    splits: dict[str, Split]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert tuple(self.splits) == SPLITS

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.splits["train"].shape

    @property
    def levels(self) -> int | None:
        """Number of values of integer data; None for real values."""
        return self.splits["train"].levels


def verify(
    values: np.ndarray,
    levels: int | None,
    value_range: tuple[float, float] | None,
    example: Callable[[int], str],
) -> None:
    """Raise InputError unless all values, shape (n, ...), are allowed.

    Integers must lie in 0..levels-1. Real values (levels None) must be finite and in value_range,
    both ends included and compared in the precision of `values`, so that float32(0.1) is not above
    0.1. `example(row)` names a row in the message.
    """
    if levels is not None:
        if values.dtype.kind in "bu" and levels >= 2 ** (8 * values.dtype.itemsize):
            return  # the type holds nothing else
        bad = (values < 0) | (values >= levels)
    else:
        bad = ~np.isfinite(values)
        if value_range is not None:
            low, high = np.array(value_range, dtype=values.dtype)
            bad |= (values < low) | (values > high)
    if bad.any():
        position = np.unravel_index(int(bad.argmax()), bad.shape)
        value, name = values[position], example(int(position[0]))
        raise InputError(f"{name} has the value {value}{_remedy(value, levels, value_range)}")


def _remedy(value: Any, levels: int | None, value_range: tuple[float, float] | None) -> str:
    if levels is None and not np.isfinite(value):
        return ", but values must be finite; leave that example out, or replace the value"
    if levels is None:
        assert value_range is not None
        low, high = value_range
        return f", but {low} to {high} is allowed; give a wider --range, or rescale the data"
    if value < 0:
        return f", but 0 to {levels - 1} is allowed; subtract the smallest value from all"
    if levels == MAX_LEVELS:
        return f", but 0 to {levels - 1} is allowed; rescale the data, or save them as floats"
    return f", but levels = {levels} allows 0 to {levels - 1}; give --levels {value + 1} or more"
