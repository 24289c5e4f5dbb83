"""From stored examples to arrays: images of one mode, or arrays of one type."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from variational_diffusion.data import changes
from variational_diffusion.data.images import CHANNELS, MAX_PIXELS, read_header, read_pixels
from variational_diffusion.data.source import Examples, as_read, channels_first
from variational_diffusion.data.stored import Store, Stored
from variational_diffusion.errors import DamagedError, InputError

_LEVELS = {"1": 2, "I;16": 65_536}
_OF_LEVELS = "values that are read as the numbers of their levels"
_NPY = b"\x93NUMPY"

BROKEN_NPY = (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, OverflowError)
"""What numpy has been seen to raise for broken headers, which it reads as Python literals."""


@runtime_checkable
class Decoder(Protocol):
    """Makes arrays of stored examples.

    shape: of one example; with `config.crop`, the least height and width that it may have.
    levels: number of values of integers; None for real values.
    """

    shape: tuple[int, ...]
    levels: int | None

    def decode(self, stored: Stored) -> np.ndarray:
        """Return an example as uint8, uint16, float32 or float64, with every value verified."""
        ...

    def losses(self, stored: Stored) -> Iterator[str]:
        """Yield what decoding an example loses, as "'NAME' has …"; nothing where it is exact."""
        ...


class Decoded:
    """A source of stored examples that are decoded when they are read.

    kept: the indices of `store` that are the source's examples, shape (n,).
    """

    def __init__(self, store: Store, kept: np.ndarray, decoder: Decoder) -> None:
        self.shape = decoder.shape
        self.levels = decoder.levels
        self.decoder = decoder
        self._store = store
        self._kept = kept

    def __len__(self) -> int:
        return len(self._kept)

    def read(self, indices: np.ndarray) -> Examples:
        """Decode the examples of these indices, as `Source.read` says."""
        return [self.decoder.decode(stored) for stored in self.stored(indices)]

    def stored(self, indices: np.ndarray) -> list[Stored]:
        """Return the examples of these indices undecoded."""
        return self._store.read(self._kept[indices])


class Pictures:
    """Images that are brought to one mode, and to one size if asked.

    mode: a key of `images.CHANNELS`. size: (height, width). levels: None: all that the mode has.
    resize: crop and resample to `size`. cropped: whether larger images are allowed.
    colour: whether colours are turned grey where the mode is grey; otherwise they are an error.
    max_pixels: that an image may have, as it is stored. value_range: with `levels`, the values of
    the lowest and the highest of them, as at `source.as_read`.
    """

    def __init__(
        self,
        mode: str,
        size: tuple[int, int],
        *,
        levels: int | None = None,
        resize: bool = False,
        cropped: bool = False,
        colour: bool = True,
        max_pixels: int = MAX_PIXELS,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        self.shape: tuple[int, ...] = (CHANNELS[mode], *size)
        self.levels: int | None = levels or _LEVELS.get(mode, 256)
        self.mode = mode
        self._resize = size if resize else None
        self._cropped = cropped
        self._colour = colour
        self._max_pixels = max_pixels
        self._value_range = value_range

    def decode(self, stored: Stored) -> np.ndarray:
        """Return the image, shape (channels, height, width)."""
        pixels = read_pixels(
            stored, self.mode, self._resize, colour=self._colour, max_pixels=self._max_pixels
        )
        _check_shape(pixels.shape, self.shape, self._cropped, stored.name)
        name = f"'{stored.name}'"
        return as_read(pixels[None], self.levels, self._value_range, lambda _: name)[0]

    def losses(self, stored: Stored) -> Iterator[str]:
        """Yield what decoding an image loses, as `Decoder.losses`."""
        header = read_header(stored, max_pixels=self._max_pixels)
        loss = changes.loss(stored, header, self.mode)
        if self._resize is not None and header.size != self._resize:
            loss = loss or f"{header.size[0]}×{header.size[1]} pixels, which are resampled"
        if self._value_range is not None:
            loss = loss or _OF_LEVELS
        if loss:
            yield f"'{stored.name}' has {loss}"


class Arrays:
    """Arrays of one shape, or larger ones that are cropped, with channels where they belong.

    dtype: of all of them. levels, value_range: as at `source.as_read`.
    """

    def __init__(
        self,
        dtype: np.dtype,
        shape: tuple[int, ...],
        levels: int | None,
        *,
        value_range: tuple[float, float] | None = None,
        cropped: bool = False,
    ) -> None:
        self.shape = shape
        self.levels = levels
        self._dtype = dtype
        self._value_range = value_range
        self._cropped = cropped

    def decode(self, stored: Stored) -> np.ndarray:
        """Return the array, of the decoder's shape."""
        array = read_array(stored)
        if array.dtype != self._dtype:
            raise InputError(
                f"'{stored.name}' holds {array.dtype}, and the others {self._dtype}; save all "
                "with one type"
            )
        _check_shape(array.shape, self.shape, self._cropped, stored.name)
        name = f"'{stored.name}'"
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DamagedError(
                f"{name} holds values that are not finite; leave it out, or type --skip-damaged"
            )
        return as_read(array[None], self.levels, self._value_range, lambda _: name)[0]

    def losses(self, stored: Stored) -> Iterator[str]:
        """Yield what decoding an array loses, as `Decoder.losses`."""
        if self.levels is not None and (self._value_range or self._dtype.kind == "f"):
            yield f"'{stored.name}' has {_OF_LEVELS}"


