"""One image file, or the bytes of one: what its header tells, and its pixels in a given mode.

All of it may run in several threads at once.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from variational_diffusion.data.formats import pillow_formats
from variational_diffusion.data.profiles import profile_of
from variational_diffusion.data.stored import Stored
from variational_diffusion.errors import DamagedError, InputError
from variational_diffusion.images.pictures import is_sheet

CHANNELS = {"1": 1, "L": 1, "I;16": 1, "RGB": 3, "RGBA": 4}
"""Modes that images are brought to: 1, 8 or 16 bits of grey, colour, colour with opacity."""

MAX_PIXELS = 89_478_485
"""Pixels of an image if nothing else is asked for; pillow's limit."""

MAX_PICTURES = 1 << 16
"""Pictures of one file at most: a header may claim any number."""

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

_DEPTHS = {"AVIF": (b"av1C", 6, 0x40), "JPEG2000": (b"\xff\x4f\xff\x51", 42, 0x78)}
"""Formats of which pillow tells no depth: a mark, how far behind its beginning the byte with the
depth stands, and the bits that are set in it for more than 8."""

_HEAD = 1 << 16

_DECODING = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, RuntimeError),
    *(IndexError, KeyError, ArithmeticError, AttributeError, struct.error, zlib.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)
"""All that pillow's decoders have been seen to raise for damaged files."""


_PILLOW = re.compile(r"PIL\.")
_UNLIMITED = Lock()


class Header(NamedTuple):
    """What a file tells before it is decoded; `changes` says what becomes of it.

    size: (height, width), upright. bits: 1, 8 or 16 for a value. grey, transparent: whether it
    has no colours, whether it has opacity. mode: pillow's. reduced: more bits than pillow reads.
    masked: 16 bits of grey of which one value is transparent. left_out: pictures of the file beside
    the one that is read. profile: the name of a colour profile other than sRGB. turned: whether its
    EXIF turns it. sheet: whether it is a sheet that this package drew.
    """

    size: tuple[int, int]
    bits: int
    grey: bool
    transparent: bool
    mode: str
    reduced: bool = False
    masked: bool = False
    left_out: int = 0
    profile: str = ""
    turned: bool = False
    sheet: bool = False


def read_header(stored: Stored, *, decode: bool = False, max_pixels: int = MAX_PIXELS) -> Header:
    """Return the header; with `decode`, decode the pixels too, so that damage is found.

    Raises DamagedError for what is no image or may not be read, and InputError for one that has
    more than `max_pixels` or is of a mode without integers of up to 16 bits.
    """
    with _opened(stored, max_pixels) as image:
        header = _header(image, stored)
        if decode:
            image.load()
    return header


def pictures_in(path: Path, name: str) -> int:
    """Return the number of pictures of an image file: pages of a TIFF, frames of an animation.

    Raises as `read_header` does.
    """
    with _opened(Stored(name, path), MAX_PIXELS) as image:
        count = getattr(image, "n_frames", 1)
    if count > MAX_PICTURES:
        raise DamagedError(
            f"'{name}' claims {count:,} pictures, {MAX_PICTURES:,} are allowed; take it out of the "
            "folder, or type --skip-damaged"
        )
    return count


