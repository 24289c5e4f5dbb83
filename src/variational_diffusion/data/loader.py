"""Batches of a split: an endless stream for training, one pass for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from variational_diffusion.data.source import Split
from variational_diffusion.errors import InputError


def batches(
    split: Split, batch_size: int, seed: int, start: int = 0, *, workers: int = 0
) -> Iterator[Tensor]:
    """Return an endless stream of batches, shape (batch_size, *shape), from number `start` on.

    Batch k depends on the split, the batch size, the seed and k alone, so that a run goes on at any
    step without a stored state. Every example comes once in an epoch; a batch may hold the end of
    one epoch and the beginning of the next.

    workers: processes that read ahead; 0 reads in this one. They change nothing but the speed.
    Raises InputError when the split has fewer examples than a batch.
    """
    if not 1 <= batch_size <= len(split):
        raise InputError(
            f"batch_size = {batch_size}: 1 to {len(split)} is allowed, as the split has "
            f"{len(split)} examples; give --batch-size {min(32, len(split))}"
        )
    return _load(split, _Stream(len(split), batch_size, seed, start), workers)


def ordered_batches(
    split: Split, batch_size: int, *, part: tuple[int, int] = (0, 1), workers: int = 0
) -> Iterator[Tensor]:
    """Return every example once, in the split's order; the last batch may be short.

    part: (k, n) gives the batches k, k + n, k + 2 n, … alone: the share of one of n processes.
    """
    if batch_size < 1:
        raise InputError(f"batch_size = {batch_size}: at least 1; give --batch-size 1 or more")
    positions = np.arange(len(split))
    starts = range(part[0] * batch_size, len(split), part[1] * batch_size)
    return _load(split, [positions[first : first + batch_size] for first in starts], workers)


def batch_positions(n: int, batch_size: int, seed: int, k: int) -> np.ndarray:
    """Return the positions, shape (batch_size,), of batch k out of n examples.

    These are the elements k·batch_size to (k+1)·batch_size of the permutations of the epochs
    0, 1, 2, …, one after the other. batch_size is at most n.
    """
    epoch, offset = divmod(k * batch_size, n)
    positions = _permutation(n, seed, epoch)[offset : offset + batch_size]
    missing = batch_size - len(positions)
    return np.concatenate([positions, _permutation(n, seed, epoch + 1)[:missing]])


@lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    permutation = np.random.default_rng([seed, epoch]).permutation(n)
    permutation.flags.writeable = False
    return permutation


class _Stream:
    """The positions of batch `start`, `start` + 1, … without end."""

    def __init__(self, n: int, batch_size: int, seed: int, start: int) -> None:
        self._arguments = (n, batch_size, seed)
        self._start = start

    def __iter__(self) -> Iterator[np.ndarray]:
        for k in count(self._start):
            yield batch_positions(*self._arguments, k)


def _load(split: Split, positions: _Stream | list[np.ndarray], workers: int) -> Iterator[Tensor]:
    loader: DataLoader[Tensor] = DataLoader(
        # both have what torch asks for without being subclasses of its classes
        split,  # type: ignore[arg-type]
        batch_sampler=positions,  # type: ignore[arg-type]
        collate_fn=_as_it_is,  # `Split.__getitems__` has made a batch of them
        num_workers=workers,
        generator=torch.Generator(),  # seeds the workers; the global one is not advanced
    )
    return iter(loader)


def _as_it_is(batch: Any) -> Any:
    return batch
