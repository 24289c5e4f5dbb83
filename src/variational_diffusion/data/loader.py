"""Batches: an endless stream for training, one pass for evaluation, both made ahead in threads."""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from variational_diffusion.conditions import Batch
from variational_diffusion.data.dataset import Dataset
from variational_diffusion.data.source import Split
from variational_diffusion.data.stream import Position, Task
from variational_diffusion.errors import InputError


class Batches(Iterator[Batch]):
    """Batches in their order, made ahead by threads: examples, or pairs of them and conditions.

    Threads, not processes: decoders of images and copies release Python's lock, and nothing is sent
    from one process to another.

    tasks: what makes each batch, and the position after it.
    position: before the first batch.
    workers: threads; 0 is one, as 1 is. One batch more than there are threads is made ahead.
    device: where the batches go. To a GPU they are copied from pinned memory, by the thread.
    waited: seconds for which `next` has kept its caller waiting.
    """

    def __init__(
        self,
        tasks: Iterable[tuple[Task, Position]],
        position: Position,
        *,
        workers: int = 0,
        device: torch.device | None = None,
    ) -> None:
        self.waited = 0.0
        self._tasks = iter(tasks)
        self._position = position
        self._device = device
        self._ahead = max(1, workers) + 1
        self._pending: deque[tuple[Future[Batch], Position]] = deque()
        self._pool = ThreadPoolExecutor(max(1, workers), "decode")
        weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        start = time.monotonic()
        self._submit(1)  # the one that is due comes before those after it
        if not self._pending:
            raise StopIteration
        batch, self._position = self._pending[0][0].result(), self._pending[0][1]
        self._pending.popleft()
        self._submit(self._ahead)
        self.waited += time.monotonic() - start
        return batch

    def position(self) -> Position:
        """Return what `training_batches` needs, beside `start`, to go on after the last batch.

        JSON values; {} where it needs nothing. Batches that were made ahead do not count.
        """
        return self._position

    def _submit(self, ahead: int) -> None:
        while len(self._pending) < ahead and (made := next(self._tasks, None)) is not None:
            task, position = made
            self._pending.append((self._pool.submit(_on_device, task, self._device), position))


def training_batches(
    data: Dataset | Split,
    batch_size: int,
    seed: int,
    *,
    start: int = 0,
    position: Position | None = None,
    part: tuple[int, int] = (0, 1),
    workers: int = 0,
    device: torch.device | None = None,
) -> Batches:
    """Return an endless stream of batches for training, from number `start` on.

    Batch k depends on the data, the batch size, the seed and k alone. Of a split, and of a data set
    with one for the training, every example comes once in an epoch; a batch may hold the end of one
    epoch and the beginning of the next. Of a data set with a stream, see `data.stream`.

    batch_size: number of examples in the batch of all processes together.
    position: of `Batches.position` after batch start - 1, joined by `joined_positions` where there
        were several processes; needed for a stream that does not start at 0.
    part: (rank, processes). A batch here is rows rank·b/n to (rank+1)·b/n of the whole one, of
        shape (b/n, *shape). Another number of processes may go on with the stream.
    workers, device: as of `Batches`; they change nothing but the speed.
    Raises InputError when the batch cannot be shared evenly, and when a split has fewer examples.
    """
    rank, processes = part
    if batch_size % processes:
        raise InputError(
            f"batch_size = {batch_size}: it must be a multiple of the number of processes, "
            f"{processes}; give --batch-size {max(1, round(batch_size / processes)) * processes}"
        )
    position = position or {}
    if isinstance(data, Dataset) and data.stream is not None:
        if batch_size < 1:
            raise InputError(f"batch_size = {batch_size}: at least 1; give --batch-size 32")
        tasks = data.stream.tasks(batch_size, seed, start, position, part)
        return Batches(tasks, position, workers=workers, device=device)
    split = data.splits["train"] if isinstance(data, Dataset) else data
    if not 1 <= batch_size <= len(split):
        raise InputError(
            f"batch_size = {batch_size}: 1 to {len(split)} is allowed, as the split has "
            f"{len(split)} examples; give --batch-size {min(32, len(split))}"
        )
    rows = range(batch_size * rank // processes, batch_size * (rank + 1) // processes)
    tasks = _split_tasks(split, batch_size, seed, start, rows)
    return Batches(tasks, {}, workers=workers, device=device)


def measuring_batches(split: Split, batch_size: int, seed: int, *, parts: int = 1) -> Batches:
    """Return an endless stream of batches to measure a model on, in random order.

    The examples are as evaluation takes them: not flipped, and cropped in the middle. Each comes
    once in an epoch, as in `training_batches`, but a batch may hold more than one epoch: a few
    examples are measured as often as many are, with fresh times and noise.

    parts: batch k is of part k mod `parts` of the examples, which are dealt out at random, so that
        to leave out all batches of a part is to leave out its examples.
    """
    if batch_size < 1 or not len(split):
        raise InputError(
            f"batch_size = {batch_size} of {len(split)} examples: give at least one of each"
        )
    dealt = np.random.default_rng(seed).permutation(len(split))
    own = [dealt[part::parts] for part in range(min(parts, len(split)))]
    positions = (
        part[batch_positions(len(part), batch_size, seed, k)] for k in count() for part in own
    )
    return Batches(((partial(split.batch, few), {}) for few in positions), {})


def joined_positions(positions: Iterable[Position]) -> Position:
    """Return the position of all processes together, from that of each after the same batch."""
    lanes: dict[str, Any] = {}
    for position in positions:
        lanes |= position.get("lanes", {})
    return {"lanes": lanes} if lanes else {}


def ordered_batches(split: Split, batch_size: int, *, part: tuple[int, int] = (0, 1)) -> Batches:
    """Return every example once, in the split's order; the last batch may be short.

    part: (k, n) gives the batches k, k + n, k + 2 n, … alone: the share of one of n processes.
    """
    if batch_size < 1:
        raise InputError(f"batch_size = {batch_size}: at least 1; give --batch-size 1 or more")
    positions = np.arange(len(split))
    starts = range(part[0] * batch_size, len(split), part[1] * batch_size)
    chosen = (positions[first : first + batch_size] for first in starts)
    return Batches(((partial(split.batch, few), {}) for few in chosen), {})


def batch_positions(n: int, batch_size: int, seed: int, k: int) -> np.ndarray:
    """Return the positions, shape (batch_size,), of batch k out of n examples.

    These are the elements k·batch_size to (k+1)·batch_size of the permutations of the epochs
    0, 1, 2, …, one after the other.
    """
    first, offset = divmod(k * batch_size, n)
    epochs = range(first, first + -(-(offset + batch_size) // n))
    positions = np.concatenate([_permutation(n, seed, epoch) for epoch in epochs])
    return positions[offset : offset + batch_size]


@lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    permutation = np.random.default_rng([seed, epoch]).permutation(n)
    permutation.flags.writeable = False
    return permutation


def _split_tasks(
    split: Split, batch_size: int, seed: int, start: int, rows: range
) -> Iterator[tuple[Task, Position]]:
    for k in count(start):
        positions = batch_positions(len(split), batch_size, seed, k)[rows.start : rows.stop]
        numbers = [k * batch_size + row for row in rows]
        yield partial(split.draw, positions, seed, numbers), {}


def _on_device(task: Task, device: torch.device | None) -> Batch:
    batch = task()
    if device is None or device.type != "cuda":
        return batch
    if isinstance(batch, Tensor):
        return batch.pin_memory().to(device, non_blocking=True)
    x, condition = (part.pin_memory().to(device, non_blocking=True) for part in batch)
    return x, condition
