"""What classical coders need for a set of images: the figures that a model has to beat."""

from __future__ import annotations

import io
import lzma
import zlib
from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image

from variational_diffusion.compression.mosaic import mosaic

_WEBP_MAX_SIDE = 16_383


def code_lengths(images: np.ndarray, levels: int) -> dict[str, float]:
    """Return the bits per dimension of classical lossless coders for a whole set of images.

    images: integers in 0..levels-1, shape (n, *shape). Up to 256 levels, a value is stored as a
        byte, otherwise in two.

    "order-0 entropy" is the entropy of the values' own histogram: what an ideal coder would need
    that knows the histogram and nothing else; the others are the sizes of real files, headers
    counted. "xz" is one file of the raw array, at the highest setting. "PNG (one mosaic)" and
    "WebP lossless (one mosaic)" put all images into one picture, about square, so that one header
    serves all and repetitions can be found; they are given where the format holds the data: 1, 3 or
    4 channels, up to 256 levels (PNG in grey: 65,536), and WebP up to 16,383 pixels a side. There,
    fewer than 129 levels are spread over the byte, which suits PNG's choice of filters: digits take
    3.34 bits instead of 3.83.
    """
    assert images.size > 0
    assert levels <= 65_536
    images = images.astype(np.uint8 if levels <= 256 else "<u2")
    lengths = {
        "order-0 entropy": _entropy(images),
        "xz": _bits(len(lzma.compress(images.tobytes(), preset=9 | lzma.PRESET_EXTREME)), images),
    }
    if images.ndim == 4 and images.shape[1] in (1, 3, 4):
        spread = max(1, 255 // (levels - 1))
        picture = mosaic(images * images.dtype.type(spread))
        if levels <= 256 or images.shape[1] == 1:
            lengths["PNG (one mosaic)"] = _picture_bits(picture, images, "PNG", optimize=True)
        if levels <= 256 and max(picture.shape[:2]) <= _WEBP_MAX_SIDE:
            lengths["WebP lossless (one mosaic)"] = _picture_bits(
                picture, images, "WEBP", lossless=True, exact=True, quality=100, method=6
            )
    return lengths


def code_length(image: np.ndarray, levels: int) -> float:
    """Return the bits per dimension of the shorter of a deflated array and a WebP file of it.

    image: integers in 0..levels-1 of any shape, one example; WebP where the format holds it.
    """
    values = image.astype(np.uint8 if levels <= 256 else "<u2")
    lengths = [_bits(len(zlib.compress(values.tobytes(), 9)), values)]
    if values.ndim == 3 and values.shape[0] in (1, 3, 4) and levels <= 256:
        spread = max(1, 255 // (levels - 1))
        picture = mosaic((values * values.dtype.type(spread))[None])
        lengths.append(
            _picture_bits(picture, values, "WEBP", lossless=True, exact=True, quality=100, method=4)
        )
    return min(lengths)


def picture_lengths(images: np.ndarray, levels: int) -> dict[str, float]:
    """Return the bits per dimension of picture formats that get one image at a time, on average.

    images: as at `code_lengths`; empty where no format holds them. JPEG XL, at effort 9, is among
    them, and with one mosaic of all images too, where imagecodecs is installed (the extra `jxl`).
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3, 4) or levels > 256:
        return {}
    if max(images.shape[2:]) > _WEBP_MAX_SIDE:
        return {}
    spread = images.astype(np.uint8) * np.uint8(max(1, 255 // (levels - 1)))
    pictures = [mosaic(image[None]) for image in spread]
    options: dict[str, dict[str, Any]] = {
        "PNG": {"optimize": True},
        "WEBP": {"lossless": True, "exact": True, "quality": 100, "method": 6},
    }
    lengths = {
        f"{'PNG' if name == 'PNG' else 'WebP lossless'}, one by one": float(
            np.mean([_picture_bits(picture, picture, name, **chosen) for picture in pictures])
        )
        for name, chosen in options.items()
    }
    if find_spec("imagecodecs") is not None:
        lengths["JPEG XL, one by one"] = float(np.mean([_jpeg_xl_bits(p, p) for p in pictures]))
        lengths["JPEG XL (one mosaic)"] = _jpeg_xl_bits(mosaic(spread), images)
    return lengths


def _entropy(images: np.ndarray) -> float:
    counts = np.bincount(images.ravel())
    shares = counts[counts > 0] / images.size
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # 0.0, not -0.0, for one value alone


def _picture_bits(picture: np.ndarray, images: np.ndarray, name: str, **options: Any) -> float:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format=name, **options)
    return _bits(file.tell(), images)


def _jpeg_xl_bits(picture: np.ndarray, images: np.ndarray) -> float:
    from imagecodecs import jpegxl_encode  # noqa: PLC0415, an optional extra

    return _bits(len(jpegxl_encode(picture, lossless=True, effort=9)), images)


def _bits(n_bytes: int, images: np.ndarray) -> float:
    return 8 * n_bytes / images.size
