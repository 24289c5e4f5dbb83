"""What a .vdmz file says of itself and of its groups: JSON whose every claim is checked."""

from __future__ import annotations

import base64
import contextlib
import itertools
import math
import os
import re
import zlib
from typing import Annotated, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from variational_diffusion.compression.chain import GAMMA_UNIT
from variational_diffusion.compression.digests import CONTENT
from variational_diffusion.compression.tiles import number_of_tiles

MAX_IMAGES = 1 << 20
"""Images of a group at most."""
MAX_VALUES = 1 << 28
"""Values of the images of a group, and of their tiles, at most."""

_HEX = r"^[0-9a-f]{32}$"
_DTYPE = r"^([|]b1|[|][iu]1|[<>][iu][248])$"
_MAX_NAME = 20_000  # a path has 4,096 bytes at most, and a byte that is no UTF-8 takes 6 in JSON

Record = TypeVar("Record", bound="_Strict")

_LISTS = re.compile(rb"[\[:,][\[{]")
"""What stands where a list or an object begins within another."""
_LISTS_AT_LEAST, _LISTS_PER_IMAGE = 16, 2


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def packed(self) -> bytes:
        """Return the record as deflated JSON."""
        return zlib.compress(self.model_dump_json(exclude_defaults=True).encode(), 9)


def unpacked(kind: type[Record], packed: bytes, most: int, images: int = 0) -> Record:
    """Return a record of at most so many bytes of JSON; raise ValueError for what is none.

    images: of its group. A few bytes can be inflated to millions of lists: they are counted before
    any is made.
    """
    try:
        return kind.model_validate_json(_inflated(packed, most, images))
    except (ValidationError, RecursionError) as error:
        raise ValueError(" ".join(str(error).splitlines()[:3])) from error


def fits(packed: bytes, most: int, images: int) -> bool:
    """Return whether `unpacked` would look at the JSON of a record."""
    with contextlib.suppress(ValueError):
        return bool(_inflated(packed, most, images))
    return False


def _inflated(packed: bytes, most: int, images: int) -> bytes:
    try:
        inflate = zlib.decompressobj()
        text = inflate.decompress(packed, most)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not inflate.eof:
        raise ValueError("it is larger than it may be, or cut short")
    lists = _LISTS_AT_LEAST + _LISTS_PER_IMAGE * images
    if sum(1 for _ in itertools.islice(_LISTS.finditer(text), lists + 1)) > lists:
        raise ValueError("it has more lists than a group of so many images")
    return text


class Origin(_Strict):
    """How examples were stored.

    dtype: numpy's name of an array's type. axes: of the array: as in the examples, without the axis
    of the one channel, or with the channels last. mode: pillow's, of image files.
    """

    dtype: str | None = Field(None, pattern=_DTYPE)
    axes: Literal["same", "grey", "last"] = "same"
    mode: Literal["1", "L", "I;16", "RGB", "RGBA"] | None = None


class Header(_Strict):
    """What holds for the whole file.

    model: digest of the model, from `needed.model_digest`. weights, variance: names under which a
    run has them. shape: of an example of the model. gammas: the chain from γ_1 down to γ_0 in units
    of 1/1024, as little-endian int16 in base64.
    """

    model: str = Field(pattern=_HEX)
    weights: str = Field(max_length=100)
    variance: str = Field(max_length=100)
    shape: list[Annotated[int, Field(ge=1, le=1 << 24)]] = Field(min_length=1, max_length=8)
    levels: int = Field(ge=2, le=65_536)
    precision: Literal["portable", "fast"]
    gammas: str = Field(max_length=1 << 20)
    origin: Origin = Origin()

    def chain(self) -> np.ndarray:
        """Return the grid of the chain; raise ValueError for what is none."""
        units = np.frombuffer(base64.b64decode(self.gammas, validate=True), "<i2")
        return units.astype(np.float64) * GAMMA_UNIT

    @staticmethod
    def of_chain(gammas: np.ndarray) -> str:
        """Return the text that stands for a chain."""
        return base64.b64encode(np.rint(gammas / GAMMA_UNIT).astype("<i2").tobytes()).decode()


