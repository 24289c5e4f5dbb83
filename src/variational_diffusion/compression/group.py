"""Examples of the model's shape that share one stack, as bytes.

    seed, seed_bytes, batches, decisions      four uint32, little-endian, as all that follows
    sizes                                     uint32 for every batch: its examples
    contents                                  8 bytes each: digests of the batches in the order of
                                              decoding, and of the seed
    decisions                                 uint64 each: what `rounding` wrote down
    digest                                    16 bytes: of all that comes before
    words                                     uint32: the stack from its top; or, without batches,
                                              the bytes of the seed

The last examples, the seed, are coded without a model; their bytes, made to look like chance, are
what the stack begins with. Batches follow, from the last examples to the first, each as large as
the bits on the stack allow, so that they grow until the network runs on full ones. What is pushed
last comes off first: decoding gives the examples in their order, reads the words in theirs, and
verifies every batch before it goes on. Where the bytes are cut off, all that comes before is there.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from variational_diffusion.compression.chain import ChainCoder
from variational_diffusion.compression.digests import CONTENT, content_digest, digest, value_type
from variational_diffusion.compression.plain import from_plain_bytes, plain_bytes
from variational_diffusion.compression.rounding import Rounding
from variational_diffusion.compression.stack import ExhaustedError, Stack

_HEAD = struct.Struct("<4I")
_DIGEST = 16
_LARGEST_BATCH = 128
_MARGIN = 1.03  # of the bits that a batch needs on the stack
_SPARE = 512  # bits
_WORTHWHILE = 1 / 128  # of a batch's bits: what leaving images out of it must save


@dataclass
class Encoded:
    """A group on its way to bytes.

    done: examples so far, those left out among them. nats: the bounds of those that the model
    coded, shape (by_model,); padding: how much of these is of entries that are no one's; drawn:
    nats that the densities of their latents give. left_out:
    numbers of the images that are not in the group. seed_bits: of the examples coded without the
    model. decisions: bytes written down for close roundings. stack_bits: on the stack now. payload:
    the group's bytes, once all are done.
    """

    done: int = 0
    seed: int = 0
    seed_bits: int = 0
    stack_bits: int = 0
    decisions: int = 0
    padding: float = 0.0
    drawn: float = 0.0
    nats: np.ndarray = field(default_factory=lambda: np.zeros(0))
    left_out: list[int] = field(default_factory=list)
    payload: bytes = b""

    @property
    def by_model(self) -> int:
        """Number of examples that the model coded."""
        return len(self.nats)


def encode(
    coder: ChainCoder,
    x: np.ndarray,
    *,
    counts: Sequence[int] | None = None,
    most: np.ndarray | None = None,
    padded: np.ndarray | None = None,
) -> Iterator[Encoded]:
    """Code one or more examples, integers of shape (n, *shape); yield after every batch.

    counts: examples that are tiles of the same image, for each image; None: one each. most: nats
    that an image may cost, shape (images,): images that cost more are left out of the group, as
    far as that saves about 1 % of a batch. padded: entries of x that belong to no image, bool.
    What is yielded is the same object; at the end it has its payload, empty if all were left out.
    """
    coding = _Coding(coder, x, counts, most, padded)
    yield coding.so_far
    while coding.end > 0:
        start, before = coding.next_start(), coding.mark()
        for _ in coding.push(start):
            yield coding.so_far
        dear = coding.too_dear(before)
        if len(dear):
            coding.leave_out(dear, before)
    coding.finish()
    yield coding.so_far


def decode(coder: ChainCoder, payload: bytes, n: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the examples of a group of n in their order, verified: their places and values.

    Raises ValueError where the bytes are not what `encode` made, or where the coder computes
    something else than the encoder did; what was yielded before is right.
    """
    parsed = _Parsed.of(payload, n)
    words, start = parsed.rest, 0
    contents = iter(parsed.contents)
    try:
        if parsed.sizes:
            whole = words[: len(words) // 4 * 4]
            stack = Stack(np.frombuffer(whole, "<u4")[::-1], sealed=False)
            rounding = coder.rounding(parsed.decisions)
            for batch, size in reversed(list(enumerate(parsed.sizes))):
                x = coder.pop(stack, size, rounding, batch)
                yield slice(start, start + size), _verified(x, next(contents), coder.levels)
                start += size
            words = _unwhitened(stack.words(sealed=True))[: parsed.seed_bytes]
    except ExhaustedError as error:
        raise ValueError("its stack ends too early") from error
    x = from_plain_bytes(words, (parsed.seed, *coder.shape), coder.levels)
    yield slice(start, n), _verified(x, next(contents), coder.levels)


def _verified(x: np.ndarray, expected: bytes, levels: int) -> np.ndarray:
    if content_digest(x, levels) != expected:
        raise ValueError("it decodes to other values than were coded")
    return x.astype(value_type(levels))


class _Mark(NamedTuple):
    """A state of `_Coding` to come back to."""

    end: int
    batches: int
    decisions: int
    stack: Stack


class _Batch(NamedTuple):
    """What a batch took, in nats: every example, all by the densities of the draw, padding."""

    nats: np.ndarray
    drawn: float
    padding: float


class _Coding:
    """Examples on their way to a stack, from the last to the first.

    end: of those that are not coded yet, in the order of those that are in the group.
    """

    def __init__(
        self,
        coder: ChainCoder,
        x: np.ndarray,
        counts: Sequence[int] | None,
        most: np.ndarray | None,
        padded: np.ndarray | None,
    ) -> None:
        images = len(x) if counts is None else len(counts)
        self._coder, self._x, self._padded = coder, x, padded
        self._most = np.full(images, np.inf) if most is None else most.astype(np.float64)
        self._owners = np.repeat(np.arange(images), 1 if counts is None else counts)
        assert len(self._owners) == len(x)
        self._dip = coder.dip() * coder.dimensions * _MARGIN
        self._order = np.arange(len(x))
        self.so_far = Encoded()
        self._begin()

    def _begin(self) -> None:
        """Put the last examples at the bottom of a new stack."""
        self.so_far.seed, coded = _seed(self._coder, self._x[self._order], self._dip)
        self.so_far.seed_bits = 8 * len(coded)
        self._coded = coded
        self.end = len(self._order) - self.so_far.seed
        self._stack = Stack(_whitened(coded), sealed=True)
        self._rounding: Rounding = self._coder.rounding()
        self._batches: list[_Batch] = []
        self._tell()

    def next_start(self) -> int:
        """Return where the next examples begin: as many whole images as a batch takes, or one."""
        owners = self._owners[self._order[: self.end]]
        starts = np.flatnonzero(np.append(True, owners[1:] != owners[:-1]))
        fitting = starts[starts >= self.end - self._fitting()]
        return int(fitting[0] if len(fitting) else starts[-1])

    def push(self, start: int) -> Iterator[None]:
        """Code the examples down to `start`, in as many batches as it takes."""
        size = _LARGEST_BATCH
        while self.end > start:
            size = min(size, self._fitting(), self.end - start)
            before = self.mark()
            rows = self._order[self.end - size : self.end]
            x = self._x[rows].astype(np.int64)
            try:
                nats = self._coder.push(self._stack, x, self._rounding, len(self._batches))
            except ExhaustedError:
                assert size > 1, "one example needs more bits than the stack was given for it"
                self._go_back(before)
                size //= 2
                continue
            padding = 0.0 if self._padded is None else float(nats.bound[self._padded[rows]].sum())
            examples = nats.bound.reshape(size, -1).sum(1)
            self._batches.append(_Batch(examples, float(nats.drawn.sum()), padding))
            self.end -= size
            size = _LARGEST_BATCH
            self._tell()
            yield

    def too_dear(self, since: _Mark) -> np.ndarray:
        """Return the images coded since then that are better left out, if that is worthwhile."""
        rows = self._order[self.end : since.end]
        owners, coded = np.unique(self._owners[rows], return_inverse=True)
        nats = np.concatenate([batch.nats for batch in self._batches[since.batches :][::-1]])
        costs = np.bincount(coded, nats)
        seeds = self._owners[self._order[len(self._order) - self.so_far.seed :]]
        in_seed = (seeds == owners[-1]).sum()
        costs[-1] += in_seed * math.log(2) * self.so_far.seed_bits / self.so_far.seed
        excess = costs - self._most[owners]
        dear = excess > 0
        self._most[owners[~dear]] = np.inf  # these are settled, whatever they cost next time
        return owners[dear] if excess[dear].sum() > _WORTHWHILE * costs.sum() else owners[:0]

    def leave_out(self, images: np.ndarray, since: _Mark) -> None:
        """Take images out that were coded since then, and go back."""
        stays = ~np.isin(self._owners[self._order], images)
        self._order = self._order[stays]
        self.so_far.left_out += images.tolist()
        if stays[since.end :].all():
            self._go_back(since)
            self.end = int(stays[: since.end].sum())
        elif len(self._order):
            self._begin()
        else:
            self.so_far = Encoded(left_out=self.so_far.left_out)
            self._batches, self.end = [], 0
        self._tell()

    def mark(self) -> _Mark:
        """Return the state to come back to."""
        decisions = len(self._rounding.decisions)
        return _Mark(self.end, len(self._batches), decisions, self._stack.copy())

    def finish(self) -> None:
        """Write the bytes."""
        self.so_far.left_out.sort()
        if not len(self._order):
            return
        head = _HEAD.pack(
            self.so_far.seed, len(self._coded), len(self._batches), len(self._rounding.decisions)
        )
        sizes = [len(batch.nats) for batch in self._batches]
        parts = np.split(self._order, np.cumsum(sizes[::-1]))
        contents = [content_digest(self._x[part], self._coder.levels) for part in parts]
        table = b"".join(
            [
                head,
                np.array(sizes, "<u4").tobytes(),
                *contents,
                np.array(self._rounding.decisions, "<u8").tobytes(),
            ]
        )
        words = self._stack.words()[::-1].astype("<u4").tobytes() if sizes else self._coded
        self.so_far.payload = table + digest(table) + words

    def _go_back(self, mark: _Mark) -> None:
        self.end, self._stack = mark.end, mark.stack.copy()
        del self._rounding.decisions[mark.decisions :]
        del self._batches[mark.batches :]

    def _fitting(self) -> int:
        allowed = max(1, int((self._stack.bits - _SPARE) / self._dip))
        return min(_LARGEST_BATCH, allowed)

    def _tell(self) -> None:
        so_far = self.so_far
        so_far.done = len(self._x) - self.end
        so_far.nats = np.concatenate([np.zeros(0), *(batch.nats for batch in self._batches)])
        so_far.drawn = sum(batch.drawn for batch in self._batches)
        so_far.padding = sum(batch.padding for batch in self._batches)
        so_far.stack_bits = self._stack.bits if self._batches else so_far.seed_bits
        so_far.decisions = 8 * len(self._rounding.decisions)


@dataclass(frozen=True)
class _Parsed:
    """The parts of a group's bytes, with lengths that agree with each other.

    sizes: of the batches in the order of coding. contents: digests of the batches in the order of
    decoding, then of the seed. rest: may be cut short.
    """

    seed: int
    seed_bytes: int
    sizes: list[int]
    contents: list[bytes]
    decisions: list[int]
    rest: bytes

    @classmethod
    def of(cls, payload: bytes, n: int) -> _Parsed:
        """Take the bytes of a group of n examples apart; raise ValueError where they disagree."""
        if len(payload) < _HEAD.size:
            raise ValueError("its table is cut short")
        seed, seed_bytes, batches, decisions = _HEAD.unpack_from(payload)
        first = _HEAD.size + 4 * batches
        second = first + CONTENT * (batches + 1)
        third = second + 8 * decisions
        if third + _DIGEST > len(payload):
            raise ValueError("its table is cut short")
        if payload[third : third + _DIGEST] != digest(payload[:third]):
            raise ValueError("its table is damaged")
        sizes = np.frombuffer(payload, "<u4", batches, _HEAD.size).astype(int).tolist()
        listed = np.frombuffer(payload, "<u8", decisions, second).tolist()
        contents = [payload[i : i + CONTENT] for i in range(first, second, CONTENT)]
        if seed < 1 or seed + sum(sizes) != n or not all(0 < s <= _LARGEST_BATCH for s in sizes):
            raise ValueError("its batches do not add up")
        if listed != sorted(listed):
            raise ValueError("its decisions are out of order")
        return cls(seed, seed_bytes, sizes, contents, listed, payload[third + _DIGEST :])


def _seed(coder: ChainCoder, x: np.ndarray, dip: float) -> tuple[int, bytes]:
    """Return how many of the last examples are coded without the model, and their bytes.

    So many that one more can be coded with it.
    """
    seed = 1
    while True:
        coded = plain_bytes(x[len(x) - seed :], coder.levels)
        have = 8 * len(coded) - _SPARE
        if seed == len(x) or have >= dip:
            return seed, coded
        needed = seed * dip / max(have, dip / 64)
        seed = min(len(x), max(seed + 1, int(0.9 * needed)))


def _whitened(coded: bytes) -> np.ndarray:
    """Return bytes as words that look like chance: draws are taken from them."""
    words = np.frombuffer(coded + bytes(-len(coded) % 4), "<u4").astype(np.uint32)
    return words ^ _noise(len(words))


def _unwhitened(words: np.ndarray) -> bytes:
    return (words ^ _noise(len(words))).astype("<u4").tobytes()


def _noise(n: int) -> np.ndarray:
    drawn = np.random.Philox(key=2021).random_raw(n)
    return (np.asarray(drawn, np.uint64) & np.uint64(0xFFFFFFFF)).astype(np.uint32)
