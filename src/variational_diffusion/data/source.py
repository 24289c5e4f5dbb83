"""Sources and splits: examples by index, with every value checked at the door."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from variational_diffusion.conditions import Batch
from variational_diffusion.data.augment import Augmentation
from variational_diffusion.data.beside import DEGRADATIONS
from variational_diffusion.errors import InputError

MAX_LEVELS = 65_536
"""Largest number of levels that integer data may have: 16 bits."""


_CHANNELS = range(1, 5)
_OFF_LEVEL = 0.05
"""Of a level that a float may be off, by the rounding of what it was computed with."""
_SAMPLE = 1
"""Part of the seed of `Split.sample`: `random_splits` draws by the seed alone, and the first of one
permutation of the same numbers would be its test examples."""

_TOGETHER = 1024
"""Examples that are read together where all of a split are."""

Examples = np.ndarray | list[np.ndarray]


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

    def read(self, indices: np.ndarray) -> Examples:
        """Return the examples of these indices: an array of shape (n, *shape), or a list of arrays.

        In a list they may be higher and wider than `shape`, where the data are to be cropped. Up to
        256 levels come as uint8, more as uint16, real values as `real_type` says. Every value has
        been verified; InputError names the example that holds one which is not allowed.
        """
        ...


class Joined:
    """Several sources of one shape and one number of levels, one after the other."""

    def __init__(self, parts: Sequence[Source]) -> None:
        self.parts = tuple(parts)
        self._ends = np.cumsum([len(part) for part in self.parts])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.parts[0].shape

    @property
    def levels(self) -> int | None:
        """Number of values of integer data; None for real values."""
        return self.parts[0].levels

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, indices: np.ndarray) -> Examples:
        """Return the examples of these indices, as `Source.read` says."""
        return [example for part, own in self.located(indices) for example in part.read(own)]

    def located(self, indices: np.ndarray) -> list[tuple[Source, np.ndarray]]:
        """Return, in the order of the indices, runs of them: a part and the indices in it."""
        which = np.searchsorted(self._ends, indices, side="right")
        runs = np.split(np.arange(len(indices)), np.flatnonzero(np.diff(which)) + 1)
        found = []
        for run in runs if len(indices) else ():
            part = int(which[run[0]])
            first = int(self._ends[part]) - len(self.parts[part])
            found.append((self.parts[part], indices[run] - first))
        return found


class Drawn(NamedTuple):
    """How examples were drawn out of more.

    positions: of the examples among them all, shape (n,). of: how many these are. seed: of the
    draw; None: they are those that were reached before the work was stopped.
    """

    positions: np.ndarray
    of: int
    seed: int | None


@dataclass(frozen=True, eq=False)
class Split:
    """Some of a source's examples, in a fixed order; what torch calls a map-style data set.

    Attributes:
        source: All examples.
        indices: The examples' numbers in the source, shape (n,).
        augmentation: Flips and crops; the crop is the middle of an example, but for `draw`, which
            is of the training.
        conditions: What all examples of the source are conditioned on, shape (len(source), *value);
            None: nothing that was read.
        degradation: A name of `DEGRADATIONS`, for a condition that is made of the example.
        name: "train", "validation" or "test"; "" for another choice of examples.
        drawn: How the examples were drawn out of more by `sample`; None: they are all.

    Examples:
        >>> split = vd.open_dataset("digits").splits["test"]
        >>> split.sample(5).read().shape
        (5, 1, 8, 8)
    """

    source: Source
    indices: np.ndarray
    augmentation: Augmentation | None = None
    conditions: np.ndarray | None = None
    degradation: str | None = None
    name: str = ""
    drawn: Drawn | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        shape = self.source.shape
        return shape if self.augmentation is None else self.augmentation.shape(shape)

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
        """Return examples in one reading, shape (n, *shape), as `as_tensor` says."""
        return as_tensor(self.read(np.asarray(indices, dtype=np.int64)))

    def batch(self, positions: Sequence[int] | np.ndarray) -> Batch:
        """Return `__getitems__`, in a pair with the values of the conditions if there are any."""
        positions = np.asarray(positions, dtype=np.int64)
        return self._with_conditions(self.__getitems__(positions), positions)

    def draw(self, positions: np.ndarray, seed: int, numbers: Sequence[int]) -> Batch:
        """Return a batch for training, as `batch`, with flips and crops.

        Args:
            positions: Of the examples in the split.
            seed: Of the flips and crops.
            numbers: Of the examples in the stream of training examples; see `Augmentation.random`.

        Returns:
            Examples, with the values of their conditions if there are any.
        """
        augment = self.augmentation
        if augment is None:
            return self.batch(positions)
        rows = zip(self.source.read(self.indices[positions]), numbers, strict=True)
        x = as_tensor(np.stack([augment.random(row, seed, number) for row, number in rows]))
        return self._with_conditions(x, positions)

    def _with_conditions(self, x: Tensor, positions: np.ndarray) -> Batch:
        if self.degradation is not None:
            return x, DEGRADATIONS[self.degradation](x)
        if self.conditions is not None:
            return x, as_tensor(self.conditions[self.indices[positions]])
        return x

    def read(self, indices: np.ndarray | None = None) -> np.ndarray:
        """Return examples by their position in the split (all without one), as `Source.read`."""
        rows = self.source.read(self.indices if indices is None else self.indices[indices])
        if self.augmentation is not None:
            rows = [self.augmentation.central(row) for row in rows]
        if isinstance(rows, list):
            rows = np.stack(rows) if rows else np.empty((0, *self.shape), np.uint8)
        return rows

    def sample(self, n: int, seed: int = 0) -> Split:
        """Return n examples drawn at random, in the order that they have here; all if not more.

        Args:
            n: Number of examples.
            seed: Fixes the draw; a smaller draw of the same seed is part of a larger one.

        Returns:
            A split that knows what it was drawn from.
        """
        if n < 1:
            raise InputError(f"limit = {n}: at least one example is needed; give --limit 1 or more")
        if n >= len(self):
            return self
        chosen = np.sort(np.random.default_rng([seed, _SAMPLE]).permutation(len(self))[:n])
        of = len(self) if self.drawn is None else self.drawn.of
        drawn = Drawn(self.positions[chosen], of, seed)
        return replace(self, indices=self.indices[chosen], drawn=drawn)

    def reached(self, rows: np.ndarray) -> Split:
        """Return the examples that were reached before the work was stopped; rows: shape (n,)."""
        of = len(self) if self.drawn is None else self.drawn.of
        drawn = Drawn(self.positions[rows], of, None)
        return replace(self, indices=self.indices[rows], drawn=drawn)

    @property
    def positions(self) -> np.ndarray:
        """The number of each example among those it was drawn out of, shape (n,)."""
        return np.arange(len(self)) if self.drawn is None else self.drawn.positions

    @property
    def kind(self) -> str:
        """What one example is: "1×8×8, 17 levels"."""
        values = "real values" if self.levels is None else f"{self.levels} levels"
        return f"{'×'.join(map(str, self.shape))}, {values}"

    def __repr__(self) -> str:
        return f"Split({self.description} of {self.kind})"

    @property
    def description(self) -> str:
        """What the examples are: "1,000 of 10,000 test examples, drawn with seed 0"."""
        name = "training" if self.name == "train" else self.name
        what = f"{name} examples".lstrip()
        if self.drawn is None:
            return f"{len(self):,} {what}" if len(self) != 1 else f"1 {what[:-1]}"
        seed = self.drawn.seed
        how = "where it was stopped" if seed is None else f"drawn with seed {seed}"
        return f"{len(self):,} of {self.drawn.of:,} {what}, {how}"

    def as_json(self) -> dict[str, Any]:
        """Return what the examples are, for a JSON object."""
        drawn = self.drawn
        return {
            "split": self.name or "all",
            "examples": len(self),
            "of": len(self) if drawn is None else drawn.of,
            "drawn_with_seed": None if drawn is None else drawn.seed,
            "description": self.description,
        }


class Standardised:
    """The real values of a source, less a location and divided by a scale, in float32.

    location, scale: one number for each entry of the first axis.
    """

    levels = None

    def __init__(self, source: Source, location: Sequence[float], scale: Sequence[float]) -> None:
        self.shape = source.shape
        self._source = source
        self._axes = location, scale

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: np.ndarray) -> Examples:
        """Return examples as `Source.read` does."""
        rows = self._source.read(indices)
        if isinstance(rows, list):
            return [standardised(row[None], *self._axes)[0] for row in rows]
        return standardised(rows, *self._axes)


def standardised(x: np.ndarray, location: Sequence[float], scale: Sequence[float]) -> np.ndarray:
    """Return (x − location)/scale, taken in float64, as float32. x: shape (n, m, ...)."""
    axes = (-1, *(1,) * (x.ndim - 2))
    exact = (x - np.reshape(location, axes)) / np.reshape(scale, axes)
    return exact.astype(np.float32)


def mean_and_std(pieces: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation for each entry of the second axis of all pieces together.

    In float64, in units of the first piece and about its first value, so that neither a large
    offset nor a large or small scale costs digits; pieces are joined by the rule of Chan, Golub,
    LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances" (1979). The
    standard deviation is exactly 0 where all values are the same.
    pieces: shape (n, m, ...), at least one. Two float64 arrays of shape (m,) are returned.
    """
    origin, unit = np.zeros(0), np.zeros(0)
    mean, squares, count = np.zeros(()), np.zeros(()), 0
    for piece in pieces:
        rows = np.moveaxis(piece, 1, 0).reshape(piece.shape[1], -1).astype(np.float64)
        if not count:
            origin = rows[:, 0]
            unit = np.abs(rows - origin[:, None]).max(1)
            unit[unit == 0] = 1.0
        rows = (rows - origin[:, None]) / unit[:, None]
        own, n = rows.mean(1), rows.shape[1]
        shift = own - mean
        squares = squares + np.square(rows - own[:, None]).sum(1)
        squares = squares + shift**2 * (count * n / (count + n))
        count += n
        mean = mean + shift * (n / count)
    return origin + unit * mean, unit * np.sqrt(squares / count)