def is_array(stored: Stored) -> bool:
    """Tell an array, or the bytes of a `.npy` file, from an image."""
    content = stored.content
    return isinstance(content, np.ndarray) or (
        isinstance(content, bytes) and content.startswith(_NPY)
    )


def read_array(stored: Stored) -> np.ndarray:
    """Return an example's array, channels first. Nothing is unpickled.

    Raises DamagedError where it is no `.npy` file or has not the size that its header claims, which
    is looked at before any memory is taken; InputError for other types than bool, integers, floats.
    """
    array = stored.content
    if isinstance(array, DamagedError):
        raise array
    if isinstance(array, bytes):
        array = _from_npy(array, stored.name)
    if isinstance(array, Path):
        raise DamagedError(f"'{stored.name}' is no array; leave it out, or type --skip-damaged")
    if array.dtype.kind not in "biuf":
        raise InputError(
            f"'{stored.name}' holds {array.dtype}: bool, integers or floats are allowed; convert "
            "it with astype"
        )
    return channels_first(array[None], f"'{stored.name}'")[0]


def _from_npy(content: bytes, name: str) -> np.ndarray:
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
        shape, _, dtype = read[version[0]](stream)
        if dtype.hasobject:
            raise ValueError("it holds Python objects, which are never loaded")
        if any(isinstance(side, bool) or side < 0 for side in shape):
            raise ValueError(f"its header claims shape {shape}")
        if math.prod(shape) * dtype.itemsize != len(content) - stream.tell():
            raise ValueError(f"its header claims shape {shape} of {dtype}")
        return np.load(io.BytesIO(content), allow_pickle=False)
    except (*BROKEN_NPY, KeyError, OSError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise DamagedError(
            f"'{name}' is damaged or no file of numpy ({reason}); leave it out, or type "
            "--skip-damaged"
        ) from error


def _check_shape(
    shape: tuple[int, ...], expected: tuple[int, ...], cropped: bool, name: str
) -> None:
    enough = len(shape) == len(expected) and shape[0] == expected[0]
    larger = enough and all(a >= b for a, b in zip(shape, expected, strict=True))
    if shape == expected or (cropped and larger):
        return
    raise InputError(
        f"'{name}' has shape {shape}, and the others have {expected}; bring all to one size "
        "(--resize HxW for images), or leave the files as they are while they are used"
    )
