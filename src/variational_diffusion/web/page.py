"""The page of `vdm serve`: what `studio` does, in the browser.

Uploads arrive as bytes and are read by `uploads`; an `InputError` becomes a line on the page.
"""

from __future__ import annotations

import base64
import functools
import inspect
import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from variational_diffusion.errors import InputError
from variational_diffusion.pictures import sheet
from variational_diffusion.report.images import heat_maps
from variational_diffusion.sampling import DEFAULT, DEFAULT_STEPS, SAMPLERS
from variational_diffusion.web.studio import (
    MOST_SAMPLES,
    MOST_STEPS,
    MOST_TILES,
    Likelihood,
    Studio,
)
from variational_diffusion.web.uploads import MAX_BYTES, read_mask, read_upload

_SIDE = 256
_CANVAS = 320
_WAITING = 16
"""Requests that wait for the model; more are turned away."""
_NO_LABEL = "none"
_CSS = """
.gradio-container { width: 100% !important; max-width: 1100px !important; }
.gradio-container { margin: 0 auto !important; }
.pixels img { image-rendering: pixelated; }
footer { display: none !important; }
"""


def serve(studio: Studio, port: int | None = None) -> gr.Blocks:
    """Start the page on 127.0.0.1 and return it; `close` ends it.

    port: None takes the first free one from 7860 on. Raises InputError for one that is taken.
    """
    page = build(studio)
    page.queue(max_size=_WAITING, default_concurrency_limit=1)
    font = ["system-ui", "sans-serif"]
    try:
        page.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=False,
            max_file_size=MAX_BYTES,
            max_threads=8,
            state_session_capacity=100,
            show_error=False,
            ssr_mode=False,
            run_history=False,
            footer_links=[],
            quiet=True,
            prevent_thread_lock=True,
            theme=gr.themes.Default(font=font, font_mono=["ui-monospace", "monospace"]),
            css=_CSS,
        )
    except OSError as error:
        raise InputError(f"port = {port}: it is taken; give another --port") from error
    return page


def build(studio: Studio) -> gr.Blocks:
    """Return the page, not started."""
    channels, height, width = studio.shape
    with gr.Blocks(analytics_enabled=False, title="vdm serve", delete_cache=(600, 3600)) as page:
        gr.Markdown(
            f"# {studio.run.path.resolve().name}\n{height}×{width} images, "
            f"{ {1: 'grey', 3: 'colour', 4: 'colour with opacity'}[channels] }, "
            f"{studio.levels:,} levels. An uploaded image is cropped and scaled to that size."
        )
        choices = ([_NO_LABEL] if studio.free else []) + list(studio.labels)
        label = gr.Dropdown(
            choices or [_NO_LABEL],
            value=(choices or [_NO_LABEL])[0],
            label="Label: what all tabs but the last are given",
            visible=bool(studio.labels),
        )
        with gr.Tab("Sample"):
            _sample_tab(studio, label)
        with gr.Tab("Forward process"):
            _forward_tab(studio, label)
        with gr.Tab("Likelihood"):
            _likelihood_tab(studio, label)
        with gr.Tab("Inpaint"):
            _inpaint_tab(studio, label)
        if studio.free:
            with gr.Tab("Compress"):
                _compress_tab(studio)
    return page


def _sample_tab(studio: Studio, label: gr.Dropdown) -> None:
    with gr.Row():
        sampler = gr.Dropdown(list(SAMPLERS), value=DEFAULT, label="Sampler")
        steps = gr.Slider(1, MOST_STEPS, DEFAULT_STEPS, step=1, label="Steps")
        count = gr.Slider(1, MOST_SAMPLES, 9, step=1, label="Images")
    with gr.Row():
        guided = bool(studio.labels) and studio.free
        guidance = gr.Slider(
            0, 8, 1, step=0.1, label="Guidance: 1 is the model's own", visible=guided
        )
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31)
    button = gr.Button("Sample", variant="primary")
    told = gr.Markdown(elem_id="sample-text")
    with gr.Row():
        z_shown, x_shown = _output("z, the noisy images"), _output("x̂, what they will be")

    def sample(
        sampler: str, steps: float, count: float, label: str, guidance: float, seed: float
    ) -> Iterator[tuple[Any, ...]]:
        named = None if label == _NO_LABEL else label
        path = studio.samples(
            _whole(count),
            _whole(steps),
            sampler,
            label=named,
            guidance=1.0 if named is None else float(guidance),
            seed=_whole(seed),
        )
        for share, gamma, z, x in path:
            text = f"{share:.0%}, γ = {gamma:.2f}" if share < 1 else f"{len(z)} samples, {sampler}"
            yield text, sheet(z, studio.levels), sheet(x, studio.levels)

    inputs = [sampler, steps, count, label, guidance, seed]
    _on(button.click, sample, inputs, [told, z_shown, x_shown])