def channels_first(array: np.ndarray, name: str) -> np.ndarray:
    """Return a view whose images are (channels, height, width).

    (n, d) vectors stay; (n, h, w) grey images become (n, 1, h, w); of (n, a, b, c) the axis that is
    1 to 4 long, first or last, is the channels' and comes first. Everything else stays.
    Raises InputError when there are no examples or values, when there is only one axis, and when
    the channels could be the first axis or the last.
    """
    if array.ndim < 2 or array.size == 0:
        raise InputError(
            f"{name} has shape {array.shape}: examples along the first axis and at least one value "
            "in each are needed; save it as (n, d), (n, h, w) or (n, c, h, w)"
        )
    if array.ndim == 3:
        return array[:, None]
    if array.ndim != 4:
        return array
    first, last = array.shape[1] in _CHANNELS, array.shape[3] in _CHANNELS
    if first and last:
        raise InputError(
            f"{name} has shape {array.shape}: the channels could be axis 1 or axis 3; save grey "
            "images as (n, h, w), others with only one of the two axes up to 4 long, or as (n, d)"
        )
    return np.moveaxis(array, 3, 1) if last else array


def as_tensor(values: np.ndarray) -> Tensor:
    """Return an array as it is, uint16 as int32: torch does next to nothing with it."""
    return torch.from_numpy(values.astype(np.int32) if values.dtype == np.uint16 else values)


