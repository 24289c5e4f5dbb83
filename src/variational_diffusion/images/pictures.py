"""Arrays as pictures: single images, sheets and animations.

Images are (channels, height, width) with 1 (grey), 3 (colour) or 4 channels (colour and opacity).
Integers of L levels are spread evenly over what a picture can show. Real values (levels None) are
shown from the lowest, black, to the highest, white, of `value_range`; values outside are clipped,
and without a range it is that of the array, NaN left out and shown black.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from variational_diffusion.errors import InputError
from variational_diffusion.storage.files import atomic, check_target, expanded

Range = tuple[float, float]

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_FORMATS: dict[str, tuple[str, dict[str, bool]]] = {
    ".png": ("PNG", {}),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),
}
PICTURES = tuple(_FORMATS)
"""Endings of the names of sheets."""
_PIXELS: dict[str, tuple[str, frozenset[str], dict[str, bool]]] = {
    ".png": ("PNG", frozenset({"1", "L", "I;16", "RGB", "RGBA"}), {}),
    ".webp": ("WEBP", frozenset({"RGB", "RGBA"}), {"lossless": True, "exact": True}),
    ".tif": ("TIFF", frozenset({"1", "L", "I;16", "RGB", "RGBA"}), {}),
    ".tiff": ("TIFF", frozenset({"1", "L", "I;16", "RGB", "RGBA"}), {}),
    ".bmp": ("BMP", frozenset({"1", "L", "RGB"}), {}),
    ".pbm": ("PPM", frozenset({"1"}), {}),
    ".pgm": ("PPM", frozenset({"L"}), {}),
    ".ppm": ("PPM", frozenset({"RGB"}), {}),
}
"""Extension → pillow's name of the format, the modes that it gives back exactly, options."""
_SOFTWARE, _SHEET = 0x0131, "a sheet of variational-diffusion"
"""EXIF's tag for what wrote a file, and what stands there in sheets."""
_GAP = 2
_BETWEEN = 8
"""Between sheets that stand side by side."""
_BACKGROUND = "#808080"
_SIDE = 64
"""Images on a sheet are enlarged as long as they stay within this many pixels."""
_MILLISECONDS, _LAST_MILLISECONDS = 80, 1500
_CAPTION, _LETTERS = 14, 11
"""Height of a line of captions, and of its letters."""
ANIMATIONS: dict[str, dict[str, bool]] = {
    ".gif": {},
    ".webp": {"lossless": True},
    ".mp4": {},
}
"""What animations can be written as, by the ending of the name, and options of pillow."""


def is_image(shape: tuple[int, ...]) -> bool:
    """Tell whether arrays of this shape are images."""
    return len(shape) == 3 and shape[0] in _MODES


def to_pil(
    image: np.ndarray, levels: int | None, *, value_range: Range | None = None
) -> Image.Image:
    """Return a picture of one image, shape (channels, height, width).

    With 256 levels, or 65,536 in grey, the picture holds the values themselves: they can be read
    back. Raises InputError for a shape that is no image.
    """
    _check_shape(image.shape)
    if levels == 65_536 and image.shape[0] == 1:
        return Image.fromarray(image[0].astype(np.uint16))
    return _from_bytes(_to_bytes(image, levels, value_range))


