"""Groups of examples that share one stack, as bytes.

    first, first_bytes, batches, decisions    four uint32, little-endian, as all that follows
    sizes                                     uint32 for every batch: its examples
    decisions                                 uint64 each: what `rounding` wrote down
    words                                     uint32: the stack; or, without batches, bytes

The first examples are coded without a model; their bytes, made to look like chance, are what the
stack begins with. Batches follow, each as large as the bits on the stack allow, so that they grow
until the network runs on full ones. Decoding takes the batches off from the last to the first, and
finds the bytes of the first examples under them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from variational_diffusion.compression.chain import ChainCoder
from variational_diffusion.compression.plain import from_plain_bytes, plain_bytes
from variational_diffusion.compression.stack import ExhaustedError, Stack

MAX_GROUP = 1 << 20
"""Examples of a group at most."""

_HEAD = struct.Struct("<4I")
_LARGEST_BATCH = 128
_MARGIN = 1.03  # of the bits that a batch needs on the stack
_SPARE = 512  # bits


@dataclass
class Encoded:
    """A group on its way to bytes.

    done: examples so far. by_model: how many of them the model coded; nats: their bounds, shape
    (by_model,). drawn: nats that the densities of their latents give. first_bits: of the others.
    decisions: bytes written down for close roundings. stack_bits: on the stack now. payload: the
    group's bytes, once all are done.
    """

    done: int = 0
    first_bits: int = 0
    stack_bits: int = 0
    decisions: int = 0
    nats: np.ndarray = field(default_factory=lambda: np.zeros(0))
    drawn: float = 0.0
    payload: bytes = b""

    @property
    def by_model(self) -> int:
        """Number of examples that the model coded."""
        return len(self.nats)


def encode(coder: ChainCoder, x: np.ndarray) -> Iterator[Encoded]:
    """Code one or more examples, int64 of shape (n, *shape); yield after every batch.

    What is yielded is the same object; at the end it has its payload.
    """
    so_far = Encoded()
    n, dip = len(x), coder.dip() * coder.dimensions * _MARGIN
    first, coded = _first(coder, x, dip)
    so_far.done, so_far.first_bits = first, 8 * len(coded)
    so_far.stack_bits = so_far.first_bits
    yield so_far
    sizes: list[int] = []
    stack, rounding = Stack(_whitened(coded), sealed=True), coder.rounding()
    size = _LARGEST_BATCH
    while so_far.done < n:
        allowed = max(1, int((stack.bits - _SPARE) / dip))
        size = min(size, allowed, n - so_far.done)
        part = x[so_far.done : so_far.done + size]
        before, decided = stack.copy(), len(rounding.decisions)
        try:
            lengths = coder.push(stack, part, rounding, len(sizes))
        except ExhaustedError:
            assert size > 1, "one example needs more bits than the stack was given for it"
            stack, size = before, size // 2
            del rounding.decisions[decided:]
            continue
        so_far.nats = np.concatenate([so_far.nats, lengths.bound])
        so_far.drawn += float(lengths.drawn.sum())
        sizes.append(size)
        so_far.done += size
        so_far.stack_bits, so_far.decisions = stack.bits, 8 * len(rounding.decisions)
        size = _LARGEST_BATCH
        yield so_far
    if sizes:
        head = _HEAD.pack(first, len(coded), len(sizes), len(rounding.decisions))
        arrays = (
            np.array(sizes, "<u4"),
            np.array(rounding.decisions, "<u8"),
            stack.words().astype("<u4"),
        )
        so_far.payload = head + b"".join(array.tobytes() for array in arrays)
    alone = plain_bytes(x, coder.levels)
    if not sizes or len(alone) + _HEAD.size <= len(so_far.payload):
        so_far.payload = _HEAD.pack(n, len(alone), 0, 0) + alone
        so_far.nats, so_far.drawn, so_far.decisions = np.zeros(0), 0.0, 0
        so_far.first_bits = so_far.stack_bits = 8 * len(alone)
    yield so_far


@dataclass(frozen=True)
class Parsed:
    """The parts of a group's bytes, with lengths that agree with each other."""

    first: int
    first_bytes: int
    sizes: list[int]
    decisions: list[int]
    rest: bytes

    @classmethod
    def of(cls, payload: bytes, n: int) -> Parsed:
        """Take the bytes of a group of n examples apart; raise ValueError where they disagree."""
        if len(payload) < _HEAD.size:
            raise ValueError("a group that is too short")
        first, first_bytes, batches, decisions = _HEAD.unpack_from(payload)
        start = _HEAD.size + 4 * batches + 8 * decisions
        if start > len(payload):
            raise ValueError("a group that is too short")
        sizes = np.frombuffer(payload, "<u4", batches, _HEAD.size).astype(int).tolist()
        listed = np.frombuffer(payload, "<u8", decisions, _HEAD.size + 4 * batches).tolist()
        rest = payload[start:]
        if first + sum(sizes) != n or any(not 0 < size <= _LARGEST_BATCH for size in sizes):
            raise ValueError("batches that do not add up to the group")
        if listed != sorted(listed):
            raise ValueError("decisions out of order")
        if (len(rest) % 4 if batches else len(rest) != first_bytes) or first_bytes > len(payload):
            raise ValueError("a stack of another length")
        return cls(first, first_bytes, sizes, listed, rest)


def decode(coder: ChainCoder, payload: bytes, n: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the examples of a group of n, the last batch first: where they belong, and int64.

    Raises ValueError for bytes that `encode` did not make; wrong examples are possible, too.
    """
    parsed = Parsed.of(payload, n)
    rest, end = parsed.rest, n
    if parsed.sizes:
        stack = Stack(np.frombuffer(rest, "<u4"), sealed=False)
        rounding = coder.rounding(parsed.decisions)
        try:
            for batch, size in reversed(list(enumerate(parsed.sizes))):
                yield slice(end - size, end), coder.pop(stack, size, rounding, batch)
                end -= size
            words = stack.words(sealed=True)
        except ExhaustedError as error:
            raise ValueError("a stack that ends too early") from error
        rest = _unwhitened(words)[: parsed.first_bytes]
    shape = (parsed.first, *coder.shape)
    yield slice(0, parsed.first), from_plain_bytes(rest, shape, coder.levels)


def _first(coder: ChainCoder, x: np.ndarray, dip: float) -> tuple[int, bytes]:
    """Return how many examples are coded without the model so that one more can be with it."""
    first = 1
    while True:
        coded = plain_bytes(x[:first], coder.levels)
        have = 8 * len(coded) - _SPARE
        if first == len(x) or have >= dip:
            return first, coded
        needed = first * dip / max(have, dip / 64)
        first = min(len(x), max(first + 1, int(0.9 * needed)))


def _whitened(coded: bytes) -> np.ndarray:
    """Return bytes as words that look like chance: draws are taken from them."""
    words = np.frombuffer(coded + bytes(-len(coded) % 4), "<u4").astype(np.uint32)
    return words ^ _noise(len(words))


def _unwhitened(words: np.ndarray) -> bytes:
    return (words ^ _noise(len(words))).astype("<u4").tobytes()


def _noise(n: int) -> np.ndarray:
    drawn = np.random.Philox(key=2021).random_raw(n)
    return (np.asarray(drawn, np.uint64) & np.uint64(0xFFFFFFFF)).astype(np.uint32)
