"""Pictures of arrays as data URIs: they are in the page, and nothing is loaded."""

from __future__ import annotations

import base64
import io

import numpy as np
from matplotlib import colormaps
from PIL import Image

from variational_diffusion.images.pictures import Range, beside, to_pil

_MILLISECONDS, _LAST_MILLISECONDS = 120, 2000
_QUALITY = 80
GAP = "#808080"
"""Between sheets side by side: of the grey that is between images, in light and dark."""


def data_uri(picture: Image.Image) -> str:
    """Return a picture as a lossless WebP file in a URI."""
    return _uri([picture], lossless=True, exact=True, method=4)


def animation_uri(
    frames: np.ndarray, levels: int | None, columns: int, *, value_range: Range | None = None
) -> str:
    """Return sheets side by side, shape (n_frames, k, n, channels, height, width), as a WebP.

    It repeats, and is compressed with loss: most of it is noise, which no coder makes smaller.
    """
    pages = [beside(frame, levels, value_range, columns, GAP) for frame in frames]
    return _uri(
        pages,
        save_all=True,
        append_images=pages[1:],
        duration=[_MILLISECONDS] * (len(pages) - 1) + [_LAST_MILLISECONDS],
        loop=0,
        quality=_QUALITY,
    )


def as_colour(
    images: np.ndarray, levels: int | None, value_range: Range | None = None
) -> np.ndarray:
    """Return images as uint8 in colour, shape (n, 3, height, width), on white where transparent."""
    pictures = [to_pil(image, levels, value_range=value_range) for image in images]
    return np.stack([np.moveaxis(_opaque(picture), -1, 0) for picture in pictures])


def heat_maps(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return maps, shape (n, height, width), as uint8 in colour: from dark at low to light at high.

    The colours are those of matplotlib's magma, whose lightness grows evenly.
    """
    shown = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
    coloured = colormaps["magma"](shown, bytes=True)[..., :3]
    return np.moveaxis(coloured, -1, 1)


def _opaque(picture: Image.Image) -> np.ndarray:
    if picture.mode == "I;16":
        return np.asarray(picture).astype(np.uint16)[..., None].repeat(3, -1) // 257
    if picture.mode == "RGBA":
        page = Image.new("RGBA", picture.size, "white")
        page.alpha_composite(picture)
        picture = page
    return np.asarray(picture.convert("RGB"))


def _uri(pictures: list[Image.Image], **options: object) -> str:
    file = io.BytesIO()
    pictures[0].save(file, format="WEBP", **options)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