def read_pixels(
    stored: Stored,
    mode: str,
    resize: tuple[int, int] | None,
    *,
    colour: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Return the pixels, upright, as integers of shape (channels, height, width).

    mode: a key of `CHANNELS`; all but "RGBA" have transparency put on white.
    resize: (height, width) to crop around the centre and resample to (bicubic).
    colour: whether a mode of grey takes images with colours, too.
    Raises as `read_header` does, and for an image that `mode` would make something else of.
    """
    with _opened(stored, max_pixels) as image:
        header = _header(image, stored)
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
        extrema = picture.getextrema()
        if turn is not None:
            picture = picture.transpose(turn)
        if resize is not None:
            picture = ImageOps.fit(picture, (resize[1], resize[0]))
        values = np.asarray(picture)
        if mode == "I;16":  # "F", which overshoots where 16 bits would wrap
            values = np.clip(np.rint(values), *extrema).astype(np.int32)
    return np.moveaxis(values, -1, 0) if values.ndim == 3 else values[None]


def is_opaque(stored: Stored) -> bool:
    """Return whether no pixel of an image lets anything shine through."""
    return bool((read_pixels(stored, "RGBA", None)[3] == 255).all())


def _header(image: Image.Image, stored: Stored) -> Header:
    if image.mode not in _GREY + _GREY_16 + _COLOUR:
        raise InputError(
            f"'{stored.name}' has pillow's mode {image.mode}: grey, palette and colour images of "
            "up to 16 bits are read; convert it, or save all images as one .npy file"
        )
    width, height = image.size
    orientation = _orientation(image)
    if orientation >= 5:
        width, height = height, width
    deep, several = image.mode in _GREY_16, stored.picture is None
    return Header(
        size=(height, width),
        bits=16 if deep else 1 if image.mode == "1" else 8,
        grey=image.mode in _GREY + _GREY_16,
        transparent=image.has_transparency_data and not deep,
        mode=image.mode,
        reduced=not deep and _is_reduced(image, stored),
        masked=image.has_transparency_data and deep,
        left_out=(getattr(image, "n_frames", 1) if several else 1)
        + max(0, len(image.info.get("sizes", ())) - 1)
        - 1,
        profile=profile_of(image),
        turned=orientation in _TURNS,
        sheet=is_sheet(_exif(image), image.info),
    )


def _is_reduced(image: Image.Image, stored: Stored) -> bool:
    """Return whether a file has more than the 8 bits that pillow reads of it."""
    if image.info.get("bit_depth", 8) > 8 or ";16" in str(getattr(image, "tile", "")):
        return True
    if image.format == "PPM":
        arguments = vars(image)["tile"][0].args
        return isinstance(arguments, tuple) and arguments[-1] > 255
    if image.format not in _DEPTHS:
        return False
    mark, distance, deep = _DEPTHS[image.format]
    head = _head(stored)
    place = head.find(mark) + distance
    return place >= distance and any(byte & deep for byte in head[place : place + 1])


def _head(stored: Stored) -> bytes:
    if isinstance(stored.content, bytes):
        return stored.content[:_HEAD]
    assert isinstance(stored.content, Path)
    with stored.content.open("rb") as file:
        return file.read(_HEAD)


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
        return int(_exif(image).get(_ORIENTATION, 1))
    return 1


def _exif(image: Image.Image) -> Mapping[int, Any]:
    with contextlib.suppress(*_DECODING):
        return Image.Image.getexif(image)
    return {}


@contextmanager
def _opened(stored: Stored, max_pixels: int) -> Iterator[Image.Image]:
    """Open a picture in a format that we read; turn what goes wrong into one line with its name."""
    name, content = stored.name, stored.content
    if isinstance(content, DamagedError):
        raise content
    assert isinstance(content, Path | bytes)
    _silence()
    try:
        if isinstance(content, Path):
            check_file(content, name)
        with _image(content) as image:
            if stored.picture:
                image.seek(stored.picture)
            if image.width * image.height > max_pixels:
                raise InputError(
                    f"'{name}' has {image.height:,}×{image.width:,} pixels, {max_pixels:,} are "
                    "allowed: take it out of the folder, or, if the memory suffices, give "
                    f"--max-pixels {image.width * image.height}"
                )
            yield image
    except InputError:
        raise
    except _DECODING as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedError(
            f"'{name}' is no image or is damaged ({reason}); take it out of the folder, or type "
            "--skip-damaged"
        ) from error


def check_file(path: Path, name: str) -> None:
    """Raise DamagedError for what is no file that may be read: a pipe would wait for ever."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            with open(path, "rb"):
                return
        reason = "it is no regular file"
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "strerror", None) or error).lower()
    raise DamagedError(
        f"'{name}' cannot be read: {reason}; restore the file or its permissions, or type "
        "--skip-damaged"
    )


def _image(content: Path | bytes) -> Image.Image:
    """Open an image, above pillow's limit too: ours is the caller's, and knows the size."""
    file = BytesIO(content) if isinstance(content, bytes) else content
    with contextlib.suppress(Image.DecompressionBombError):
        return Image.open(file, formats=pillow_formats())
    with _UNLIMITED:
        kept, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=pillow_formats())
        finally:
            Image.MAX_IMAGE_PIXELS = kept


def _silence() -> None:
    """Hide pillow's warnings about odd tags; what matters is raised.

    A filter that stays: `warnings.catch_warnings` would undo what other threads set meanwhile.
    """
    if not warnings.filters or warnings.filters[0][3] != _PILLOW:
        warnings.filterwarnings("ignore", module=_PILLOW.pattern)
