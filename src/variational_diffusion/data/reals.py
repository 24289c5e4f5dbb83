"""Real values, looked at before they are trained on: location, scale, and what has no density.

A density describes values that do not repeat. Where a share w of them does, a model can put narrow
peaks on these values: every unit by which γ_0 falls then gains w/(2 ln 2) bits per dimension, for
ever, and the bits say nothing of the data. Coins, levels of an image divided by 255, rounded
measurements and zeros of a sensor that saw nothing are such values. So are real numbers that were
stored with too few digits for their offset.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from variational_diffusion.config import TrainingConfig
from variational_diffusion.data.source import MAX_LEVELS, Split, mean_and_std

LEAST_SHARE = 2 * math.log(2) * TrainingConfig.model_fields["range_price"].default
"""Share of repeated values from which on a lower γ_0 gains more than `range_price` asks for."""

LEAST_GAMMA = -24.0
"""γ_0 below which float32 rounds z by more than 1 % of its noise, 6e-6 of the data's scale."""

_SHARP = -13.3
"""γ_0 of data of which only a part repeats: noise as fine as that on images of 256 levels."""

_PER_STEP = -13.3 + 2 * math.log(128)
"""γ where a step of the size of the scale is six standard deviations of the noise."""

_VALUES = 2**22
_PER_COLUMN = 2**16
_TOGETHER = 1024
_AGAIN = 4
_SHOWN = 3
_LOST = 2.0**-10


class Levels(NamedTuple):
    """Evenly spaced values that are levels. meaning: in words."""

    levels: int
    low: float
    high: float
    meaning: str

    @property
    def options(self) -> str:
        """What `vdm train` reads them with."""
        whole = self.low == 0 and self.high == self.levels - 1
        ends = "" if whole else f" --range {self.low:g} {self.high:g}"
        return f"--levels {self.levels}{ends}"


@dataclass(frozen=True, eq=False)
class RealValues:
    """What is known of real values, for each entry of the first axis of an example: a column.

    All arrays have the shape (columns,). What repeats is found in a sample of the examples.

    location, scale: mean and standard deviation of all examples; a scale of 0: the column is
        constant.
    repeated: share of the values that are there again; 0 where there are no more of them than
        rounding explains.
    step: smallest distance of two values of a column with repeated ones; NaN without.
    grid: whether nearly all values of such a column lie on multiples of the step, or repeat.
    lost: whether the step is that of the type that the values were stored in.
    commonest: the value that is there most often.
    levels: what the values are, if they are levels; None for all others.
    copies: share of the examples that are copies of others.
    kind: what a column is called.
    """

    location: np.ndarray
    scale: np.ndarray
    repeated: np.ndarray
    step: np.ndarray
    grid: np.ndarray
    lost: np.ndarray
    commonest: np.ndarray
    levels: Levels | None
    copies: float
    kind: str

    @property
    def constant(self) -> np.ndarray:
        """The numbers of the columns that have one value in all examples."""
        return np.flatnonzero(self.scale == 0)

    @property
    def least_gamma(self) -> float:
        """Return the floor of γ_0: below it the model would describe rounding and not the data.

        Without repeated values it is that of float32. Where all columns consist of steps, the
        noise at the floor is a sixth of the smallest step, as with discrete data: it tells
        neighbours apart, and what a lower one gained would be the same for every model. Where
        repeated values stand beside others, these keep noise of a thousandth of their scale.
        """
        varying = self.scale > 0
        if not (self.repeated[varying] > 0).any():
            return LEAST_GAMMA
        if not self.grid[varying].all():
            return _SHARP
        step = float(np.min(self.step[varying] / self.scale[varying]))
        return round(max(LEAST_GAMMA, _PER_STEP + 2 * math.log(min(2.0, step))), 4)

    def notes(self) -> list[str]:
        """Return what is wrong with these values, and what to do, in one line for each kind."""
        notes = []
        if len(self.constant) and self.levels is None:
            notes.append(f"constant values: {constant_columns(self)}")
        if self.copies:
            notes.append(
                f"copies: {self.copies:.2g} of the examples are copies of others: drop them, as in "
                "np.unique(x, axis=0)"
            )
        if self.levels is not None:
            notes.append(
                f"repeated values: all are {self.levels.meaning}, which have no density; train "
                f"with {self.levels.options}"
            )
            return notes
        if self.lost.any():
            worst = int(np.argmax(np.where(self.lost, self.step / self._spread, 0)))
            notes.append(
                f"lost digits: {self.kind} {worst} moves in steps of {self.step[worst]:.3g} around "
                f"{self.location[worst]:.6g}, {self.step[worst] / self.scale[worst]:.2g} of its "
                f"standard deviation (so {self._named(self.lost)}): the type that held the values "
                "has no more digits; save them as float64 from the beginning, or less an offset"
            )
        repeated = (self.repeated > 0) & ~self.lost & (self.scale > 0)
        if repeated.any():
            most = int(np.argmax(np.where(repeated, self.repeated, 0)))
            remedy = f"leave them out, or model apart whether a value is {self.commonest[most]:g}"
            if self.grid[most]:
                remedy = (
                    f"add noise as wide as a step, here {self.step[most]:.3g}: x + step * "
                    "(rng.random(x.shape) - 0.5)"
                )
            notes.append(
                f"repeated values: {self.repeated[most]:.2g} of {self.kind} {most} (so "
                f"{self._named(repeated)}; most often {self.commonest[most]:g}): they have no "
                f"density, and the bits only say how low γ_0 went; {remedy}"
            )
        return notes

    @property
    def _spread(self) -> np.ndarray:
        return np.where(self.scale > 0, self.scale, 1.0)

    def _named(self, chosen: np.ndarray) -> str:
        return named(np.flatnonzero(chosen), len(chosen), self.kind)


