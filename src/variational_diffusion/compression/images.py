"""Whole images of any size as the bytes of one group: by the model, or beside it.

Images by the model are tiles on a stack (`tiles`, `group`). Images for which it would take more
bytes than a classical coder are coded by that one (`plain`): what lies beside the model is decoded
first, and damage of the stack does not touch it.
"""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from variational_diffusion.compression.chain import ChainCoder
from variational_diffusion.compression.digests import content_digest
from variational_diffusion.compression.group import Encoded, decode, encode
from variational_diffusion.compression.plain import from_plain_bytes, plain_bytes
from variational_diffusion.compression.records import Table, name_as_text, runs_of
from variational_diffusion.compression.tiles import (
    image_of,
    number_of_tiles,
    padding_of,
    tiles_of,
)

_PIECE = 16
"""About the bytes that a table takes for a piece beside the model."""


@dataclass
class EncodedImages:
    """A group of images as bytes, and where they come from.

    table, payload: the group. values: of all images; by_model, beside: of those that the model
    coded, without padding, and of those that are not on the stack. stack: what is on it.
    beside_images, beside_bits: how many images are not on it, and their bits.
    """

    table: Table
    payload: bytes
    stack: Encoded
    values: int
    by_model: int
    beside: int
    beside_images: int
    beside_bits: int


class ImageCoding:
    """Images, one or more, on their way to the bytes of a group.

    images: integers of the model's shape, or (channels, height, width) of other height and width.
    names: theirs, to be kept. share: of them that is done.
    """

    def __init__(
        self,
        coder: ChainCoder,
        images: Sequence[np.ndarray],
        names: Sequence[str] | None = None,
    ) -> None:
        shape, levels = coder.shape, coder.levels
        self.share = 0.0
        self._coder, self._images, self._names = coder, images, names
        self._alone = [plain_bytes(image[None], levels) for image in images]
        self._counts = [number_of_tiles(image.shape, shape) for image in images]
        self._tiles = np.concatenate([tiles_of(image, shape) for image in images])
        self._padded = np.concatenate([padding_of(image.shape, shape) for image in images])

    def run(self) -> Iterator[Encoded]:
        """Code the images; yield what is on the stack after every batch."""
        most = np.array([8 * math.log(2) * len(coded) for coded in self._alone])
        for so_far in encode(
            self._coder, self._tiles, counts=self._counts, most=most, padded=self._padded
        ):
            self.share = so_far.done / len(self._tiles)
            yield so_far
        self._stack = so_far

    def done(self) -> EncodedImages:
        """Return the group, after `run` has come to its end."""
        stack = self._stack
        beside = np.zeros(len(self._images), bool)
        beside[stack.left_out] = True
        pieces = self._pieces(np.flatnonzero(beside))
        everything = self._pieces(np.arange(len(beside)))
        if _size(everything) <= _size(pieces) + len(stack.payload):
            stack, pieces, beside = Encoded(), everything, np.ones(len(beside), bool)
        contents = b"".join(
            content_digest(np.stack([self._images[i] for i in numbers]), self._coder.levels)
            for numbers, _ in pieces
        )
        shapes = [image.shape for image in self._images]
        table = Table(
            stack=len(stack.payload),
            sizes=_sizes(shapes) if any(shape != self._coder.shape for shape in shapes) else [],
            runs=runs_of(beside),
            plain=[[len(numbers), len(coded)] for numbers, coded in pieces],
            contents=base64.b64encode(contents).decode(),
            names=None if self._names is None else [*map(name_as_text, self._names)],
        )
        return EncodedImages(
            table=table,
            payload=b"".join([stack.payload, *(coded for _, coded in pieces)]),
            stack=stack,
            values=sum(image.size for image in self._images),
            by_model=self._values(stack, beside),
            beside=sum(self._images[i].size for i in np.flatnonzero(beside).tolist()),
            beside_images=int(beside.sum()),
            beside_bits=8 * sum(len(coded) for _, coded in pieces),
        )

    def _pieces(self, numbers: np.ndarray) -> list[tuple[list[int], bytes]]:
        """Return images in pieces of one size with their bytes, together or one by one."""
        pieces: list[tuple[list[int], bytes]] = []
        for _, run in itertools.groupby(numbers.tolist(), lambda i: self._images[i].shape):
            together = list(run)
            single = [([i], self._alone[i]) for i in together]
            if len(together) > 1:
                x = np.stack([self._images[i] for i in together])
                one = [(together, plain_bytes(x, self._coder.levels))]
                single = one if _size(one) <= _size(single) else single
            pieces += single
        return pieces

    def _values(self, stack: Encoded, beside: np.ndarray) -> int:
        """Return how many values the model coded, without padding."""
        by_model = np.repeat(~beside, self._counts)
        tiles = np.flatnonzero(by_model)[: stack.by_model]
        return int((~self._padded[tiles]).sum())


def decode_images(
    coder: ChainCoder, images: int, table: Table, payload: bytes
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the number and the values of each image of a group that is as it was coded.

    Those beside the model come first, the others in their order. payload: may be damaged or cut
    short. Raises ValueError at the end if anything was lost.
    """
    shapes, beside = table.shapes(images, coder.shape), table.beside(images)
    problems = []
    place, numbers = table.stack, iter(np.flatnonzero(beside).tolist())
    for n, size, expected in table.pieces(int(beside.sum())):
        piece = list(itertools.islice(numbers, n))
        coded, place = payload[place : place + size], place + size
        shape = shapes[piece[0]]
        try:
            if any(shapes[i] != shape for i in piece):
                raise ValueError("it has images of several sizes in one piece")
            x = from_plain_bytes(coded, (n, *shape), coder.levels)
            if content_digest(x, coder.levels) != expected:
                raise ValueError("it decodes to other values than were coded")
            yield from zip(piece, x, strict=True)
        except ValueError as error:
            problems.append(error)
    try:
        yield from _from_stack(coder, np.flatnonzero(~beside), shapes, payload[: table.stack])
    except ValueError as error:
        problems.append(error)
    if problems:
        raise problems[0]


def _from_stack(
    coder: ChainCoder, numbers: np.ndarray, shapes: list[tuple[int, ...]], payload: bytes
) -> Iterator[tuple[int, np.ndarray]]:
    if not len(numbers):
        return
    needed = [number_of_tiles(shapes[i], coder.shape) for i in numbers]
    tiles = (tile for _, part in decode(coder, payload, sum(needed)) for tile in part)
    for number, n in zip(numbers.tolist(), needed, strict=True):
        yield number, image_of(np.stack(list(itertools.islice(tiles, n))), shapes[number])


def _sizes(shapes: list[tuple[int, ...]]) -> list[list[int]]:
    return [[len(list(run)), *shape[1:]] for shape, run in itertools.groupby(shapes)]


def _size(pieces: list[tuple[list[int], bytes]]) -> int:
    return sum(len(coded) + _PIECE for _, coded in pieces)
