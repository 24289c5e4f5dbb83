"""Pictures of the README, the start page and the gallery: real runs, fixed seeds.

    make pictures                          all of them
    python docs/pictures.py film.gif       one of them

A run that is not in the folder of runs is trained first: digits takes 3 minutes of one core,
Fashion-MNIST 20. The emoji need their array, which benchmarks/emoji.py makes; without it their
picture is left as it is. Everything runs on one thread: the same seed gives the same picture.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from PIL import Image

import variational_diffusion as vd
from variational_diffusion import process
from variational_diffusion.anomaly import Scored, save_score_sheet
from variational_diffusion.compression.baselines import code_lengths, picture_lengths
from variational_diffusion.images.pictures import animation, save_sheet
from variational_diffusion.run.examples import own_data
from variational_diffusion.run.samples import sample_run

RUNS = Path("runs")
TO = Path(__file__).parent / "figures"
TRAINED = {
    "digits": ("digits", 2866),
    "fashion": ("fashion-mnist", 5000),
    "emoji": ("emoji-32.npy", 1500),
}
"""Name of a run → its data and its steps."""

BLUE, GREY, GREEN = "#0072B2", "#767676", "#009E73"
STAGES, LOWEST = 11, -5.0
"""Noise levels γ of a strip, and the lowest: below it nobody sees noise."""
CODED, SCORED, HELD_OUT = 300, 800, 500
"""Fashion-MNIST test images that are coded and scored, and validation images for p-values."""


@cache
def run(name: str) -> vd.Run:
    """Return a trained run, trained now where there is none."""
    data, steps = TRAINED[name]
    if (RUNS / name / "ema.safetensors").exists():
        return vd.Run.open(RUNS / name)
    return vd.train(data, RUNS / name, steps=steps, seed=0, threads=1)


@cache
def outliers() -> Scored:
    return vd.score(
        run("fashion"), split="test", limit=SCORED, reference=HELD_OUT, draws=1, threads=1
    )


@cache
def coders() -> dict[str, float]:
    """Return bits per pixel by coder, the model's own first, for the same test images."""
    images = own_data(run("fashion")).splits["test"].sample(CODED).read()
    bound = vd.evaluate(run("fashion"), limit=CODED, threads=1)
    needed = code_lengths(images, 256) | picture_lengths(images, 256)
    return {
        "this model (bound)": bound.bits_per_dim,
        "JPEG XL": needed["JPEG XL (one mosaic)"],
        "xz": needed["xz"],
        "WebP": needed["WebP lossless (one mosaic)"],
        "PNG": needed["PNG (one mosaic)"],
    }


def banner(path: Path) -> None:
    """Forward and reverse process, schedule, outliers and coders, in one picture."""
    figure = Figure(figsize=(10.12, 5.7), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1, 1.15])
    for axes, title, images, labels in zip(above.subplots(2, 1), *strips(), strict=True):
        draw_row(axes, images, labels)
        titled(axes, title)
    times, anomalous, bits = below.subfigures(1, 3, width_ratios=[0.95, 1.15, 1.15])
    draw_schedule(times)
    draw_outliers(anomalous)
    draw_coders(bits)
    save(figure, path, dpi=200)


def strips() -> tuple[list[str], list[np.ndarray], list[list[str]]]:
    """Return titles, images and labels: an image that gets noise, a sample that loses it."""
    vdm = run("fashion").model(device="cpu")
    x = own_data(run("fashion")).splits["test"].read(np.array([29]))
    gamma_0, gamma_1 = vdm.schedule.end_points.tolist()
    shown = torch.linspace(LOWEST, gamma_1, STAGES)
    grid = torch.linspace(gamma_1, gamma_0, 251)
    with torch.no_grad():
        noise, draws = torch.Generator().manual_seed(1), torch.Generator().manual_seed(4)
        encoded = vdm.decoder.encode(torch.from_numpy(x))
        forward = torch.cat([process.q_t(encoded, gamma).sample(noise) for gamma in shown])
        way = vdm.trajectory(1, gammas=grid, sampler="ancestral", generator=draws)
        path = torch.cat([z for _, z in way])
        reverse = path[[int((grid - gamma).abs().argmin()) for gamma in shown.flip(0)]]
        images = [
            np.concatenate([x, vdm.decoder.decode(forward).numpy()])[:, 0],
            vdm.decoder.decode(torch.cat([reverse, path[-1:]])).numpy()[:, 0],
        ]
    levels = [f"γ = {gamma:.1f}".replace("-", "−") for gamma in shown.tolist()]
    titles = [
        "Forward process: an image x gets noise, $z_\\gamma$ ~ q($z_\\gamma$ | x)",
        "Reverse process: the trained model takes noise away until a new image is there",
    ]
    return titles, images, [["x", *levels], [*reversed(levels), "sample"]]