def real_values(split: Split) -> RealValues:
    """Look at the real values of a split: at all for location and scale, otherwise at a sample."""
    starts = range(0, len(split), _TOGETHER)
    location, scale = mean_and_std(
        split.read(np.arange(first, min(first + _TOGETHER, len(split)))) for first in starts
    )
    kind = {1: "column", 3: "channel"}.get(len(split.shape), "entry")
    columns, copies = _sample(split)
    found = [_look(column, s) for column, s in zip(columns, scale, strict=True)]
    repeated, step, grid, lost, commonest = map(np.array, zip(*found, strict=True))
    if copies and (repeated > 0).any():
        copies = 0.0  # rows of few different values are copies by chance
    varying = scale > 0
    of_steps = varying.any() and grid[varying].all() and not lost.any()
    levels = _levels(columns[varying]) if of_steps else None
    return RealValues(location, scale, repeated, step, grid, lost, commonest, levels, copies, kind)


def constant_columns(values: RealValues) -> str:
    """Return which columns are constant, and what to do."""
    which = named(values.constant, len(values.scale), values.kind)
    remedy = "leave constant columns out, as in x[:, x.std(0) > 0]"
    if values.levels is not None:
        remedy = f"all are {values.levels.meaning}: give {values.levels.options}"
    return f"{which} with one value in all training examples: a density needs spread; {remedy}"


def named(numbers: Sequence[int] | np.ndarray, total: int, kind: str) -> str:
    """Return the names of some columns in a few words: "columns 3, 7, 12 and 9 others of 784"."""
    first = numbers if len(numbers) <= _SHOWN + 1 else numbers[:_SHOWN]
    shown = ", ".join(str(int(number)) for number in first)
    others = len(numbers) - len(first)
    more = f" and {others} others" if others else ""
    plural = {"entry": "entries"}.get(kind, f"{kind}s")
    return f"{kind if len(numbers) == 1 else plural} {shown}{more} of {total}"


