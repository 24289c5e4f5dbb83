"""Examples as they are stored: not decoded yet, by number or shard by shard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from variational_diffusion.errors import DamagedError


class Stored(NamedTuple):
    """One example that is not decoded.

    name: its identity: no two examples of a data set have the same. content: an image file, the
    bytes of an image or `.npy` file, an array, or why there is none: whoever decodes it raises
    that. beside: the label's name or the vector that it is conditioned on, where one was asked
    for. picture: which of several pictures of a file it is; None: the first, the others are left
    out.
    """

    name: str
    content: Path | bytes | np.ndarray | DamagedError
    beside: Any = None
    picture: int | None = None


@runtime_checkable
class Store(Protocol):
    """Stored examples by number."""

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> list[Stored]:
        """Return the examples of these indices."""
        ...


@runtime_checkable
class Shards(Protocol):
    """Stored examples in pieces, each of which can only be read from its beginning on."""

    def __len__(self) -> int:
        """Return the number of shards; how many examples they hold need not be known."""
        ...

    def read(self, shard: int, start: int) -> Iterator[Stored]:
        """Yield a shard's examples from number `start` on; none where it has no more."""
        ...


class Held:
    """Stored examples in memory, undecoded."""

    def __init__(self, examples: list[Stored]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def read(self, indices: np.ndarray) -> list[Stored]:
        """Return the examples of these indices."""
        return [self._examples[index] for index in indices]