def draw_row(axes: Axes, images: np.ndarray, labels: list[str], gap: int = 2) -> None:
    """Draw grey images, shape (n, height, width), side by side with a label under each."""
    height, width = images.shape[1:]
    padded = np.pad(images, ((0, 0), (0, 0), (0, gap)), constant_values=255)
    axes.imshow(
        np.concatenate(list(padded), 1)[:, :-gap],
        cmap="gray",
        vmin=0,
        vmax=255,
        interpolation="nearest",
    )
    for i, label in enumerate(labels):
        middle = i * (width + gap) + width / 2
        axes.text(middle, height + 1, label, ha="center", va="top", fontsize=7)


def draw_schedule(figure: SubFigure) -> None:
    axes = figure.subplots()
    learned = run("fashion").model(device="cpu").schedule
    ends = learned.end_points.tolist()
    t = torch.linspace(0, 1, 401)
    for label, schedule, style, colour in (
        ("cosine", vd.Cosine(*ends), "--", GREEN),
        ("linear", vd.FixedLinear(*ends), "--", GREY),
        ("learned", learned, "-", BLUE),
    ):
        with torch.no_grad():
            axes.plot(t, schedule(t), style, color=colour, label=label)
    axes.set_xlabel("time t", fontsize=8)
    axes.set_ylabel("noise level γ = −log SNR", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    titled(axes, "The noise schedule is learned", hidden=False)


def draw_outliers(figure: SubFigure, each: int = 6) -> None:
    found = outliers()
    for axes, rows, title in zip(
        figure.subplots(3, 1),
        (found.order[:each], found.order[each : 2 * each], found.order[-each:]),
        (f"The most anomalous of {len(found)} test images", "", "The most normal"),
        strict=True,
    ):
        draw_row(axes, found.read(rows)[:, 0], [f"p {p:.1g}" for p in found.p_value[rows]])
        titled(axes, title)


def draw_coders(figure: SubFigure) -> None:
    axes = figure.subplots()
    names, bits = zip(*reversed(coders().items()), strict=True)
    bars = axes.barh(names, bits, color=[BLUE if "model" in name else GREY for name in names])
    axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
    axes.tick_params(labelsize=8, left=False)
    axes.set_xticks([])
    axes.margins(x=0.15)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    titled(axes, f"Bits per pixel of {CODED} test images", hidden=False)


def titled(axes: Axes, title: str, *, hidden: bool = True) -> None:
    axes.set_title(title, fontsize=9, loc="left")
    if hidden:
        axes.set_axis_off()


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure with 256 colours, which halves its size and cannot be seen."""
    figure.savefig(path, dpi=dpi)
    with Image.open(path) as drawn:
        drawn.convert("RGB").quantize(256).save(path, optimize=True)


def film(path: Path) -> None:
    """The reverse process of 12 digits: z, and beside it what the model takes it for."""
    samples = sample_run(
        run("digits"), 12, sampler="ancestral", steps=256, frames=32, seed=0, threads=1
    )
    animation(samples.frames, samples.vdm.levels, path, overwrite=True)


def samples(name: str, count: int, columns: int, scale: int) -> Callable[[Path], None]:
    """Return what writes samples of a run as a sheet."""

    def write(path: Path) -> None:
        drawn = run(name).sample(count, seed=0, threads=1)
        save_sheet(drawn, run(name).config.data.levels, path, columns, scale, overwrite=True)

    return write


def outlier_sheet(path: Path) -> None:
    path.unlink(missing_ok=True)
    save_score_sheet(outliers(), path)


def badge(label: str, value: str) -> Callable[[Path], None]:
    """Return what writes two words side by side as an .svg of the size that badges have."""
    left, right = (7 * len(word) + 12 for word in (label, value))
    letters = 'y="14" fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11"'
    size = f'width="{left + right}" height="20"'
    drawn = f"""<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">
<title>{label}: {value}</title>
<rect {size} rx="3" fill="#555"/>
<path d="M{left} 0h{right - 3}a3 3 0 0 1 3 3v14a3 3 0 0 1 -3 3h-{right - 3}z" fill="{BLUE}"/>
<text x="{left / 2}" text-anchor="middle" {letters}>{label}</text>
<text x="{left + right / 2}" text-anchor="middle" {letters}>{value}</text>
</svg>
"""

    def write(path: Path) -> None:
        path.write_text(drawn, encoding="utf-8")

    return write


def project() -> dict[str, Any]:
    """Return what pyproject.toml says of the project: what badges may claim."""
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    found: dict[str, Any] = tomllib.loads(text)["project"]
    return found


PICTURES: dict[str, Callable[[Path], None]] = {
    "banner.png": banner,
    "film.gif": film,
    "samples.png": samples("fashion", 64, columns=16, scale=2),
    "emoji.png": samples("emoji", 28, columns=14, scale=2),
    "outliers.png": outlier_sheet,
    "badge-version.svg": badge("version", project()["version"]),
    "badge-python.svg": badge("python", project()["requires-python"].removeprefix(">=") + "+"),
    "badge-licence.svg": badge("licence", project()["license"]),
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(PICTURES)))
def main(names: tuple[str, ...]) -> None:
    """Make the pictures NAMES, or all of them."""
    for name in names or PICTURES:
        try:
            PICTURES[name](TO / name)
        except vd.InputError as error:
            print(f"{name}: left as it is; {error}")
        else:
            print(f"{name}: {(TO / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
