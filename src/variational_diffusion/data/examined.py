"""Every example of a data set read once, before anything is trained: what only that shows."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from variational_diffusion.data import doubts
from variational_diffusion.data.dataset import Dataset
from variational_diffusion.data.decoding import Decoded
from variational_diffusion.data.source import Split
from variational_diffusion.errors import DamagedError
from variational_diffusion.machine.progress import Listener, nothing, telling

_TOGETHER = 64


@dataclass
class Examined:
    """What reading showed.

    damaged: why, an example at a time, in one line each. notes: remarks on the values.
    """

    damaged: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def remarks(self) -> list[str]:
        """The notes, with one on the damaged examples."""
        if not self.damaged:
            return self.notes
        count = len(self.damaged)
        return [f"{count} examples cannot be read: {self.damaged[0]}", *self.notes]


def examined(dataset: Dataset, *, progress: bool | Listener = False) -> Examined:
    """Decode every example that is stored undecoded; arrays were verified when they were opened.

    Of streamed data, those that are set aside are read.
    """
    stored = [split for split in dataset.splits.values() if isinstance(split.source, Decoded)]
    found, total = Examined(), sum(map(len, stored))
    levels = dataset.levels
    seen = np.zeros(levels or 1, bool)
    with telling(progress, "reading", "examples") as tell:
        done = 0
        for split in stored:
            for first in range(0, len(split), _TOGETHER):
                numbers = np.arange(first, min(first + _TOGETHER, len(split)))
                for values in sound(split, numbers, found.damaged):
                    if levels is not None:
                        seen[values.ravel()] = True
                done += len(numbers)
                tell(done / total, done, nothing)
    asked = dataset.config is not None and dataset.config.levels is not None
    if not asked:
        found.notes += doubts.of_levels(np.flatnonzero(seen), levels)
    return found


def sound(split: Split, numbers: np.ndarray, damaged: list[str] | None = None) -> list[np.ndarray]:
    """Return the examples of a split at these positions that can be read.

    damaged: takes the messages of the others.
    """
    try:
        return list(split.read(numbers))
    except DamagedError as error:
        if len(numbers) == 1:
            if damaged is not None:
                damaged.append(str(error))
            return []
    return [example for number in numbers for example in sound(split, number[None], damaged)]