def _forward_tab(studio: Studio, label: gr.Dropdown) -> None:
    with gr.Row():
        with gr.Column(min_width=280):
            image = _source(studio)
        with gr.Column(min_width=280):
            black = Image.new("RGB", (_CANVAS, _CANVAS))
            canvas = _canvas("Or draw one", brush="#ffffff", value=black)
            drawn = gr.Button("Take the drawing")
    t = gr.Slider(0, 1, 0.5, step=0.01, label="t: 0 is the image, 1 is noise")
    told = gr.Markdown(elem_id="forward-text")
    with gr.Row():
        z_shown, x_shown = _output("z, scaled to the image"), _output("x̂, the model's estimate")

    def forward(x: np.ndarray | None, t: float, label: str) -> tuple[Any, ...]:
        if x is None:
            return "Choose an image first.", None, None
        found = studio.forward(x, float(t), label=None if label == _NO_LABEL else label)
        error = float(np.abs(found.x.astype(float) - x).mean()) / (studio.levels - 1)
        text = (
            f"γ = **{found.gamma:.2f}**, SNR = exp(−γ) = **{found.snr:.4g}**; "
            f"x̂ is off by {error:.1%} of the range on average"
        )
        return text, _enlarged(found.z, studio.levels), _enlarged(found.x, studio.levels)

    def draw(value: dict[str, Any] | None) -> np.ndarray:
        if value is None or value["composite"] is None:
            raise InputError("Nothing is drawn yet")
        channels, height, width = studio.shape
        return read_upload(value["composite"], channels, studio.levels, (height, width))

    outputs = [told, z_shown, x_shown]
    _on(drawn.click, draw, [canvas], [image])
    for event in (image.change, t.release, t.change):
        _on(event, forward, [image, t, label], outputs, trigger_mode="always_last")


def _likelihood_tab(studio: Studio, label: gr.Dropdown) -> None:
    image = _source(studio)
    button = gr.Button("How likely is it?", variant="primary")
    told = gr.Markdown(elem_id="likelihood-text")
    with gr.Row():
        histogram, mapped = _output("Among test images"), _output("Bits of each pixel")

    def likelihood(x: np.ndarray | None, label: str) -> tuple[Any, ...]:
        found = studio.likelihood(_there(x), label=None if label == _NO_LABEL else label)
        text = f"**{found.bits_per_dim:.3f} bits/dim** ± {found.error:.3f} (by the draws)"
        if len(found.others):
            text += (
                f". {found.place:.0%} of {len(found.others)} test images take fewer bits; their "
                f"median is {np.median(found.others):.3f}"
            )
        low, high = float(found.map.min()), float(found.map.max())
        text += f". Pixels take {low:.2f} (dark) to {high:.2f} bits (light)."
        heat = heat_maps(found.map[None], low, high).astype(np.uint8)[0]
        return text, _histogram(found), _enlarged(heat, 256)

    _on(button.click, likelihood, [image, label], [told, histogram, mapped])


def _inpaint_tab(studio: Studio, label: gr.Dropdown) -> None:
    with gr.Row():
        with gr.Column(min_width=280):
            image = _source(studio)
        with gr.Column(min_width=280):
            canvas = _canvas("Paint a hole", brush="#ff3b30")
    with gr.Row():
        steps = gr.Slider(1, MOST_STEPS, 50, step=1, label="Steps, each done three times")
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31)
    button = gr.Button("Inpaint", variant="primary")
    told = gr.Markdown(elem_id="inpaint-text")
    result = _output("Result")

    def onto_canvas(x: np.ndarray | None) -> Any:
        if x is None:
            return None
        picture = _enlarged(x, studio.levels).convert("RGB")
        side = (_CANVAS, round(_CANVAS * picture.height / picture.width))
        picture = picture.resize(side, Image.Resampling.NEAREST)
        return picture

    def inpaint(
        x: np.ndarray | None, value: dict[str, Any] | None, steps: float, label: str, seed: float
    ) -> Iterator[tuple[Any, ...]]:
        x, (_, height, width) = _there(x), studio.shape
        mask = np.zeros((height, width), bool)
        for layer in (value or {}).get("layers", []):
            mask |= read_mask(layer, (height, width))
        named = None if label == _NO_LABEL else label
        for share, stage in studio.inpaint(x, mask, _whole(steps), label=named, seed=_whole(seed)):
            kept = int((stage == x).all(0)[~mask].sum())
            text = (
                f"{share:.0%}"
                if share < 1
                else (
                    f"{int(mask.sum())} pixels painted anew; "
                    f"{kept} of the {int((~mask).sum())} others are as they were"
                )
            )
            yield text, _enlarged(stage, studio.levels)

    _on(image.change, onto_canvas, [image], [canvas])
    _on(button.click, inpaint, [image, canvas, steps, label, seed], [told, result])


