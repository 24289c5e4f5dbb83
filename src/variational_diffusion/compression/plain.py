"""Examples as bytes without a model: deflate, or WebP for images of up to 256 levels.

The first examples of a group are coded so, because bits back needs bits to begin with; and a whole
group, where the model does not do better.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from variational_diffusion.classical import mosaic

_WEBP_MAX_SIDE = 16_383


def plain_bytes(x: np.ndarray, levels: int) -> bytes:
    """Return examples, integers of shape (n, *shape) with n ≥ 1, in few bytes; the first says how.

    Images are put side by side into one picture.
    """
    values = x.astype(_dtype(levels))
    coded = [b"z" + zlib.compress(values.tobytes(), 9)]
    if _fits_webp(x.shape, levels):
        file = io.BytesIO()
        picture = Image.fromarray(mosaic(values * np.uint8(_spread(levels))))
        picture.save(file, format="WEBP", lossless=True, exact=True, quality=100, method=4)
        coded.append(b"w" + file.getvalue())
    return min(coded, key=len)


def from_plain_bytes(coded: bytes, shape: tuple[int, ...], levels: int) -> np.ndarray:
    """Return what `plain_bytes` was given, int64 of `shape` = (n, …).

    Raises ValueError for bytes that are not of such examples.
    """
    known: dict[bytes, Callable[[bytes, tuple[int, ...], int], np.ndarray]]
    known = {b"z": _inflated, b"w": _from_webp}
    if coded[:1] not in known:
        raise ValueError("unknown coding of the first examples")
    x = known[coded[:1]](coded[1:], shape, levels)
    if x.size and int(x.max()) >= levels:
        raise ValueError("values above the highest level")
    return x


def _inflated(coded: bytes, shape: tuple[int, ...], levels: int) -> np.ndarray:
    size = math.prod(shape) * _dtype(levels).itemsize
    inflate = zlib.decompressobj()
    try:
        values = inflate.decompress(coded, size)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(values) != size:
        raise ValueError("too few values")
    return np.frombuffer(values, _dtype(levels)).astype(np.int64).reshape(shape)


def _from_webp(coded: bytes, shape: tuple[int, ...], levels: int) -> np.ndarray:
    if not _fits_webp(shape, levels):
        raise ValueError("a picture of what is none")
    n, channels, height, width = shape
    columns = _columns(shape)
    rows = math.ceil(n / columns)
    try:
        with Image.open(io.BytesIO(coded), formats=["WEBP"]) as file:
            if file.size != (columns * width, rows * height):
                raise ValueError("a picture of another size")
            picture = np.asarray(file.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]))
    except (OSError, SyntaxError) as error:
        raise ValueError(str(error)) from error
    cells = picture.reshape(rows, height, columns, width, channels).transpose(0, 2, 4, 1, 3)
    values = cells.reshape(-1, channels, height, width)[:n].astype(np.int64)
    return values // _spread(levels)


def _fits_webp(shape: tuple[int, ...], levels: int) -> bool:
    if len(shape) != 4 or shape[1] not in (1, 3, 4) or levels > 256:
        return False
    columns = _columns(shape)
    rows = math.ceil(shape[0] / columns)
    return max(columns * shape[3], rows * shape[2]) <= _WEBP_MAX_SIDE


def _columns(shape: tuple[int, ...]) -> int:
    """Return how many images `classical.mosaic` puts in a row."""
    n, _, height, width = shape
    return min(n, math.ceil(math.sqrt(n * height / width)))


def _spread(levels: int) -> int:
    return max(1, 255 // (levels - 1))


def _dtype(levels: int) -> np.dtype:
    return np.dtype("u1" if levels <= 256 else "<u2")
