"""Images that a stranger sends: looked at before they are decoded, and never more than bytes.

Nothing here opens a file. Formats are few and decoded by pillow itself; the size that the header
claims is checked before memory is taken for it.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from jaxtyping import Integer
from PIL import Image, ImageOps

from variational_diffusion.errors import InputError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_BYTES = 8 << 20
MAX_PIXELS = 4 << 20
"""Of an upload that is brought to the model's size."""

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_DAMAGED = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, RuntimeError),
    *(IndexError, KeyError, ArithmeticError, AttributeError, struct.error, zlib.error),
)
"""What pillow's decoders raise for bytes that are no image, or a damaged one."""


def read_upload(
    content: bytes,
    channels: int,
    levels: int,
    size: tuple[int, int] | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
) -> Integer[np.ndarray, "channels height width"]:
    """Return an uploaded image as integers in 0..levels-1, upright.

    channels: 1 (grey), 3 (colour) or 4; what is transparent is put on white where there is no 4th.
    size: (height, width) to crop to in the middle and resample to; None leaves it as it is.
    Raises InputError for what is empty, too large, no image of `FORMATS`, or damaged.
    """
    picture = _decoded(content, max_pixels)
    deep = picture.mode.startswith("I") and channels == 1
    if deep:
        picture = Image.fromarray(np.asarray(picture).astype(np.float32))
    else:
        picture = _in_mode(picture, _MODES[channels])
    if size is not None and picture.size != (size[1], size[0]):
        picture = ImageOps.fit(picture, (size[1], size[0]))
    values = np.asarray(picture, np.float64) / (65_535 if deep else 255)
    shown = np.clip(np.rint(values * (levels - 1)), 0, levels - 1)
    values = shown.astype(np.uint8 if levels <= 256 else np.uint16)
    return np.moveaxis(values, -1, 0).copy() if values.ndim == 3 else values[None]


def read_mask(content: bytes, size: tuple[int, int]) -> np.ndarray:
    """Return where a drawn layer is painted at all, as booleans of shape (height, width).

    Each pixel of `size` is true where any pixel of the drawing that falls on it is painted.
    Raises InputError as `read_upload` does.
    """
    painted = np.asarray(_decoded(content, MAX_PIXELS).convert("RGBA"))[..., 3] > 0
    rows = np.arange(painted.shape[0]) * size[0] // painted.shape[0]
    columns = np.arange(painted.shape[1]) * size[1] // painted.shape[1]
    mask = np.zeros(size, bool)
    y, x = np.nonzero(painted)
    mask[rows[y], columns[x]] = True
    return mask


def _decoded(content: bytes, max_pixels: int) -> Image.Image:
    """Return the image, upright and in memory."""
    if not content:
        raise InputError("The file is empty: choose an image")
    if len(content) > MAX_BYTES:
        raise InputError(
            f"The file has {len(content):,} bytes: up to {MAX_BYTES:,} are read; choose a smaller "
            "image"
        )
    too_large = f"up to {max_pixels:,} are read; choose a smaller image"
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise InputError(
                    f"The image has {image.width:,} by {image.height:,} pixels: {too_large}"
                )
            image.load()
            return ImageOps.exif_transpose(image)
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"The image has too many pixels: {too_large}") from error
    except _DAMAGED as error:
        raise InputError(
            f"The file is no image that can be read, or is damaged: choose a {', '.join(FORMATS)}"
        ) from error


def _in_mode(picture: Image.Image, mode: str) -> Image.Image:
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture).astype(np.int64) >> 8).astype(np.uint8))
    if mode != "RGBA" and picture.has_transparency_data:
        page = Image.new("RGBA", picture.size, "white")
        page.alpha_composite(picture.convert("RGBA"))
        picture = page
    return picture.convert(mode)
