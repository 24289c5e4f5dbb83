"""Examples of a data set read before anything is trained: what only that shows.

At most 10,000 examples are read, and no more than hold 2^27 values: some seconds. Of more, so many
are drawn at random, and what is said is of those; exact copies are counted among all examples all
the same, by the keys that they have from being opened.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from variational_diffusion.data import doubts
from variational_diffusion.data.copies import Copies, exact_copies, near_copies, thumbnails
from variational_diffusion.data.dataset import Dataset
from variational_diffusion.data.decoding import Decoded
from variational_diffusion.data.keys import keys_of_values
from variational_diffusion.data.originals import Originals
from variational_diffusion.data.reals import named
from variational_diffusion.data.source import Split
from variational_diffusion.errors import DamagedError
from variational_diffusion.machine.progress import Listener, nothing, telling

MOST = 10_000
"""Examples that are read at most."""

_MOST_VALUES = 2**27
_TOGETHER = 64


@dataclass
class Examined:
    """What reading showed.

    read, of: how many examples were read, and how many there are; of a stream, those set aside.
    damaged: why, an example at a time, in one line each. notes: remarks on the values.
    copies, near: exact copies, and images that look the same.
    """

    read: int = 0
    of: int = 0
    damaged: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    copies: Copies = field(default_factory=Copies)
    near: Copies = field(default_factory=Copies)

    @property
    def remarks(self) -> list[str]:
        """The notes, with those on damaged examples and on how many were read."""
        remarks = []
        if self.damaged:
            remarks.append(f"{len(self.damaged)} examples cannot be read: {self.damaged[0]}")
        if self.read < self.of:
            remarks.append(f"{self.read:,} of {self.of:,} examples were read, drawn at random")
        return [*remarks, *self.notes]

    def as_json(self) -> dict[str, Any]:
        """Return the counts for a JSON object."""
        return {
            "read": self.read,
            "damaged": len(self.damaged),
            "copies": asdict(self.copies),
            "near_copies": asdict(self.near),
        }


def examined(dataset: Dataset, *, progress: bool | Listener = False) -> Examined:
    """Read examples of all splits; nothing is raised for single ones that cannot be read."""
    sizes = [len(split) for split in dataset.splits.values()]
    total = sum(sizes)
    most = max(1, min(MOST, _MOST_VALUES // math.prod(dataset.shape)))
    share = min(1.0, most / total)
    found, seen = Examined(of=total), _Seen(dataset.levels, dataset.shape)
    with telling(progress, "reading", "examples") as tell:
        for name, split in dataset.splits.items():
            chosen = split.sample(max(1, round(share * len(split))))
            for first in range(0, len(chosen), _TOGETHER):
                numbers = np.arange(first, min(first + _TOGETHER, len(chosen)))
                pairs = list(sound(chosen, numbers, found.damaged))
                if pairs:
                    seen.look(
                        [(name, int(chosen.positions[number])) for number, _ in pairs],
                        np.stack([values for _, values in pairs]),
                    )
                found.read += len(numbers)
                tell(found.read / total / share, found.read, nothing)
    keys, where = seen.keys, seen.where
    if found.read < total and dataset.content:
        keys = np.concatenate(list(dataset.content.values()))
        where = [(name, i) for name, of in dataset.content.items() for i in range(len(of))]
    found.copies = exact_copies(keys, where)
    if seen.small:
        found.near = near_copies(torch.cat(seen.small), seen.keys, seen.where)
    for what, copies in (
        ("copies: {} examples are copies of others", found.copies),
        ("near copies: {} images look like others (by a perceptual hash)", found.near),
    ):
        if copies.examples:
            found.notes.append(what.format(f"{copies.examples:,}") + _shown(copies, dataset))
    found.notes += _of_values(dataset, seen)
    return found


class _Seen:
    """What was seen of examples so far. where: their splits and positions."""

    def __init__(self, levels: int | None, shape: tuple[int, ...]) -> None:
        self.levels = levels
        self.where: list[tuple[str, int]] = []
        self.small: list[Tensor] = []
        self.found = np.zeros(levels or 0, bool)
        self.low = np.full(shape, np.inf)
        self.high = np.full(shape, -np.inf)
        self._keys: list[np.ndarray] = []

    @property
    def keys(self) -> np.ndarray:
        """The keys of their values, uint64."""
        return np.concatenate([np.empty(0, np.uint64), *self._keys])

    def look(self, where: list[tuple[str, int]], values: np.ndarray) -> None:
        self.where += where
        self._keys.append(keys_of_values(values))
        self.low = np.minimum(self.low, values.min(0))
        self.high = np.maximum(self.high, values.max(0))
        if self.levels is not None:
            self.found[values.ravel()] = True
        small = thumbnails(values, self.levels)
        if small is not None:
            self.small.append(small)


def _of_values(dataset: Dataset, seen: _Seen) -> Iterator[str]:
    """Yield remarks on levels that do not occur, and on places that never vary."""
    levels, train = dataset.levels, dataset.splits["train"]
    if levels is None:
        return  # see `reals.RealValues.notes`
    asked = dataset.config is not None and dataset.config.levels is not None
    if not asked and isinstance(train.source, Decoded):
        yield from doubts.of_levels(np.flatnonzero(seen.found), levels)
    constant = np.flatnonzero(seen.low == seen.high)
    if len(constant):
        kind = {1: "column", 3: "pixel"}.get(len(dataset.shape), "entry")
        total = math.prod(dataset.shape)
        yield f"constant: {named(constant, total, kind)} with one value in all examples"
    missing = levels - int(seen.found.sum())
    if missing:
        yield f"levels: {missing:,} of {levels:,} never occur"


def _shown(copies: Copies, dataset: Dataset) -> str:
    names = []
    for split, position in copies.first:
        own = Originals(dataset.splits[split]).names(np.array([position]))
        names.append(f"'{own[0]}'" if own else f"example {position} of {split}")
    across = f"; {copies.across:,} of them stand in more than one split" if copies.across else ""
    return f", as {names[1]} of {names[0]}{across}"


def sound(
    split: Split, numbers: np.ndarray, damaged: list[str] | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the examples of a split at these positions that can be read, with their positions.

    damaged: takes the messages of the others.
    """
    try:
        yield from zip(numbers.tolist(), split.read(numbers), strict=True)
    except DamagedError as error:
        if len(numbers) > 1:
            for number in numbers:
                yield from sound(split, number[None], damaged)
        elif damaged is not None:
            damaged.append(str(error))
