"""The page of `vdm serve`: its tabs, put together, and the guard before it."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
from fastapi import FastAPI
from starlette.types import ASGIApp

from variational_diffusion.escaping import markdown
from variational_diffusion.web.guard import Guard
from variational_diffusion.web.studio import Studio
from variational_diffusion.web.tabs import (
    NO_LABEL,
    compress_tab,
    forward_tab,
    inpaint_tab,
    likelihood_tab,
    sample_tab,
)
from variational_diffusion.web.uploads import MAX_BYTES

_WAITING = 16
"""Requests that wait for the model; more are turned away."""
_CSS = """
.gradio-container { width: 100% !important; max-width: 1100px !important; }
.gradio-container { margin: 0 auto !important; }
.pixels img { image-rendering: pixelated; }
footer { display: none !important; }
"""


def application(studio: Studio, folder: Path, token: str | None) -> ASGIApp:
    """Return the page, guarded.

    folder: of its files. token: what its address has to have; None: all users of this machine can
    open it.
    """
    page = build(studio)
    page.max_threads, page.state_session_capacity = 8, 100
    page.queue(max_size=_WAITING, default_concurrency_limit=1, api_open=False)
    font = ["system-ui", "sans-serif"]
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="/",
        max_file_size=MAX_BYTES,
        show_error=False,
        ssr_mode=False,
        run_history=False,
        footer_links=[],
        theme=gr.themes.Default(font=font, font_mono=["ui-monospace", "monospace"]),
        css=_CSS,
    )
    return Guard(app, folder, token)


def build(studio: Studio) -> gr.Blocks:
    """Return the page, not started."""
    channels, height, width = studio.shape
    with gr.Blocks(analytics_enabled=False, title="vdm serve", delete_cache=(600, 3600)) as page:
        gr.Markdown(
            f"# {markdown(studio.run.path.resolve().name)}\n{height}×{width} images, "
            f"{ {1: 'grey', 3: 'colour', 4: 'colour with opacity'}[channels] }, "
            f"{studio.levels:,} levels. An uploaded image is cropped and scaled to that size."
        )
        choices = ([NO_LABEL] if studio.free else []) + list(studio.labels)
        label = gr.Dropdown(
            choices or [NO_LABEL],
            value=(choices or [NO_LABEL])[0],
            label="Label: what all tabs but the last are given",
            visible=bool(studio.labels),
        )
        with gr.Tab("Sample"):
            sample_tab(studio, label)
        with gr.Tab("Forward process"):
            forward_tab(studio, label)
        with gr.Tab("Likelihood"):
            likelihood_tab(studio, label)
        with gr.Tab("Inpaint"):
            inpaint_tab(studio, label)
        if studio.free:
            with gr.Tab("Compress"):
                compress_tab(studio)
    return page
