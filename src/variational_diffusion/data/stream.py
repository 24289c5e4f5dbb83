"""Streaming: training examples in an order that the seed fixes, read shard by shard.

The shards are dealt to lanes, once and for all. In every epoch of a lane its shards are read in an
order drawn for it, and each `shuffle_buffer` examples that come one after the other make a block,
which is emitted in an order drawn for it. A batch holds as many examples of each lane, in the order
of the lanes. So batch k does not depend on how many processes read it, in an epoch of a lane every
example comes once, and a position is a few numbers: where the block begins, and how much of it has
been taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import numpy as np

from variational_diffusion.conditions import Batch
from variational_diffusion.data.augment import Augmentation
from variational_diffusion.data.beside import DEGRADATIONS, conditions_of
from variational_diffusion.data.decoding import Decoder
from variational_diffusion.data.source import as_tensor
from variational_diffusion.data.stored import Shards, Stored
from variational_diffusion.errors import DamagedError, InputError

Task = Callable[[], Batch]
Position = dict[str, Any]


class _Place(NamedTuple):
    """Where a block begins: at an example of the shard-th shard in the lane's order of the epoch.

    block: its number in the epoch.
    """

    epoch: int = 0
    shard: int = 0
    example: int = 0
    block: int = 0


@dataclass(frozen=True, eq=False)
class Stream:
    """Training examples that are not numbered.

    held: shard → number of examples at its beginning that are kept out of the training.
    skip_damaged: put another example of the same batch in the place of one that does not decode.
    conditioned: whether what stands beside the examples comes with them, and labels: the names, if
        it is labels. degradation: see `Split`.
    """

    shards: Shards
    decoder: Decoder
    shuffle_buffer: int
    lanes: int
    held: Mapping[int, int] = field(default_factory=dict)
    skip_damaged: bool = False
    augmentation: Augmentation | None = None
    conditioned: bool = False
    labels: tuple[str, ...] | None = None
    degradation: str | None = None

    def tasks(
        self, batch_size: int, seed: int, start: int, position: Position, part: tuple[int, int]
    ) -> Iterator[tuple[Task, Position]]:
        """Yield the tasks that make the batches from `start` on, and the position after each.

        The arguments are those of `loader.training_batches`. Reading is done here, decoding by the
        task, which may run in any thread. Raises InputError for a batch that the lanes cannot fill
        evenly, and for a position that is not one of this stream.
        """
        if self.lanes > len(self.shards):
            raise InputError(
                f"lanes = {self.lanes}: the data have {len(self.shards)} shards; give --lanes "
                f"{len(self.shards)} or less"
            )
        if batch_size % self.lanes:
            raise InputError(
                f"batch_size = {batch_size}: it must be a multiple of lanes = {self.lanes}; give "
                f"--batch-size {max(1, round(batch_size / self.lanes)) * self.lanes}"
            )
        first, last = (batch_size * (part[0] + i) // part[1] for i in (0, 1))
        width = batch_size // self.lanes
        numbers = range(first // width, (last - 1) // width + 1)
        places = _places(position, start, numbers, self.lanes)
        return self._tasks(batch_size, seed, start, places, range(first, last))

    def _tasks(
        self,
        batch_size: int,
        seed: int,
        start: int,
        places: dict[int, tuple[_Place, int]],
        rows: range,
    ) -> Iterator[tuple[Task, Position]]:
        width = batch_size // self.lanes
        pool = ThreadPoolExecutor(len(places), "read")
        try:
            lanes = {i: _Lane(self, i, seed, *place, pool) for i, place in places.items()}
            for k in count(start):
                taken = {i: lane.take(width) for i, lane in lanes.items()}
                chosen = [(taken[row // width], row % width) for row in rows]
                task = partial(self._decode, chosen, seed, k * batch_size + rows.start)
                yield task, {"lanes": {str(i): lane.position() for i, lane in lanes.items()}}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _decode(self, chosen: list[tuple[list[Stored], int]], seed: int, number: int) -> Batch:
        """Return a batch: of each list, the example at the place that stands beside it."""
        decoded = [self._sound(*choice) for choice in chosen]
        examples = [example for example, _ in decoded]
        if self.augmentation is not None:
            augment = self.augmentation.random
            examples = [augment(x, seed, number + i) for i, x in enumerate(examples)]
        x = as_tensor(np.stack(examples))
        if self.degradation is not None:
            return x, DEGRADATIONS[self.degradation](x)
        if self.conditioned:
            return x, as_tensor(conditions_of([beside for _, beside in decoded], self.labels))
        return x

    def _sound(self, lane: list[Stored], place: int) -> tuple[np.ndarray, Any]:
        """Return an example, and what stands beside it."""
        if not self.skip_damaged:
            return self.decoder.decode(lane[place]), lane[place].beside
        for stored in lane[place:] + lane[:place]:
            try:
                return self.decoder.decode(stored), stored.beside
            except DamagedError as error:
                last = error
        raise last

    def blocks(self, lane: int, seed: int, place: _Place) -> Iterator[tuple[_Place, list[Stored]]]:
        """Yield a lane's blocks from a place on, without end: where it begins, and its examples."""
        for epoch in count(place.epoch):
            start = place if epoch == place.epoch else _Place(epoch)
            empty = start == _Place(epoch)
            examples: list[Stored] = []
            for shard, example, stored in self._epoch(lane, seed, start):
                examples.append(stored)
                if len(examples) == self.shuffle_buffer:
                    yield start, examples
                    start, examples = _Place(epoch, shard, example + 1, start.block + 1), []
                    empty = False
            if examples:
                yield start, examples
            elif empty:
                raise InputError(
                    f"lane {lane} of {self.lanes} holds no examples for the training; give fewer "
                    "--lanes, or a smaller --hold-out"
                )

    def _epoch(self, lane: int, seed: int, start: _Place) -> Iterator[tuple[int, int, Stored]]:
        """Yield the rest of an epoch of a lane: shard and number, as in `_Place`, and example."""
        own = np.arange(lane, len(self.shards), self.lanes)
        key = np.random.SeedSequence(seed, spawn_key=(lane, start.epoch))
        order = np.random.default_rng(key).permutation(own).tolist()
        for i in range(start.shard, len(order)):
            first = self.held.get(order[i], 0)
            if i == start.shard:
                first = max(first, start.example)
            for example, stored in enumerate(self.shards.read(order[i], first), first):
                yield i, example, stored