class Table(_Strict):
    """What the bytes of a group are.

    sizes: [images, height, width] for every run of images of one size; empty where all have the
    shape of the header. stack: bytes of the examples by the model. runs: lengths of runs of images
    by the model and beside it, in turn; empty where all are by the model. plain: [images, bytes] of
    every piece beside the model; contents: their digests, base64. names: of image files,
    written as `name_as_text`.
    """

    stack: int = Field(ge=0)
    sizes: list[list[int]] = []
    runs: list[int] = []
    plain: list[list[int]] = []
    contents: str = ""
    names: list[str] | None = None

    def shapes(self, images: int, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Return the shape of each image, `shape` being the model's; raise ValueError for nonsense.

        No memory is taken before it is known that there are not too many values.
        """
        if not self.sizes:
            _check_values(images * math.prod(shape))
            return [shape] * images
        if len(shape) != 3 or any(len(run) != 3 or min(run) < 1 for run in self.sizes):
            raise ValueError("its sizes are none of images")
        if sum(run[0] for run in self.sizes) != images:
            raise ValueError("it has sizes of another number of images")
        sizes = [(n, (shape[0], h, w)) for n, h, w in self.sizes]
        _check_values(sum(n * math.prod(size) for n, size in sizes))
        tiles = sum(n * number_of_tiles(size, shape) for n, size in sizes)
        _check_values(tiles * math.prod(shape))
        return [size for n, size in sizes for _ in range(n)]

    def beside(self, images: int) -> np.ndarray:
        """Return which images are not by the model, bool of shape (images,)."""
        runs = self.runs or [images]
        if min(runs) < 0 or sum(runs) != images:
            raise ValueError("it has runs of another number of images")
        return np.repeat(np.arange(len(runs)) % 2 == 1, runs)

    def pieces(self, beside: int) -> list[tuple[int, int, bytes]]:
        """Return images, bytes and digest of every piece; raise ValueError unless they agree.

        beside: number of images that are not by the model.
        """
        contents = base64.b64decode(self.contents, validate=True)
        if any(len(piece) != 2 or min(piece) < 1 for piece in self.plain):
            raise ValueError("it has pieces without images")
        if sum(piece[0] for piece in self.plain) != beside:
            raise ValueError("it has pieces of another number of images")
        if len(contents) != CONTENT * len(self.plain):
            raise ValueError("it has digests of another number of pieces")
        digests = (contents[i : i + CONTENT] for i in range(0, len(contents), CONTENT))
        return [(n, size, of) for (n, size), of in zip(self.plain, digests, strict=True)]

    def checked_names(self, images: int) -> list[str] | None:
        """Return the names; raise ValueError where there are more or fewer, or very long ones."""
        names = self.names
        if names is not None and len(names) != images:
            raise ValueError(f"it has {len(names)} names for {images} images")
        if names is not None and any(not 0 < len(name) <= _MAX_NAME for name in names):
            raise ValueError("it has names that are no names")
        return None if names is None else [name_of_text(name) for name in names]


def name_as_text(name: str) -> str:
    """Return the name of a file as text that JSON holds.

    A name that is not UTF-8 is written as a zero character, which no name has, and a character for
    each of its bytes.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return "\0" + os.fsencode(name).decode("latin-1")
    return name


def name_of_text(text: str) -> str:
    """Return the name of `name_as_text`; what is none is returned as it is."""
    try:
        return os.fsdecode(text[1:].encode("latin-1")) if text.startswith("\0") else text
    except UnicodeEncodeError:
        return text


def runs_of(flags: np.ndarray) -> list[int]:
    """Return the lengths of runs of False and True, in turn; empty where all are False."""
    if not flags.any():
        return []
    changes = np.flatnonzero(np.diff(flags, prepend=False))
    return np.diff(changes, prepend=0, append=len(flags)).tolist()


def _check_values(values: int) -> None:
    if values > MAX_VALUES:
        raise ValueError("it claims more values than a group may have")