def _sample(split: Split) -> tuple[np.ndarray, float]:
    """Return values of evenly spread examples, shape (columns, n), and the share of copies.

    Copies of whole vectors are left out.
    """
    count = min(len(split), _PER_COLUMN, max(1, _VALUES // math.prod(split.shape)))
    chosen = np.unique(np.linspace(0, len(split) - 1, count).astype(np.int64))
    starts = range(0, len(chosen), _TOGETHER)
    rows = np.concatenate([split.read(chosen[first : first + _TOGETHER]) for first in starts])
    copies = 0.0
    if rows.ndim == 2 and rows.shape[1] > 1:
        alone = np.unique(rows, axis=0)
        copies = 1 - len(alone) / len(rows)
        rows = alone
    columns = np.moveaxis(rows, 1, 0).reshape(rows.shape[1], -1)
    stride = -(-columns.shape[1] // _PER_COLUMN)
    return columns[:, ::stride].astype(np.float64), copies


class _Column(NamedTuple):
    repeated: float
    step: float
    grid: bool
    lost: bool
    commonest: float


def _look(values: np.ndarray, scale: float) -> _Column:
    """Return what repeats in one column, as at `RealValues`."""
    ordered = np.sort(values)
    distances = np.diff(ordered)
    different = distances > 0
    ends = np.flatnonzero(np.append(different, True))
    counts = np.diff(ends, prepend=-1)
    commonest = float(ordered[ends[np.argmax(counts)]])
    of_four = counts[counts >= _AGAIN].sum() / len(values)
    again = counts[counts >= 2].sum()
    share = again / len(values)
    spacing = _spacing(values)
    # two values of a normal distribution of this width are the same float with this probability
    quartiles = np.quantile(ordered, [0.25, 0.75])
    width = max(float(quartiles[1] - quartiles[0]) / 1.35, spacing)
    by_chance = len(values) * spacing / (2 * math.sqrt(math.pi) * width)
    unlikely = again >= _AGAIN and share > max(LEAST_SHARE, 10 * by_chance)
    if not (of_four >= LEAST_SHARE or unlikely) or not different.any():
        return _Column(0.0, math.nan, False, False, commonest)
    step = float(distances[different].min())
    half = _half_spacing(values)
    if step < half / 8:  # finer near zero, as floats are: no grid
        return _Column(share, half, False, True, commonest)
    steps = distances[different] / step
    even = bool(np.mean(np.abs(steps - np.rint(steps)) < 0.05) > 0.99)
    is_lost = 0.4 * spacing < step < 2.5 * spacing and step > _LOST * scale
    return _Column(share, step, even or bool(of_four > 0.5), is_lost, commonest)


def _spacing(values: np.ndarray) -> float:
    """Return the distance of two neighbouring numbers of the type that held the values."""
    middle = float(np.median(np.abs(values)))
    narrow = bool((values == values.astype(np.float32)).all())
    return float(np.spacing(np.float32(middle) if narrow else np.float64(middle)))


def _half_spacing(values: np.ndarray) -> float:
    """Return the same for values that float16 holds exactly, 0 for others."""
    if np.abs(values).max() > 65_504 or not (values == values.astype(np.float16)).all():
        return 0.0
    return float(np.spacing(np.float16(np.median(np.abs(values)))))


def _levels(columns: np.ndarray) -> Levels | None:
    """Return what levels these values are; None for other values."""
    values = np.unique(columns)
    low, high, n = float(values[0]), float(values[-1]), len(values)
    if not 2 <= n <= MAX_LEVELS:
        return None
    step = float(np.diff(values).min())
    steps = 1 / step if step > 0 else math.inf
    if bool((values == np.rint(values)).all()) and high - low < MAX_LEVELS:
        if 0 <= low <= high - low:  # 0 may be a value too
            low = 0.0
        if low == 0 or step == 1:
            meaning = f"whole numbers from {low:g} to {high:g}"
            return Levels(int(high - low) + 1, low, high, meaning)
    for first, last in ((0.0, 1.0), (-1.0, 1.0)):
        between = round((last - first) * steps) if steps < MAX_LEVELS else MAX_LEVELS
        position = (values - first) / (last - first) * between
        inside = first <= low and high <= last and between < MAX_LEVELS
        if inside and bool((np.abs(position - np.rint(position)) < 0.05).all()):
            meaning = f"{between + 1} levels from {first:g} to {last:g}"
            if between == 255:
                meaning = f"images of 8 bits stored as floats from {first:g} to {last:g}"
            return Levels(between + 1, first, last, meaning)
    return None
