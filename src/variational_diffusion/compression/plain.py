"""Examples as bytes without a model: deflate, or PNG or lossless WebP for images.

The last examples of a group are coded so, because bits back needs bits to begin with; and images
that the model would take more bytes for.
"""

from __future__ import annotations

import io
import math
import struct
import zlib

import numpy as np
from PIL import Image

from variational_diffusion.compression.digests import value_type
from variational_diffusion.compression.mosaic import images_of, mosaic, size_of

_WEBP_MAX_SIDE = 16_383
_MAX_PIXELS = 1 << 26
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_PICTURES = {b"w": "WEBP", b"p": "PNG"}
_DECODING = (
    *(OSError, EOFError, SyntaxError, TypeError, RuntimeError, struct.error, zlib.error),
    *(IndexError, KeyError, ArithmeticError, AttributeError),
)
"""All that pillow's decoders have been seen to raise for damaged bytes, beside ValueError."""


def plain_bytes(x: np.ndarray, levels: int) -> bytes:
    """Return examples, integers of shape (n, *shape) with n ≥ 1, in few bytes; the first says how.

    Images are put side by side into one picture.
    """
    values = x.astype(value_type(levels))
    coded = [b"z" + zlib.compress(values.tobytes(), 9)]
    for kind, name in _PICTURES.items():
        if _fits(name, x.shape, levels):
            file = io.BytesIO()
            picture = Image.fromarray(mosaic(values * values.dtype.type(_spread(levels))))
            if name == "PNG":
                picture.save(file, format="PNG", optimize=True)
            else:
                picture.save(file, format=name, lossless=True, exact=True, quality=100, method=4)
            coded.append(kind + file.getvalue())
    return min(coded, key=len)


def from_plain_bytes(coded: bytes, shape: tuple[int, ...], levels: int) -> np.ndarray:
    """Return what `plain_bytes` was given, unsigned integers of `shape` = (n, …).

    Raises ValueError for bytes that are not of such examples.
    """
    kind, content = coded[:1], coded[1:]
    if kind == b"z":
        x = _inflated(content, shape, levels)
    elif kind in _PICTURES and _fits(_PICTURES[kind], shape, levels):
        x = _from_picture(content, _PICTURES[kind], shape, levels)
    else:
        raise ValueError("it has examples of an unknown coding")
    if x.size and int(x.max()) >= levels:
        raise ValueError("it has values above the highest level")
    return x


def _inflated(coded: bytes, shape: tuple[int, ...], levels: int) -> np.ndarray:
    size = math.prod(shape) * value_type(levels).itemsize
    inflate = zlib.decompressobj()
    try:
        values = inflate.decompress(coded, size)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(values) != size:
        raise ValueError("it has too few values")
    return np.frombuffer(values, value_type(levels)).reshape(shape)


def _from_picture(coded: bytes, name: str, shape: tuple[int, ...], levels: int) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(coded), formats=[name]) as file:
            if file.size != size_of(shape)[::-1]:
                raise ValueError("it has a picture of another size")
            mode = "I;16" if levels > 256 else _MODES[shape[1]]
            picture = np.asarray(file if file.mode == mode else file.convert(mode))
    except _DECODING as error:
        raise ValueError(f"it has a damaged picture ({error})") from error
    return images_of(picture, shape).astype(value_type(levels)) // _spread(levels)


def _fits(name: str, shape: tuple[int, ...], levels: int) -> bool:
    """Tell whether examples of this shape are pictures that the format holds."""
    if len(shape) != 4 or shape[1] not in _MODES or min(shape) < 1:
        return False
    if levels > 256 and (name != "PNG" or shape[1] > 1):
        return False
    height, width = size_of(shape)
    return height * width <= _MAX_PIXELS and (name == "PNG" or max(height, width) <= _WEBP_MAX_SIDE)


def _spread(levels: int) -> int:
    return max(1, 255 // (levels - 1))