def _compress_tab(studio: Studio) -> None:
    height, width = studio.shape[1:]
    gr.Markdown(
        f"An image of any size up to {MOST_TILES} tiles of {height}×{width} pixels, which is not "
        "scaled. Bits back begins with tiles that are stored without the model, so small images "
        "gain nothing alone; `vdm compress` puts many into one file."
    )
    image = _source(studio, scaled=False)
    with gr.Row():
        button = gr.Button("Compress", variant="primary")
        back = gr.Button("Decompress")
    told = gr.Markdown(elem_id="compress-text")
    link = gr.HTML()
    again = gr.Markdown(elem_id="decompress-text")
    result = _output("Decompressed")
    kept = gr.State(None)

    def compress(x: np.ndarray | None) -> tuple[Any, ...]:
        x = _there(x)
        found = studio.compress(x)
        size = len(found.content)
        way = "by the model" if found.by_model else "without the model, which would take more"
        rows = [f"| .vdmz, {way} | **{size:,}** | {8 * size / x.size:.3f} |"]
        rows += [f"| {name} | {n:,} | {8 * n / x.size:.3f} |" for name, n in found.pictures.items()]
        text = "| | bytes | bits/dim |\n|---|---|---|\n" + "\n".join(rows)
        return text, found.content, _download(found.content), "", None

    def decompress(content: bytes | None, x: np.ndarray | None) -> tuple[Any, ...]:
        if content is None:
            raise InputError("Compress an image first")
        values = studio.decompress(content)
        unchanged = x is not None and np.array_equal(values, x)
        same = "the same in every bit" if unchanged else "another than before"
        return f"{values.size:,} values decoded: {same}", _enlarged(values, studio.levels)

    outputs = [told, kept, link, again, result]
    _on(button.click, compress, [image], outputs)
    _on(image.change, lambda: ("", None, "", "", None), [], outputs)
    _on(back.click, decompress, [kept, image], [again, result])


def _source(studio: Studio, *, scaled: bool = True) -> gr.State:
    """Add an upload and a button for test examples; return what holds the image, or None."""
    image, number = gr.State(None), gr.State(0)
    upload = gr.File(label=f"Upload, up to {MAX_BYTES >> 20} MB", type="binary", height=120)
    button = gr.Button("Take a test image")
    shown = _output("Image")

    def take(content: bytes | None) -> np.ndarray | None:
        if content is None:
            return None
        height, width = studio.shape[1:]
        size = (height, width) if scaled else None
        most = {} if scaled else {"max_pixels": MOST_TILES * height * width}
        return read_upload(content, studio.shape[0], studio.levels, size, **most)

    taken = _on(upload.upload, take, [upload], [image])
    for ended in (taken.success, taken.failure):  # ready for the next one
        ended(lambda: None, [], [upload], api_visibility="private")
    _on(button.click, lambda n: (studio.test_example(n), n + 1), [number], [image, number])
    _on(
        image.change,
        lambda x: None if x is None else _enlarged(x, studio.levels),
        [image],
        [shown],
    )
    return image


def _output(label: str) -> gr.Image:
    return gr.Image(
        label=label,
        type="pil",
        format="png",
        interactive=False,
        height=300,
        buttons=["download"],
        elem_classes="pixels",
    )


def _canvas(label: str, brush: str, value: Image.Image | None = None) -> gr.ImageEditor:
    """Return a canvas to paint on; a function is given its pictures as bytes, not decoded.

    value: what it shows at first, and what is drawn on.
    """
    canvas = gr.ImageEditor(
        value,
        label=label,
        sources=(),
        transforms=(),
        layers=gr.LayerOptions(allow_additional_layers=False),
        canvas_size=(_CANVAS, _CANVAS),
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


def _on(
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


def _download(content: bytes) -> str:
    """Return a link that holds the bytes themselves: no file is made for them."""
    held = base64.b64encode(content).decode()
    return (
        f'<a download="image.vdmz" href="data:application/octet-stream;base64,{held}">Download '
        "image.vdmz</a> (<code>vdm decompress</code> reads it)"
    )


def _there(x: np.ndarray | None) -> np.ndarray:
    if x is None:
        raise InputError("Choose an image first")
    return x


def _whole(value: float | None) -> int:
    if value is None or not math.isfinite(value):
        raise InputError("A number is missing")
    return int(value)


def _enlarged(image: np.ndarray, levels: int) -> Image.Image:
    """Return an image with its pixels as squares, at least about `_SIDE` wide."""
    scale = max(1, round(_SIDE / max(image.shape[1:])))
    picture = sheet(image[None], levels, scale=scale)
    return picture.crop((2, 2, picture.width - 2, picture.height - 2))  # without the frame


def _histogram(found: Likelihood) -> Image.Image:
    """Return the test images' bits per dimension, and where the image is among them."""
    figure = Figure(figsize=(4.2, 3), dpi=120, layout="constrained")
    axes = figure.subplots()
    if len(found.others):
        axes.hist(found.others, bins=30, color="#9db8d2")
    axes.axvline(found.bits_per_dim, color="#D55E00", linewidth=2, label="this image")
    axes.set_xlabel("bits per dimension")
    axes.set_ylabel("test images")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return Image.open(file)
