"""Examples with what it takes to bring them back as they were: names, types, their own sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from variational_diffusion.data.arrays import ArraySource
from variational_diffusion.data.decoding import Decoded, Pictures
from variational_diffusion.data.source import Joined, Source, Split
from variational_diffusion.data.stored import Stored
from variational_diffusion.errors import InputError
from variational_diffusion.escaping import printable

_LOOKED_AT = 64
"""Examples whose headers are read together."""


class Originals:
    """Examples by number, and how they were stored.

    dtype: numpy's name of an array's type; axes: as `ArraySource.stored` says; mode: a key of
    `images.CHANNELS` for images; None, "same" and None for what is no such thing.
    notes: remarks on the reading, of one line each.
    """

    def __init__(self, split: Split, notes: Sequence[str] = ()) -> None:
        self.notes = tuple(notes)
        self._split = split
        self.dtype: str | None = None
        self.mode: str | None = None
        self.axes = "same"
        source = split.source
        if isinstance(source, Joined):
            source = source.parts[0]
        if isinstance(source, ArraySource):
            dtype, self.axes = source.stored
            self.dtype = None if source.is_read_as_levels else dtype.str
        if isinstance(source, Decoded) and isinstance(source.decoder, Pictures):
            self.mode = source.decoder.mode

    @classmethod
    def of_array(cls, source: ArraySource) -> Originals:
        """Return all examples of an array; raise InputError for floats, which do not come back."""
        dtype, _ = source.stored
        if dtype.kind not in "biu":
            raise InputError(
                f"data hold {dtype}: an array comes back with its type, which has to be bool or "
                "integers; convert it with astype"
            )
        return cls(Split(source, np.arange(len(source))))

    @property
    def levels(self) -> int | None:
        """Number of values of integer data; None for real values."""
        return self._split.levels

    def __len__(self) -> int:
        return len(self._split)

    @property
    def description(self) -> str:
        """What the examples are, see `Split.description`."""
        return self._split.description

    def as_json(self) -> dict[str, Any]:
        """Return what the examples are, for a JSON object."""
        return self._split.as_json()

    def sample(self, n: int) -> Originals:
        """Return n examples drawn at random, as `Split.sample`."""
        return Originals(self._split.sample(n), self.notes)

    def read(self, numbers: np.ndarray) -> list[np.ndarray]:
        """Return examples, each of its own size, as unsigned integers."""
        split = self._split
        if split.augmentation is not None:
            return list(split.read(numbers))
        return list(split.source.read(split.indices[numbers]))

    def names(self, numbers: np.ndarray) -> list[str] | None:
        """Return the paths of image files in their folder; None for what is no folder of images."""
        stored = self._stored(numbers)
        if not stored or not all(isinstance(example.content, Path) for example in stored):
            return None
        return [example.name for example in stored]

    def check_exact(self) -> None:
        """Raise InputError for the first image of which the reading loses something."""
        for loss in self.losses():
            raise InputError(
                f"{loss}: it would not come back as it was; convert it, or leave it out"
            )

    def losses(self) -> Iterator[str]:
        """Yield what the reading loses, an image at a time: what `changes` says, and values.

        For the examples of a run's own data, which are what the run reads of its files.
        """
        for first in range(0, len(self), _LOOKED_AT):
            numbers = np.arange(first, min(first + _LOOKED_AT, len(self)))
            for part, own in self._located(numbers):
                if isinstance(part, ArraySource) and part.is_read_as_levels:
                    yield "an example has values that are read as the numbers of their levels"
                if isinstance(part, Decoded):
                    for stored in part.stored(own):
                        yield from part.decoder.losses(stored)

    def _stored(self, numbers: np.ndarray) -> list[Stored]:
        return [
            stored
            for part, own in self._located(numbers)
            if isinstance(part, Decoded)
            for stored in part.stored(own)
        ]

    def _located(self, numbers: np.ndarray) -> list[tuple[Source, np.ndarray]]:
        source, indices = self._split.source, self._split.indices[numbers]
        return source.located(indices) if isinstance(source, Joined) else [(source, indices)]


def file_column(split: Split) -> dict[str, np.ndarray]:
    """Return a column with the names of image files, as paths in their folder; none of others."""
    originals = Originals(split)
    if len(split) == 0 or originals.names(np.arange(1)) is None:
        return {}
    names = originals.names(np.arange(len(split))) or []
    return {"file": np.array([printable(name) for name in names])}
