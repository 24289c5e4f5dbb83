"""The figures of a report, each of one pair of axes, so that a phone can stack them."""

from __future__ import annotations

import math
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from variational_diffusion.report.curves import Curve, Training, settled_range
from variational_diffusion.report.svg import COLOURS

_STYLE: Any = {
    "font.size": 9,
    "text.color": COLOURS["text"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.edgecolor": COLOURS["line"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.5,
    "grid.alpha": 0.6,
    "axes.axisbelow": True,
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "lines.linewidth": 1.6,
}
_SIZE = (4.8, 3.0)
_MARGINS = {"left": 0.15, "right": 0.98, "bottom": 0.15, "top": 0.97}
"""The same for all, so that axes beside each other are in line."""

_SCHEDULES = {
    "learned": (COLOURS["blue"], "-"),
    "linear": (COLOURS["grey"], "--"),
    "cosine": (COLOURS["green"], "-."),
    "best": (COLOURS["orange"], ":"),
}


def bits_figure(training: Training) -> Figure:
    """Draw the bits/dim of training batches and of the validation over the steps."""
    figure, axes = _axes("step", "bits per dimension")
    _band(axes, training.bound, "training batches", COLOURS["blue"])
    drawn = [training.bound]
    if len(training.validation.x):
        _band(axes, training.validation, "validation", COLOURS["orange"], "o-", markersize=3)
        drawn.append(training.validation)
    axes.set_ylim(*settled_range(*drawn))
    _legend(axes)
    return figure


def terms_figure(training: Training) -> Figure:
    """Draw the terms of the bound that the end points of the schedule decide."""
    figure, axes = _axes("step", "bits per dimension")
    axes.plot(training.prior.x, training.prior.y, color=COLOURS["blue"], label="prior")
    reconstruction = training.reconstruction
    axes.plot(
        reconstruction.x, reconstruction.y, "--", color=COLOURS["orange"], label="reconstruction"
    )
    if min(training.prior.y.min(), reconstruction.y.min()) > 0:
        _logarithmic(axes)
    _legend(axes)
    return figure


def end_points_figure(training: Training) -> Figure:
    """Draw where the ends of the schedule were."""
    figure, axes = _axes("step", "γ = −log SNR")
    axes.plot(training.gamma_1.x, training.gamma_1.y, color=COLOURS["blue"], label="γ₁, noise")
    axes.plot(
        training.gamma_0.x, training.gamma_0.y, "--", color=COLOURS["orange"], label="γ₀, data"
    )
    _legend(axes)
    return figure


def gradient_figure(training: Training) -> Figure:
    """Draw the norm of the gradient."""
    figure, axes = _axes("step", "norm of the gradient")
    axes.plot(training.gradient_norm.x, training.gradient_norm.y, color=COLOURS["blue"])
    if training.gradient_norm.y.min() > 0:
        _logarithmic(axes)
    return figure


def gamma_figure(t: np.ndarray, gammas: dict[str, np.ndarray]) -> Figure:
    """Draw γ(t), by the name of the schedule."""
    curves = {name: (t, gamma) for name, gamma in gammas.items()}
    return _by_schedule(curves, "time t", "γ = −log SNR")[0]


def snr_figure(t: np.ndarray, gammas: dict[str, np.ndarray]) -> Figure:
    """Draw SNR(t) = exp(−γ(t))."""
    curves = {name: (t, np.exp(-gamma)) for name, gamma in gammas.items()}
    figure, axes = _by_schedule(curves, "time t", "signal-to-noise ratio")
    _logarithmic(axes)
    return figure


def profile_figure(
    gamma: np.ndarray, mean: np.ndarray, low: np.ndarray, high: np.ndarray
) -> Figure:
    """Draw the loss m(γ): its mean, and its 10th to 90th percentile."""
    figure, axes = _axes("γ = −log SNR", "bits/dim and unit of γ")
    axes.fill_between(
        gamma, low, high, color=COLOURS["blue"], alpha=0.2, linewidth=0, label="10 % to 90 %"
    )
    axes.plot(gamma, mean, color=COLOURS["blue"], label="mean")
    axes.set_ylim(bottom=0)
    _legend(axes)
    return figure


def density_figure(
    curves: dict[str, tuple[np.ndarray, np.ndarray]], gamma: np.ndarray, best: np.ndarray
) -> Figure:
    """Draw how often each γ is drawn in training, and how often would be best.

    curves: (γ, density) by the name of the schedule.
    """
    curves = {**curves, "best": (gamma, best)}
    figure, axes = _by_schedule(curves, "γ = −log SNR", "density p(γ)")
    axes.set_ylim(0, 1.6 * float(best.max()))
    return figure


def histogram_figure(values: dict[str, np.ndarray], label: str, *, bins: int = 40) -> Figure:
    """Draw one or two histograms over the same bins, by the name of the values."""
    figure, axes = _axes(label, "share")
    both = np.concatenate(list(values.values()))
    low, high = float(both.min()), float(both.max())
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    for (name, each), colour in zip(values.items(), ("blue", "orange"), strict=False):
        counts, _ = np.histogram(each, edges)
        axes.stairs(
            counts / len(each), edges, fill=True, alpha=0.5, color=COLOURS[colour], label=name
        )
    if len(values) > 1:
        _legend(axes)
    return figure


def difference_figure(bits: np.ndarray, difference: np.ndarray, mean: float) -> Figure:
    """Draw the difference of two models over the bits of the first, both of shape (n,).

    mean: of all differences, a line.
    """
    figure, axes = _axes("bits per dimension of this run", "difference, bits/dim")
    axes.axhline(0, linestyle="--", linewidth=1, color=COLOURS["grey"])
    axes.plot(bits, difference, ".", markersize=3, alpha=0.6, color=COLOURS["blue"])
    axes.axhline(mean, color=COLOURS["orange"], label="mean")
    axes.yaxis.set_major_formatter(FuncFormatter(_short))
    _legend(axes)
    return figure


def scatter_figure(values: dict[str, np.ndarray]) -> Figure:
    """Draw points, shape (n, 2), by the name of the values."""
    figure, axes = _axes("first entry", "second entry")
    for (name, each), colour in zip(values.items(), ("blue", "orange"), strict=False):
        axes.plot(*each.T, ".", markersize=2.5, alpha=0.6, color=COLOURS[colour], label=name)
    _legend(axes, markerscale=3)
    return figure


def _by_schedule(
    curves: dict[str, tuple[np.ndarray, np.ndarray]], x: str, y: str
) -> tuple[Figure, Axes]:
    figure, axes = _axes(x, y)
    for name, (level, value) in curves.items():
        colour, style = _SCHEDULES[name]
        axes.plot(level, value, style, color=colour, label=name)
    _legend(axes)
    return figure, axes


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE)
        axes = figure.subplots(gridspec_kw=_MARGINS)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    return figure, axes


def _band(axes: Axes, curve: Curve, name: str, colour: str, style: str = "-", **line: Any) -> None:
    axes.fill_between(
        curve.x,
        curve.y - curve.error,
        curve.y + curve.error,
        color=colour,
        alpha=0.22,
        linewidth=0,
    )
    axes.plot(curve.x, curve.y, style, color=colour, label=name, **line)


def _legend(axes: Axes, **options: Any) -> None:
    axes.legend(frameon=False, labelcolor=COLOURS["text"], **options)


def _logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    within_two_decades = high < 100 * low
    subdivisions = (1.0, 2.0, 5.0) if within_two_decades else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subdivisions, numticks=7))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(_power))


def _short(value: float, _: object = None) -> str:
    """Return a number as an axis shows it: 20k for twenty thousand."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}".replace("-", "−")
    return f"{value:g}".replace("-", "−")


def _power(value: float, _: object = None) -> str:
    """Return a power of ten with a raised exponent; ordinary numbers as they are."""
    if 0.9e-3 < value < 5e3:
        return f"{value:g}"
    exponent = str(round(math.log10(value)))
    if not math.isclose(value, 10.0 ** int(exponent)):
        return f"{value:g}"
    return "10" + exponent.translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
