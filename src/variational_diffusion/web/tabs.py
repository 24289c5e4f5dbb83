"""The tabs of the page: what `studio` does, in the browser."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import gradio as gr
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from variational_diffusion.errors import InputError
from variational_diffusion.images.pictures import sheet
from variational_diffusion.report.images import heat_maps
from variational_diffusion.run.editing import REPEATS
from variational_diffusion.sampling import DEFAULT_STEPS, SAMPLERS, default_for
from variational_diffusion.web.parts import (
    CANVAS,
    canvas_of,
    enlarged,
    on,
    output,
    source,
    there,
    whole,
)
from variational_diffusion.web.studio import (
    MOST_SAMPLES,
    MOST_STEPS,
    MOST_TILES,
    Likelihood,
    Studio,
)
from variational_diffusion.web.uploads import read_mask, read_upload

NO_LABEL = "none"


def sample_tab(studio: Studio, label: gr.Dropdown) -> None:
    with gr.Row():
        sampler = gr.Dropdown(list(SAMPLERS), value=default_for(studio.shape), label="Sampler")
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
        z_shown, x_shown = output("z, the noisy images"), output("x̂, what they will be")

    def sample(
        sampler: str, steps: float, count: float, label: str, guidance: float, seed: float
    ) -> Iterator[tuple[Any, ...]]:
        named = _named(label)
        path = studio.samples(
            whole(count),
            whole(steps),
            sampler,
            label=named,
            guidance=1.0 if named is None else float(guidance),
            seed=whole(seed),
        )
        for share, gamma, z, x in path:
            text = f"{share:.0%}, γ = {gamma:.2f}" if share < 1 else f"{len(z)} samples, {sampler}"
            yield text, sheet(z, studio.levels), sheet(x, studio.levels)

    inputs = [sampler, steps, count, label, guidance, seed]
    on(button.click, sample, inputs, [told, z_shown, x_shown])


def forward_tab(studio: Studio, label: gr.Dropdown) -> None:
    with gr.Row():
        with gr.Column(min_width=280):
            image = source(studio)
        with gr.Column(min_width=280):
            black = Image.new("RGB", (CANVAS, CANVAS))
            canvas = canvas_of("Or draw one", brush="#ffffff", value=black)
            drawn = gr.Button("Take the drawing")
    t = gr.Slider(0, 1, 0.5, step=0.01, label="t: 0 is the image, 1 is noise")
    told = gr.Markdown(elem_id="forward-text")
    with gr.Row():
        z_shown, x_shown = output("z, scaled to the image"), output("x̂, the model's estimate")

    def forward(x: np.ndarray | None, t: float, label: str) -> tuple[Any, ...]:
        if x is None:
            return "Choose an image first.", None, None
        found = studio.forward(x, float(t), label=_named(label))
        error = float(np.abs(found.x.astype(float) - x).mean()) / (studio.levels - 1)
        text = (
            f"γ = **{found.gamma:.2f}**, SNR = exp(−γ) = **{found.snr:.4g}**; "
            f"x̂ is off by {error:.1%} of the range on average"
        )
        return text, enlarged(found.z, studio.levels), enlarged(found.x, studio.levels)

    def draw(value: dict[str, Any] | None) -> np.ndarray:
        if value is None or value["composite"] is None:
            raise InputError("Nothing is drawn yet")
        channels, height, width = studio.shape
        return read_upload(value["composite"], channels, studio.levels, (height, width))

    outputs = [told, z_shown, x_shown]
    on(drawn.click, draw, [canvas], [image])
    for event in (image.change, t.release, t.change):
        on(event, forward, [image, t, label], outputs, trigger_mode="always_last")


def likelihood_tab(studio: Studio, label: gr.Dropdown) -> None:
    image = source(studio)
    button = gr.Button("How likely is it?", variant="primary")
    told = gr.Markdown(elem_id="likelihood-text")
    with gr.Row():
        histogram, mapped = output("Among test images"), output("Bits of each pixel")

    def likelihood(x: np.ndarray | None, label: str) -> tuple[Any, ...]:
        found = studio.likelihood(there(x), label=_named(label))
        text = f"**{found.bits_per_dim:.3f} bits/dim** ± {found.error:.3f} (by the draws)"
        if len(found.others):
            text += (
                f". {found.place:.0%} of {len(found.others)} test images take fewer bits; their "
                f"median is {np.median(found.others):.3f}"
            )
        low, high = float(found.map.min()), float(found.map.max())
        text += f". Pixels take {low:.2f} (dark) to {high:.2f} bits (light)."
        heat = heat_maps(found.map[None], low, high).astype(np.uint8)[0]
        return text, _histogram(found), enlarged(heat, 256)

    on(button.click, likelihood, [image, label], [told, histogram, mapped])


def inpaint_tab(studio: Studio, label: gr.Dropdown) -> None:
    with gr.Row():
        with gr.Column(min_width=280):
            image = source(studio)
        with gr.Column(min_width=280):
            canvas = canvas_of("Paint a hole", brush="#ff3b30")
    with gr.Row():
        steps = gr.Slider(1, MOST_STEPS, 50, step=1, label=f"Steps, each done {REPEATS} times")
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31)
    button = gr.Button("Inpaint", variant="primary")
    told = gr.Markdown(elem_id="inpaint-text")
    result = output("Result")

    def onto_canvas(x: np.ndarray | None) -> Any:
        if x is None:
            return None
        picture = enlarged(x, studio.levels).convert("RGB")
        side = (CANVAS, round(CANVAS * picture.height / picture.width))
        picture = picture.resize(side, Image.Resampling.NEAREST)
        return picture

    def inpaint(
        x: np.ndarray | None, value: dict[str, Any] | None, steps: float, label: str, seed: float
    ) -> Iterator[tuple[Any, ...]]:
        x, (_, height, width) = there(x), studio.shape
        mask = np.zeros((height, width), bool)
        for layer in (value or {}).get("layers", []):
            mask |= read_mask(layer, (height, width))
        named = _named(label)
        for share, stage in studio.inpaint(x, mask, whole(steps), label=named, seed=whole(seed)):
            kept = int((stage == x).all(0)[~mask].sum())
            text = (
                f"{share:.0%}"
                if share < 1
                else (
                    f"{int(mask.sum())} pixels painted anew; "
                    f"{kept} of the {int((~mask).sum())} others are as they were"
                )
            )
            yield text, enlarged(stage, studio.levels)

    on(image.change, onto_canvas, [image], [canvas])
    on(button.click, inpaint, [image, canvas, steps, label, seed], [told, result])


def compress_tab(studio: Studio) -> None:
    height, width = studio.shape[1:]
    gr.Markdown(
        f"An image of any size up to {MOST_TILES} tiles of {height}×{width} pixels, which is not "
        "scaled. Bits back begins with tiles that are stored without the model, so small images "
        "gain nothing alone; `vdm compress` puts many into one file."
    )
    image = source(studio, scaled=False)
    with gr.Row():
        button = gr.Button("Compress", variant="primary")
        back = gr.Button("Decompress")
    told = gr.Markdown(elem_id="compress-text")
    link = gr.HTML()
    again = gr.Markdown(elem_id="decompress-text")
    result = output("Decompressed")
    kept = gr.State(None)

    def compress(x: np.ndarray | None) -> tuple[Any, ...]:
        x = there(x)
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
        return f"{values.size:,} values decoded: {same}", enlarged(values, studio.levels)

    outputs = [told, kept, link, again, result]
    on(button.click, compress, [image], outputs)
    on(image.change, lambda: ("", None, "", "", None), [], outputs)
    on(back.click, decompress, [kept, image], [again, result])


def _named(label: str) -> str | None:
    return None if label == NO_LABEL else label


def _download(content: bytes) -> str:
    """Return a link that holds the bytes themselves: no file is made for them."""
    held = base64.b64encode(content).decode()
    return (
        f'<a download="image.vdmz" href="data:application/octet-stream;base64,{held}">Download '
        "image.vdmz</a> (<code>vdm decompress</code> reads it)"
    )


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