class _Lane:
    """One lane's examples in their order, and how far they have been taken."""

    def __init__(
        self,
        stream: Stream,
        number: int,
        seed: int,
        place: _Place,
        taken: int,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._key = (seed, number)
        self._blocks = stream.blocks(number, seed, place)
        self._pool = pool
        self._place = place
        self._block: list[Stored] = []
        self._taken = 0
        self._next = self._ahead()
        if taken:
            self._advance()
            self._taken = taken
            if taken > len(self._block):
                raise InputError(
                    f"position: {taken} examples were taken of a block that holds "
                    f"{len(self._block)}; the data have changed since, start another run"
                )

    def take(self, n: int) -> list[Stored]:
        """Return the next n examples."""
        examples: list[Stored] = []
        while len(examples) < n:
            if self._taken == len(self._block):
                self._advance()
            more = self._block[self._taken : self._taken + n - len(examples)]
            self._taken += len(more)
            examples += more
        return examples

    def position(self) -> dict[str, int]:
        """Return where the block begins, and how many of its examples were taken."""
        return {**self._place._asdict(), "taken": self._taken}

    def _ahead(self) -> Future[tuple[_Place, list[Stored]]]:
        return self._pool.submit(next, self._blocks)

    def _advance(self) -> None:
        """Go on to the next block; it has been read meanwhile, and the one after it is begun."""
        self._place, examples = self._next.result()
        self._next = self._ahead()
        seed, lane = self._key
        key = (lane, self._place.epoch, self._place.block)
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
        self._block = [examples[i] for i in rng.permutation(len(examples))]
        self._taken = 0


def _places(
    position: Position, start: int, numbers: range, lanes: int
) -> dict[int, tuple[_Place, int]]:
    """Return where each of the lanes begins, and how much of that block was taken."""
    if start == 0 and not position:
        return dict.fromkeys(numbers, (_Place(), 0))
    try:
        found = {}
        for number in numbers:
            values = dict(position["lanes"][str(number)])
            taken = values.pop("taken")
            found[number] = _Place(**values), taken
            if not all(isinstance(n, int) and n >= 0 for n in (*found[number][0], taken)):
                raise ValueError
        return found
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"position = {position!r} is none of this stream with {lanes} lanes at batch {start}; "
            "go on with the position that was saved, of all processes"
        ) from error