def real_type(dtype: np.dtype) -> np.dtype:
    """Return the type in which stored real values of a type are read.

    It is float64 for what has more digits than float32, otherwise float32, so that no digit is lost
    before the values are standardised.
    """
    return np.dtype(np.float32 if dtype.itemsize <= 4 else np.float64)


def check_range(value_range: tuple[float, float] | None) -> None:
    """Raise InputError unless the first end is below the second."""
    if value_range is not None and not value_range[0] < value_range[1]:
        raise InputError(
            f"value_range = {value_range}: the lower end comes first; give --range LOW HIGH"
        )


def as_read(
    values: np.ndarray,
    levels: int | None,
    value_range: tuple[float, float] | None,
    example: Callable[[int], str],
) -> np.ndarray:
    """Return stored values, shape (n, ...), as `Source.read` gives them, every one verified.

    With `levels`, floats, and integers with a `value_range`, are those of levels that lie evenly
    from the first of `value_range` to the second; None: from 0 to levels - 1. Otherwise the
    arguments are those of `verify`.
    """
    if levels is None:
        with np.errstate(over="ignore"):  # what float64 cannot hold becomes inf: refused
            values = values.astype(real_type(values.dtype), copy=False)
        verify(values, None, value_range, example)
        return np.ascontiguousarray(values)
    if values.dtype.kind == "f" or value_range is not None:
        values = _numbers_of_levels(values, levels, value_range, example)
    else:
        verify(values, levels, None, example)
    return np.ascontiguousarray(values, dtype=np.uint8 if levels <= 256 else np.uint16)


