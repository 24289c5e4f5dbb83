"""One image file, or the bytes of one: what its header tells, and its pixels in a given mode.

All of it may run in several threads at once.
"""

from __future__ import annotations

import contextlib
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from variational_diffusion.data.stored import Stored
from variational_diffusion.errors import InputError

CHANNELS = {"1": 1, "L": 1, "I;16": 1, "RGB": 3, "RGBA": 4}
"""Modes that images are brought to: 1, 8 or 16 bits of grey, colour, colour with opacity."""

_GREY_16 = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_GREY = ("1", "L", "LA")
_COLOUR = ("P", "PA", "RGB", "RGBX", "RGBA", "CMYK", "YCbCr")

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientation → what puts the image upright."""

_UNSUITABLE = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
"""Formats that pillow can only recognise, or decodes with another program."""

_DECODING = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, RuntimeError),
    *(IndexError, KeyError, ArithmeticError, AttributeError, struct.error, zlib.error),
)
"""All that pillow's decoders have been seen to raise for damaged files."""


_PILLOW = re.compile(r"PIL\.")


class DamagedError(InputError):
    """What should be an image and cannot be decoded."""


class Header(NamedTuple):
    """What a file tells before it is decoded.

    size: (height, width), upright. bits: 1, 8 or 16 for a value. grey, transparent: whether it
    has no colours, whether it has opacity. reduced: 16 bits of colour, of which pillow reads 8.
    """

    size: tuple[int, int]
    bits: int
    grey: bool
    transparent: bool
    reduced: bool


def extensions() -> set[str]:
    """Return the extensions, with the dot and in small letters, that are read as images."""
    return {e for e, name in Image.registered_extensions().items() if name in _formats()}


def read_header(stored: Stored, *, decode: bool = False) -> Header:
    """Return the header; with `decode`, decode the pixels too, so that damage is found.

    Raises DamagedError for what is no image, and InputError for one that may not be read, is larger
    than pillow's limit or of a mode without integers of up to 16 bits.
    """
    with _opened(stored) as image:
        header = _header(image, stored.name)
        if decode:
            image.load()
    return header


def read_pixels(
    stored: Stored, mode: str, resize: tuple[int, int] | None, *, colour: bool = True
) -> np.ndarray:
    """Return the pixels, upright, as integers of shape (channels, height, width).

    mode: a key of `CHANNELS`; all but "RGBA" have transparency put on white.
    resize: (height, width) to crop around the centre and resample to (bicubic).
    colour: whether a mode of grey takes images with colours, too.
    Raises as `read_header` does, and for an image that `mode` would make something else of.
    """
    with _opened(stored) as image:
        header = _header(image, stored.name)
        fits = (header.bits == 16) == (mode == "I;16")
        if mode == "1":
            fits = header.bits == 1 and not header.transparent
        if not fits:
            opacity = " and alpha" if header.transparent else ""
            raise InputError(
                f"'{stored.name}' has {header.bits} bits{opacity}, unlike the others (pillow's "
                f"mode {mode}); convert all to one depth"
            )
        if not colour and not header.grey:
            raise InputError(
                f"'{stored.name}' has colours, and the images looked at first are grey; give "
                "--channels rgb or --channels grey"
            )
        turn = _TURNS.get(_orientation(image))
        image.load()
        picture = _converted(image, mode)
        if turn is not None:
            picture = picture.transpose(turn)
        if resize is not None:
            picture = ImageOps.fit(picture, (resize[1], resize[0]))
        values = np.asarray(picture)
        if mode == "I;16":  # "F", which overshoots where 16 bits would wrap
            values = np.clip(np.rint(values), *image.getextrema()).astype(np.int32)
    return np.moveaxis(values, -1, 0) if values.ndim == 3 else values[None]


def _header(image: Image.Image, name: str) -> Header:
    if image.mode not in _GREY + _GREY_16 + _COLOUR:
        raise InputError(
            f"'{name}' has pillow's mode {image.mode}: grey, palette and colour images of up "
            "to 16 bits are read; convert it, or save all images as one .npy file"
        )
    width, height = image.size
    if _orientation(image) >= 5:
        width, height = height, width
    return Header(
        size=(height, width),
        bits=16 if image.mode in _GREY_16 else 1 if image.mode == "1" else 8,
        grey=image.mode in _GREY + _GREY_16,
        transparent=image.has_transparency_data and image.mode not in _GREY_16,
        reduced=image.mode not in _GREY_16 and ";16" in str(getattr(image, "tile", "")),
    )


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.asarray(image).astype(np.float32))  # holds 24 bits exactly
    if mode == "RGBA":
        return image.convert("RGBA")
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image.convert("RGBA"))
        image = page
    return image.convert(mode)


def _orientation(image: Image.Image) -> int:
    """Return EXIF's orientation as far as it is known before decoding, 1 for upright.

    Pillow turns TIFF by itself. Its `PngImageFile.getexif` would decode the image to find what
    stands behind the pixels; that is not looked for. Damaged EXIF does not make a damaged image.
    """
    if image.format == "TIFF":
        return 1
    with contextlib.suppress(*_DECODING):
        return int(Image.Image.getexif(image).get(_ORIENTATION, 1))
    return 1


@contextmanager
def _opened(stored: Stored) -> Iterator[Image.Image]:
    """Open a file in a format that we read; turn what goes wrong into one line with its name."""
    name, content = stored.name, stored.content
    assert isinstance(content, Path | bytes)
    _silence()
    try:
        file = BytesIO(content) if isinstance(content, bytes) else content
        with Image.open(file, formats=_formats()) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or np.inf):
                raise Image.DecompressionBombError
            yield image
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"'{name}' has more than pillow's limit of {Image.MAX_IMAGE_PIXELS:,} pixels; take the "
            "file out of the folder, or store it smaller"
        ) from error
    except (FileNotFoundError, PermissionError) as error:
        raise InputError(
            f"'{name}' cannot be read: {str(error.strerror).lower()}; restore the file or its "
            "permissions"
        ) from error
    except _DECODING as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedError(
            f"'{name}' is no image or is damaged ({reason}); take it out of the folder, or type "
            "--skip-damaged"
        ) from error


def _silence() -> None:
    """Hide pillow's warnings about odd tags; what matters is raised.

    A filter that stays: `warnings.catch_warnings` would undo what other threads set meanwhile.
    """
    if not warnings.filters or warnings.filters[0][3] != _PILLOW:
        warnings.filterwarnings("ignore", module=_PILLOW.pattern)


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.ID if name in Image.OPEN and name not in _UNSUITABLE)
