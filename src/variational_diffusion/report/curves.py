"""The lines of `metrics.jsonl` as curves of a few hundred points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

_POINTS = 240
_WARM_UP = 0.1
"""Share of a training whose figures may be outside of a plot: they are many times the later."""


class Curve(NamedTuple):
    """y over x with a standard error, all of shape (n,)."""

    x: np.ndarray
    y: np.ndarray
    error: np.ndarray


class Training(NamedTuple):
    """What was logged while a run was trained.

    bound, prior, reconstruction: of training batches, bits/dim. validation: bits/dim. gamma_0,
    gamma_1, gradient_norm: without an error. steps, seconds: in all.
    """

    bound: Curve
    prior: Curve
    reconstruction: Curve
    gamma_0: Curve
    gamma_1: Curve
    gradient_norm: Curve
    validation: Curve
    steps: int
    seconds: float


def training_curves(lines: Sequence[dict[str, Any]], batch_size: int) -> Training | None:
    """Return the curves of a run's metrics; None when nothing was logged.

    The error of the bound is that of the mean over the examples of the logged steps, by the
    variance of the diffusion term alone, which is nearly all of it.
    """
    train = [line for line in lines if "train" in line]
    if not train:
        return None
    steps = np.array([line["step"] for line in train])
    examples = np.maximum(1, np.diff(steps, prepend=0)) * batch_size
    errors = np.sqrt(np.array([line["variance"] for line in train]).clip(0) / examples)
    none = np.zeros(len(train))

    def curve(values: list[float], error: np.ndarray = none) -> Curve:
        return thinned(Curve(steps, np.array(values, dtype=float), error))

    validation = [line for line in lines if "validation" in line]
    summaries = [line["validation"] for line in validation]
    return Training(
        bound=curve([sum(line["train"].values()) for line in train], errors),
        prior=curve([line["train"]["prior"] for line in train]),
        reconstruction=curve([line["train"]["reconstruction"] for line in train]),
        gamma_0=curve([line["gamma_0"] for line in train]),
        gamma_1=curve([line["gamma_1"] for line in train]),
        gradient_norm=curve([line["gradient_norm"] for line in train]),
        validation=thinned(
            Curve(
                np.array([line["step"] for line in validation], dtype=int),
                np.array([s["bits_per_dim"] for s in summaries], dtype=float),
                np.array([s["standard_error"] or math.nan for s in summaries], dtype=float),
            ),
            correlated=True,
        ),
        steps=int(max(line["step"] for line in lines)),
        seconds=float(max(line["seconds"] for line in lines)),
    )


def thinned(curve: Curve, points: int = _POINTS, *, correlated: bool = False) -> Curve:
    """Return means of neighbouring points, so that at most `points` are left.

    correlated: the errors are of the same examples every time, and a mean has no smaller one.
    """
    count = -(-len(curve.x) // points)
    if count <= 1:
        return curve
    starts = np.arange(0, len(curve.x), count)
    sizes = np.diff(starts, append=len(curve.x))
    x = np.add.reduceat(curve.x.astype(float), starts) / sizes
    y = np.add.reduceat(curve.y, starts) / sizes
    if correlated:
        return Curve(x, y, np.add.reduceat(curve.error, starts) / sizes)
    return Curve(x, y, np.sqrt(np.add.reduceat(curve.error**2, starts)) / sizes)


def settled_range(*curves: Curve) -> tuple[float, float]:
    """Return the lowest and highest y ± error after the first tenth of x, with a margin."""
    last = max(float(curve.x[-1]) for curve in curves if len(curve.x))
    ends = []
    for curve in curves:
        late = (curve.x >= _WARM_UP * last) & np.isfinite(curve.y)
        error = np.nan_to_num(curve.error[late])
        ends += [*(curve.y[late] - error), *(curve.y[late] + error)]
    margin = 0.08 * (max(ends) - min(ends)) or 0.1
    return min(ends) - margin, max(ends) + margin
