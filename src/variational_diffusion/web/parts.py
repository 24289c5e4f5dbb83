"""Parts that the tabs share: a source of images, pictures, a canvas, and how events are answered.

Uploads arrive as bytes and are read by `uploads`; an `InputError` becomes a line on the page.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from variational_diffusion.errors import InputError
from variational_diffusion.images.pictures import sheet
from variational_diffusion.web.studio import MOST_TILES, Studio
from variational_diffusion.web.uploads import MAX_BYTES, read_upload

CANVAS = 320
_SIDE = 256


def source(studio: Studio, *, scaled: bool = True) -> gr.State:
    """Add an upload and a button for test examples; return what holds the image, or None."""
    image, number = gr.State(None), gr.State(0)
    upload = gr.File(label=f"Upload, up to {MAX_BYTES >> 20} MB", type="binary", height=120)
    button = gr.Button("Take a test image")
    shown = output("Image")

    def take(content: bytes | None) -> np.ndarray | None:
        if content is None:
            return None
        height, width = studio.shape[1:]
        size = (height, width) if scaled else None
        most = {} if scaled else {"max_pixels": MOST_TILES * height * width}
        return read_upload(content, studio.shape[0], studio.levels, size, **most)

    taken = on(upload.upload, take, [upload], [image])
    for ended in (taken.success, taken.failure):  # ready for the next one
        ended(lambda: None, [], [upload], api_visibility="private")
    on(button.click, lambda n: (studio.test_example(n), n + 1), [number], [image, number])
    on(
        image.change,
        lambda x: None if x is None else enlarged(x, studio.levels),
        [image],
        [shown],
    )
    return image


def output(label: str) -> gr.Image:
    """Add a picture that is shown, empty at first."""
    return gr.Image(
        label=label,
        type="pil",
        format="png",
        interactive=False,
        height=300,
        buttons=["download"],
        elem_classes="pixels",
    )


def canvas_of(label: str, brush: str, value: Image.Image | None = None) -> gr.ImageEditor:
    """Return a canvas to paint on; a function is given its pictures as bytes, not decoded.

    value: what it shows at first, and what is drawn on.
    """
    canvas = gr.ImageEditor(
        value,
        label=label,
        sources=(),
        transforms=(),
        layers=gr.LayerOptions(allow_additional_layers=False),
        canvas_size=(CANVAS, CANVAS),
        fixed_canvas=True,
        height=440,
        format="png",
        brush=gr.Brush(default_size=24, colors=[brush], color_mode="fixed"),
    )

    def preprocess(payload: Any) -> dict[str, Any] | None:
        if payload is None:
            return None
        sent = payload if payload.id is None else canvas.blob_storage.pop(payload.id, None)
        if sent is None:
            return None
        return {
            "layers": [content for content in map(_bytes, sent.layers or []) if content],
            "composite": _bytes(sent.composite),
        }

    # gradio's own would decode whatever pillow knows. In a class of ours, gradio would write a
    # .pyi file beside this one.
    canvas.preprocess = preprocess  # type: ignore[assignment, method-assign]
    return canvas


def _bytes(sent: Any) -> bytes | None:
    """Return what a canvas sent: bytes, or a file among gradio's uploads, which it has checked."""
    if sent is None or isinstance(sent, bytes):
        return sent
    with open(sent.path, "rb") as file:
        return file.read(MAX_BYTES + 1)


def on(
    event: Callable[..., Any],
    function: Callable[..., Any],
    inputs: list[Any],
    outputs: list[Any],
    **options: Any,
) -> Any:
    """Call a function on an event, one at a time for all of them; tell its `InputError`.

    Return the event of its end.
    """
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def told(*values: Any) -> Any:
            try:
                yield from function(*values)
            except InputError as error:
                raise gr.Error(str(error), print_exception=False) from error
    else:

        @functools.wraps(function)
        def told(*values: Any) -> Any:
            try:
                return function(*values)
            except InputError as error:
                raise gr.Error(str(error), print_exception=False) from error

    options |= {"concurrency_id": "model", "api_visibility": "private"}
    return event(told, inputs, outputs, **options)


def there(x: np.ndarray | None) -> np.ndarray:
    """Return the image; raise InputError where none is chosen yet."""
    if x is None:
        raise InputError("Choose an image first")
    return x


def whole(value: float | None) -> int:
    """Return a number's whole part; raise InputError where it is missing."""
    if value is None or not math.isfinite(value):
        raise InputError("A number is missing")
    return int(value)


def enlarged(image: np.ndarray, levels: int) -> Image.Image:
    """Return an image with its pixels as squares, at least about `_SIDE` wide."""
    scale = max(1, round(_SIDE / max(image.shape[1:])))
    picture = sheet(image[None], levels, scale=scale)
    return picture.crop((2, 2, picture.width - 2, picture.height - 2))  # without the frame
