"""Figures, drawn with matplotlib and written as .png or .svg."""

from __future__ import annotations

import os

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from variational_diffusion import process
from variational_diffusion.errors import InputError
from variational_diffusion.likelihood.loss_profile import Profile, Variances
from variational_diffusion.schedules import Cosine, FixedLinear, Schedule
from variational_diffusion.storage.files import atomic, expanded

FIGURES = (".png", ".svg")
"""Endings of their names."""
_COLOURS = {"learned": "#0072B2", "optimum": "#D55E00", "linear": "#767676", "cosine": "#009E73"}
_STYLES = {"learned": "-", "optimum": "--", "linear": "-", "cosine": "-."}


def save_figure(
    figure: Figure, path: str | os.PathLike[str], description: str, *, overwrite: bool = False
) -> None:
    """Write a figure as a .png or .svg file, with a description for those who cannot see it.

    The same figure gives the same bytes. Raises InputError for another extension, and when the file
    exists, as `files.atomic` does.
    """
    path = expanded(path)
    kind = path.suffix.lower()
    if kind not in FIGURES:
        raise InputError(f"'{path}' is no figure's name; give one that ends in .png or .svg")
    metadata: dict[str, str | None] = {"Description": description}
    if kind == ".svg":
        metadata["Date"] = None
    with (
        atomic(path, overwrite) as temporary,
        mpl.rc_context({"svg.hashsalt": "vdm", "svg.fonttype": "none"}),
    ):
        figure.savefig(temporary, dpi=120, metadata=metadata)


def schedule_figure(schedule: Schedule, profile: Profile, variances: Variances) -> Figure:
    """Draw what a schedule has learned: γ, SNR, alpha and sigma over t, m(γ), densities, variances.

    profile, variances: of the model that the schedule belongs to, see `likelihood.loss_profile`.
    """
    ends = profile.gamma_0, profile.gamma_1
    schedules = {"learned": schedule, "linear": FixedLinear(*ends), "cosine": Cosine(*ends)}
    t = torch.linspace(0, 1, 1001)
    curves = {}
    for name, each in schedules.items():
        with torch.no_grad():
            curves[name] = [values.cpu() for values in each.gamma_and_rate(t.to(each.gamma_0))]

    figure = Figure(figsize=(12.5, 7), layout="constrained")
    (levels, ratio, scales), (errors, density, bars) = figure.subplots(2, 3)
    for name, (gamma, _) in curves.items():
        levels.plot(t, gamma, _STYLES[name], color=_COLOURS[name], label=name)
        ratio.plot(t, process.snr(gamma), _STYLES[name], color=_COLOURS[name])
    _label(levels, "noise level", "time t", "γ = −log SNR")
    levels.legend(frameon=False)
    ratio.set_yscale("log")
    _label(ratio, "signal-to-noise ratio", "time t", "SNR = exp(−γ)")
    learned = curves["learned"][0]
    scales.plot(t, process.alpha(learned), color=_COLOURS["learned"], label="alpha (signal)")
    scales.plot(t, process.sigma(learned), "--", color=_COLOURS["optimum"], label="sigma (noise)")
    scales.legend(frameon=False)
    _label(scales, "scales of the learned schedule", "time t", "")

    middles = profile.gamma
    errors.fill_between(
        middles, profile.low, profile.high, color=_COLOURS["learned"], alpha=0.2, linewidth=0
    )
    errors.plot(middles, profile.mean, color=_COLOURS["learned"])
    errors.set_ylim(bottom=0)
    _label(
        errors,
        "loss m(γ): mean, and 10 % to 90 %",
        "γ",
        "bits per dimension and unit of γ",
    )
    for name, (level, slope) in curves.items():
        density.plot(level, 1 / slope, _STYLES[name], color=_COLOURS[name], label=name)
    density.plot(
        middles,
        profile.best_density,
        _STYLES["optimum"],
        color=_COLOURS["optimum"],
        label="optimum",
    )
    density.set_ylim(0, 1.6 * float(np.max(profile.best_density)))
    density.legend(frameon=False)
    _label(density, "density of γ, and the best one", "γ", "p(γ) = 1/γ'(t)")

    values = variances._asdict()
    drawn = bars.bar(list(values), list(values.values()), color=[_COLOURS[n] for n in values])
    bars.bar_label(drawn, fmt="%.3g")
    bars.set_yscale("log")
    bars.margins(y=0.15)
    _label(bars, "variance of the diffusion term", "", "(bits/dim)² for one evaluation")
    return figure


def score_figure(
    name: str, calibration: np.ndarray, of: np.ndarray, threshold: float | None = None
) -> Figure:
    """Draw histograms of an anomaly score: calibration examples, shape (n,), and others, (m,).

    threshold: the smallest score that is marked, drawn as a line. The axis is logarithmic where
    positive scores span more than a factor of 100.
    """
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    both = np.concatenate([calibration, of])
    low, high = float(both.min()), float(both.max())
    wide = 0 < 100 * low < high
    edges = np.geomspace(low, high, 60) if wide else np.linspace(low, high + 1e-9, 60)
    edges[0], edges[-1] = low, max(high, edges[-1])  # rounding must leave nobody out
    axes.set_xscale("log" if wide else "linear")
    for values, label, colour in (
        (calibration, "calibration set", "#0072B2"),
        (of, "scored", "#D55E00"),
    ):
        counts = np.histogram(values, edges)[0] / max(1, len(values))
        axes.stairs(
            counts, edges, fill=True, alpha=0.55, label=f"{label} ({len(values):,})", color=colour
        )
    if threshold is not None:
        axes.axvline(threshold, color="black", linestyle="--", label="marked from here")
    _label(axes, "Anomaly scores", name, "share of the examples")
    axes.legend()
    return figure


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
