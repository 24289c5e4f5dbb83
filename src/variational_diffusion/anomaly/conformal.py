"""Conformal p-values: how rare a score is among examples that are known to be normal.

The p-value of an example is the rank of its score among those of n calibration examples:

    p = (1 + #{calibration scores ≥ its score}) / (1 + n)

If the example and the calibration examples are exchangeable (independent draws from one
distribution are), P(p ≤ α) ≤ α for every α and n, whatever the model and the score: without ties
it is ⌊α(n + 1)⌋ / (n + 1). Ties count against the example, which keeps the promise. The score must
be a function that was fixed without the calibration examples: see `reference`.

Two things the promise does not say. The probability is over the draw of the calibration examples
too; given one calibration set the rate of false alarms is a Beta variable: `false_alarms`.
And the p-values of many examples share one calibration set, so they are not independent; they are
positively dependent (PRDS), for which the procedure of Benjamini and Hochberg holds its rate:
`discoveries`.

Sources: V. Vovk, A. Gammerman, G. Shafer, "Algorithmic Learning in a Random World" (2005),
propositions 2.4 and 4.1; S. Bates, E. Candès, L. Lei, Y. Romano, M. Sesia, "Testing for Outliers
with Conformal p-values" (2023), equation 2 and theorem 2; V. Vovk, "Conditional validity of
inductive conformal predictors" (2012), for the Beta distribution; Y. Benjamini, Y. Hochberg,
"Controlling the False Discovery Rate" (1995).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from variational_diffusion.errors import InputError

TIES = 1e-5
"""Scores that differ by less than this share of their size are tied: the network's float32 results
differ by that much between batches of different sizes."""

_ROUNDING = 1e-12  # a p-value of exactly the rate must not fall to the last bit


def p_values(calibration: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the p-value of every score, shape (m,), between 1/(n + 1) and 1.

    calibration: scores of examples that are known to be normal, shape (n,). scores: shape (m,);
    larger is more anomalous. Ties count as larger, see `TIES`: that makes p larger, never smaller.
    Raises InputError for a score that is not a number.
    """
    return (1 + _at_least(calibration, scores)) / (1 + len(calibration))


def threshold(calibration: np.ndarray, rate: float) -> float:
    """Return the score above which p ≤ rate, without `TIES`: +inf where no p-value is that small.

    calibration: scores of examples that are known to be normal, shape (n,). It is the k-th largest
    of them, k = ⌊rate (n + 1)⌋: a score above it has at most k − 1 of them at or above it.
    """
    check_rate("false_alarms", rate)
    k = _marked_places(len(calibration), rate)
    return float(np.sort(calibration)[-k]) if k else math.inf


def own_p_values(calibration: np.ndarray) -> np.ndarray:
    """Return the p-value of each calibration example among the others, shape (n,).

    Each is compared with n − 1 others, so that p = (1 + #{others ≥ it})/n is between 1/n and 1.
    """
    return _at_least(calibration, calibration) / len(calibration)  # itself takes the place of 1


def _at_least(calibration: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return how many calibration scores are as large as each score or larger, shape (m,)."""
    if np.isnan(calibration).any() or np.isnan(scores).any():
        raise InputError(
            "score = NaN: the model gives no finite loss for some example, so its weights or its "
            "precision are broken; evaluate in float32, or go back to earlier weights"
        )
    smaller = np.searchsorted(np.sort(calibration), scores - TIES * np.abs(scores), side="left")
    return np.asarray(len(calibration) - smaller)


def is_at_most(p: np.ndarray, rate: float) -> np.ndarray:
    """Tell which p-values are at most a rate, shape (m,): the examples that it marks."""
    return np.asarray(p <= rate * (1 + _ROUNDING))


def check_rate(name: str, rate: float) -> None:
    """Raise InputError for what is not a rate."""
    if not 0 < rate < 1:
        raise InputError(f"{name} = {rate}: give a rate between 0 and 1, such as 0.01")


def calibration_needed(rate: float) -> int:
    """Return how many calibration examples allow a p-value as small as `rate`: 99 for 0.01."""
    check_rate("false_alarms", rate)
    return max(1, math.ceil((1 / rate) * (1 - _ROUNDING)) - 1)


def rounded_up(rate: float) -> str:
    """Return a rate as a number of two digits that is not below it."""
    digits = 1 - math.floor(math.log10(rate))
    return f"{math.ceil(rate * 10**digits * (1 - _ROUNDING)) / 10**digits:g}"


def _marked_places(calibration: int, rate: float) -> int:
    """Return k = ⌊rate (n + 1)⌋: how many of the n + 1 possible ranks have p ≤ rate."""
    return math.floor(rate * (calibration + 1) * (1 + _ROUNDING))


class FalseAlarms(NamedTuple):
    """The rate of false alarms: its mean over calibration sets, and where most of them have it."""

    mean: float
    low: float
    high: float


def false_alarms(calibration: int, rate: float, *, level: float = 0.95) -> FalseAlarms:
    """Return the rate of false alarms of p ≤ rate with n calibration examples.

    Given one calibration set and a score without ties, the share of new normal examples that is
    marked is a draw from Beta(k, n + 1 − k), k = ⌊rate (n + 1)⌋, whatever their distribution. Its
    mean is k/(n + 1) ≤ rate; low and high enclose `level` of all calibration sets. All are 0 where
    no p-value can be that small.
    """
    check_rate("false_alarms", rate)
    k = _marked_places(calibration, rate)
    if k == 0:
        return FalseAlarms(0.0, 0.0, 0.0)
    law = stats.beta(k, calibration + 1 - k)
    low, high = law.interval(level)
    return FalseAlarms(float(law.mean()), float(low), float(high))


def discoveries(p: np.ndarray, rate: float) -> np.ndarray:
    """Tell which examples the procedure of Benjamini and Hochberg marks, shape (m,).

    Of those that are marked, a share of at most `rate` is normal, in the mean over repetitions. It
    marks the k smallest p-values for the largest k with p_(k) ≤ rate · k/m.
    """
    check_rate("fdr", rate)
    return is_at_most(stats.false_discovery_control(p, method="bh"), rate)


def fewest_discoveries(examples: int, calibration: int, rate: float) -> int:
    """Return how many of so many examples have to share the smallest p-value before any is marked.

    With n calibration examples that is 1/(n + 1), so k of m are marked from k ≥ m/(rate (n + 1)).
    """
    return max(1, math.ceil(examples / (rate * (calibration + 1)) * (1 - _ROUNDING)))