def sheet(
    images: np.ndarray,
    levels: int | None,
    columns: int | None = None,
    scale: int | None = None,
    *,
    value_range: Range | None = None,
    captions: Sequence[str] | None = None,
) -> Image.Image:
    """Return a grid of images, shape (n, channels, height, width), row by row with thin grey gaps.

    columns: None makes the sheet about square. scale: pixels drawn for one, in each direction;
    None enlarges small images, so that an 8×8 digit is 64×64. captions: a line or several under
    each image, such as its label; of a line that does not fit the middle is left out.
    """
    if len(images) == 0:
        raise InputError("images = none: a sheet needs at least one image; give --n 1 or more")
    _check_shape(images.shape[1:])
    n, channels, height, width = images.shape
    columns = columns or min(n, math.ceil(math.sqrt(n * height / width)))
    scale = scale or max(1, _SIDE // max(height, width))
    step_y, step_x = height * scale + _GAP, width * scale + _GAP
    if captions is not None:
        assert len(captions) == n
        lines = max(caption.count("\n") + 1 for caption in captions)
        step_y += lines * _CAPTION
    size = (columns * step_x + _GAP, math.ceil(n / columns) * step_y + _GAP)
    page = Image.new(_MODES[channels], size, _BACKGROUND)
    for i, pixels in enumerate(_to_bytes(images, levels, value_range)):
        picture = _from_bytes(pixels.repeat(scale, axis=1).repeat(scale, axis=2))
        left, top = i % columns * step_x + _GAP, i // columns * step_y + _GAP
        page.paste(picture, (left, top))
        if captions is not None:
            caption = _caption(captions[i], width * scale, lines)
            page.paste(caption, (left, top + height * scale))
    return page


def save_image(
    image: np.ndarray,
    levels: int | None,
    path: str | os.PathLike[str],
    *,
    value_range: Range | None = None,
    overwrite: bool = False,
) -> None:
    """Write one image, shape (channels, height, width), as a lossless .png or .webp file.

    Raises InputError for another extension, and when the file exists, as `files.atomic` does.
    """
    _save(to_pil(image, levels, value_range=value_range), path, overwrite)


def keeps_pixels(path: str | os.PathLike[str], mode: str) -> bool:
    """Tell whether files of this extension give every pixel of pillow's mode back as it was."""
    return Path(path).suffix.lower() in _PIXELS and mode in _PIXELS[Path(path).suffix.lower()][1]


def save_pixels(pixels: np.ndarray, mode: str, path: str | os.PathLike[str]) -> None:
    """Write integers, shape (channels, height, width), as they are: an image of pillow's mode.

    path: `keeps_pixels` holds for it and for mode.
    """
    assert keeps_pixels(path, mode)
    name, _, options = _PIXELS[Path(path).suffix.lower()]
    dtype = {"1": bool, "I;16": np.uint16}.get(mode, np.uint8)
    _from_bytes(pixels.astype(dtype)).save(path, format=name, **options)


def save_sheet(
    images: np.ndarray,
    levels: int | None,
    path: str | os.PathLike[str],
    columns: int | None = None,
    scale: int | None = None,
    *,
    value_range: Range | None = None,
    captions: Sequence[str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write what `sheet` draws as a .png or .webp file; raise as `save_image` does.

    The file says that it is a sheet, see `is_sheet`.
    """
    page = sheet(images, levels, columns, scale, value_range=value_range, captions=captions)
    _save(page, path, overwrite, exif=_marked())


def is_sheet(exif: Mapping[int, Any], info: Mapping[Any, Any]) -> bool:
    """Tell a sheet or an animation that was written here, by its EXIF and pillow's `info`."""
    return exif.get(_SOFTWARE) == _SHEET or info.get("comment") == _SHEET.encode()


def _marked() -> Image.Exif:
    exif = Image.Exif()
    exif[_SOFTWARE] = _SHEET
    return exif


def animation(
    frames: Iterable[np.ndarray],
    levels: int | None,
    path: str | os.PathLike[str],
    *,
    value_range: Range | None = None,
    overwrite: bool = False,
) -> None:
    """Write a .gif or .webp, which repeat, or an .mp4, of one frame after the other.

    frames: each of shape (n, channels, height, width), a sheet, or (k, n, channels, height, width),
    k sheets side by side. 12.5 frames a second, the last for a second and a half. Transparency is
    put on white. Without a `value_range` every frame has its own. The .webp is lossless, a .gif has
    256 colours, an .mp4 is smaller than both.
    Raises InputError without frames, and as `check_animation` does.
    """
    path = expanded(path)
    check_animation(path, overwrite)
    pages = [_opaque(beside(frame, levels, value_range)) for frame in frames]
    if not pages:
        raise InputError(f"'{path}': an animation needs at least one frame; give --steps 1 or more")
    suffix = path.suffix.lower()
    with atomic(path, overwrite) as temporary:
        if suffix == ".mp4":
            _write_mp4(pages, temporary)
            return
        pages[0].save(
            temporary,
            format=suffix[1:].upper(),
            save_all=True,
            append_images=pages[1:],
            duration=[_MILLISECONDS] * (len(pages) - 1) + [_LAST_MILLISECONDS],
            loop=0,
            **({"comment": _SHEET} if suffix == ".gif" else {"exif": _marked()}),
            **ANIMATIONS[suffix],
        )


def check_animation(path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Refuse, before frames are made, an animation that could not be written.

    Raises InputError for another extension, for an .mp4 without the package that writes it, and
    when the file exists.
    """
    suffix = expanded(path).suffix.lower()
    if suffix not in ANIMATIONS:
        raise InputError(
            f"'{path}': an animation is a {', '.join(ANIMATIONS)}; give a name that ends so"
        )
    if suffix == ".mp4" and find_spec("av") is None:
        raise InputError(
            f"'{path}': an .mp4 needs the package av; pip install 'variational-diffusion[video]', "
            "or give a .gif or .webp"
        )
    check_target(path, "animate", overwrite=overwrite)


def beside(
    frame: np.ndarray,
    levels: int | None,
    value_range: Range | None,
    columns: int | None = None,
    between: str = "white",
) -> Image.Image:
    """Return a sheet of a frame, or its sheets from left to right; see `animation`."""
    if frame.ndim == 4:
        return sheet(frame, levels, columns, value_range=value_range)
    sheets = [sheet(part, levels, columns, value_range=value_range) for part in frame]
    step, height = sheets[0].width + _BETWEEN, sheets[0].height
    page = Image.new(sheets[0].mode, (len(sheets) * step - _BETWEEN, height), between)
    for i, one in enumerate(sheets):
        page.paste(one, (i * step, 0))
    return page


def _caption(text: str, width: int, lines: int) -> Image.Image:
    block = Image.new("L", (width, lines * _CAPTION), "white")
    for i, line in enumerate(text.split("\n")):
        shown, font = _lettered(line)
        fitted = shortened(shown, width - 2, font.getlength)
        ImageDraw.Draw(block).text((1, i * _CAPTION), fitted, "black", font)
    return block


def _lettered(text: str) -> tuple[str, ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    """Return a text and a font that has its letters: pillow's for ASCII, else matplotlib's.

    Letters that neither has, such as Chinese ones, become escapes.
    """
    if text.isascii():
        return text, ImageFont.load_default(_LETTERS)
    from matplotlib import ft2font, get_data_path  # noqa: PLC0415 (a tenth of a second)

    path = str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
    has = ft2font.FT2Font(path).get_char_index
    shown = "".join(
        char if has(ord(char)) else char.encode("unicode_escape").decode() for char in text
    )
    return shown, ImageFont.truetype(path, _LETTERS - 1)


def shortened(text: str, width: int, measure: Callable[[str], float | int]) -> str:
    """Return a text with so much of its middle left out that it fits: names differ at the ends."""
    kept = len(text)
    shown = text
    while measure(shown) > width and kept > 0:
        kept -= 1
        shown = f"{text[: kept // 2]}…{text[len(text) - (kept - kept // 2) :]}"
    return shown


def _write_mp4(pages: list[Image.Image], path: Path) -> None:
    """Write H.264 as players take it: colours at half the resolution, sides of even length."""
    import av  # noqa: PLC0415 (an extra)

    width, height = (side + side % 2 for side in pages[0].size)
    pages = pages + pages[-1:] * round(_LAST_MILLISECONDS / _MILLISECONDS - 1)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(
            "libx264", rate=Fraction(1000, _MILLISECONDS), options={"crf": "14"}
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for page in pages:
            padded = Image.new("RGB", (width, height), _BACKGROUND)
            padded.paste(page)
            container.mux(stream.encode(av.VideoFrame.from_image(padded)))
        container.mux(stream.encode())


def _save(
    picture: Image.Image, path: str | os.PathLike[str], overwrite: bool, **marks: Any
) -> None:
    path = expanded(path)
    if path.suffix.lower() not in _FORMATS:
        raise InputError(
            f"'{path}' is no name of a lossless picture; give one that ends in "
            f"{' or '.join(_FORMATS)}"
        )
    name, options = _FORMATS[path.suffix.lower()]
    with atomic(path, overwrite) as temporary:
        picture.save(temporary, format=name, **options, **marks)


def _check_shape(shape: tuple[int, ...]) -> None:
    if not is_image(shape):
        raise InputError(
            f"shape = {shape}: a picture is (channels, height, width) with 1, 3 or 4 channels; "
            "save these data with --out FILE.npy"
        )


def _to_bytes(values: np.ndarray, levels: int | None, value_range: Range | None) -> np.ndarray:
    if levels == 256:
        return values.astype(np.uint8)
    values = values.astype(np.float64)
    if levels is not None:
        low, high = 0.0, levels - 1.0
    elif value_range is not None:
        low, high = value_range
    else:
        finite = values[np.isfinite(values)]
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    values = np.nan_to_num(np.clip(values, low, high), nan=low)
    spread = high - low if high > low else 1.0
    return np.rint((values - low) * (255 / spread)).astype(np.uint8)


def _from_bytes(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1).copy())


def _opaque(picture: Image.Image) -> Image.Image:
    if picture.mode != "RGBA":
        return picture
    page = Image.new("RGBA", picture.size, "white")
    page.alpha_composite(picture)
    return page.convert("RGB")