def _numbers_of_levels(
    values: np.ndarray,
    levels: int,
    value_range: tuple[float, float] | None,
    example: Callable[[int], str],
) -> np.ndarray:
    low, high = value_range or (0.0, levels - 1.0)
    per_value = (levels - 1) / (high - low)
    eps = float(np.finfo(values.dtype).eps) if values.dtype.kind == "f" else 0.0
    rounding = eps * max(abs(low), abs(high)) * per_value
    position = (values.astype(np.float64) - low) * per_value
    nearest = np.rint(position)
    off = ~(np.abs(position - nearest) <= _OFF_LEVEL + rounding)
    bad = off | (nearest < 0) | (nearest >= levels)
    if bad.any():
        first = np.unravel_index(int(bad.argmax()), bad.shape)
        raise InputError(
            f"{example(int(first[0]))} has the value {values[first]}, which is none of {levels} "
            f"levels from {low:g} to {high:g}; give the lowest and highest level, --range LOW HIGH,"
            " or leave out --levels"
        )
    return nearest


class Finite:
    """How many real values are not finite, and the first of them."""

    def __init__(self) -> None:
        self._first = ""
        self._bad = self._seen = 0

    def look(self, values: np.ndarray, example: Callable[[int], str]) -> None:
        """Take note of values, shape (n, ...); `example(row)` names a row."""
        bad = ~np.isfinite(values)
        if bad.any() and not self._bad:
            first = np.unravel_index(int(bad.argmax()), bad.shape)
            self._first = f"{example(int(first[0]))} has the value {values[first]}"
        self._bad += int(np.count_nonzero(bad))
        self._seen += values.size

    def check(self) -> None:
        """Raise InputError, in one line for all of them, where any is not finite."""
        if self._bad:
            raise InputError(
                f"{self._first}, but values must be finite; {self._bad} of {self._seen} are not: "
                "leave those examples out, or replace the values"
            )


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
        remedy = _remedy(value, levels, value_range)
        if levels is not None and value >= levels:
            found = np.unique(values)
            if 2 <= len(found) <= levels:
                remedy += f"; or, if these are levels, add --range {found[0]} {found[-1]}"
        raise InputError(f"{name} has the value {value}{remedy}")


def _remedy(value: Any, levels: int | None, value_range: tuple[float, float] | None) -> str:
    if levels is None and not np.isfinite(value):
        return ", but values must be finite; leave that example out, or replace the value"
    if levels is None:
        assert value_range is not None
        low, high = value_range
        return f", but {low} to {high} is allowed; give a wider --range, or rescale the data"
    if value < 0:
        return f", but 0 to {levels - 1} is allowed; subtract the smallest value from all"
    if levels == MAX_LEVELS or value >= MAX_LEVELS:
        return f", but 0 to {levels - 1} is allowed; rescale the data, or save them as floats"
    return (
        f", but levels = {levels} allows 0 to {levels - 1}; give --levels {int(value) + 1} or more"
    )
