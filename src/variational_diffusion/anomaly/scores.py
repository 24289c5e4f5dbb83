"""Anomaly scores: numbers made of the loss of an example; larger is more anomalous.

The raw likelihood ranks simple foreign data (blurred, constant, smooth images) as more likely than
the model's own (Nalisnick et al., "Do Deep Generative Models Know What They Don't Know?", 2019): it
measures the complexity of an image more than whether it is out of distribution. All scores are made
from the same few evaluations of the network:

    bits         the bound itself, in bits per dimension
    typicality   how far the bound is from the mean of normal examples, on either side
                 (Nalisnick et al., "Detecting Out-of-Distribution Inputs to Deep Generative Models
                 Using Typicality", 2019)
    complexity   the bound less the length of a classical coder's file (Serrà et al., "Input
                 Complexity and Out-of-distribution Detection with Likelihood-based Generative
                 Models", 2020)
    profile      the Mahalanobis distance, from normal examples, of the logarithm of the loss
                 in bands of γ: coarse shape, texture and last bits are judged one by one
    combined     how unusual the example's statistics are, and how much more every band costs than
                 normal examples with the same statistics: the squared Mahalanobis distance of
                 the statistics, and the squares of what the logarithms of the bands have too much

The statistics say how complex an example is, whatever it shows: see `profiles.statistics`. Bounds
differ mostly by that; the rest tells whether the model knows what it sees.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from variational_diffusion.anomaly.profiles import Profiles
from variational_diffusion.errors import InputError, one_of

_FLOOR = 1e-7  # of a band's bits, for its logarithm
_PENALTIES = np.logspace(-2, 4, 13)


def least_to_fit(name: str, bands: int) -> int:
    """Return how many normal examples a score's parameters take; 0 where it has none.

    Raises InputError for an unknown score.
    """
    one_of("score", name, SCORES)
    return {"typicality": 5, "profile": 2 * (bands + 3), "combined": 2 * (bands + 3)}.get(name, 0)


def _bits(normal: Profiles, of: Profiles) -> np.ndarray:
    return of.bits


def _typicality(normal: Profiles, of: Profiles) -> np.ndarray:
    return np.abs(of.bits - normal.bits.mean())


def _complexity(normal: Profiles, of: Profiles) -> np.ndarray:
    if np.isnan(of.classical).any():
        raise InputError("score = 'complexity': real-valued data have no classical code length")
    return of.bits - of.classical


def _profile(normal: Profiles, of: Profiles) -> np.ndarray:
    return _distance(_log_bands(normal), _log_bands(of))


def _combined(normal: Profiles, of: Profiles) -> np.ndarray:
    above = _excess(normal.statistics, _log_bands(normal), of.statistics, _log_bands(of))
    return _distance(normal.statistics, of.statistics) ** 2 + np.square(above.clip(0)).sum(1)


SCORES: dict[str, Callable[[Profiles, Profiles], np.ndarray]] = {
    "bits": _bits,
    "typicality": _typicality,
    "complexity": _complexity,
    "profile": _profile,
    "combined": _combined,
}
"""(normal examples that the score's parameters are fitted to, the examples in question) → scores.

A score of one example does not depend on the others in question."""


def _log_bands(of: Profiles) -> np.ndarray:
    return np.log(of.bands + _FLOOR)


def _excess(
    x_normal: np.ndarray, y_normal: np.ndarray, x_of: np.ndarray, y_of: np.ndarray
) -> np.ndarray:
    """Return how far y lies above what x lets expect, in standard deviations, by column.

    What is to be expected is a quadratic in x, fitted to the normal examples by ridge regression;
    an entry of x beyond all of theirs counts as the furthest of them. The standard deviations are
    those of normal examples, each predicted from the others.
    """
    ridge = RidgeCV(_PENALTIES, store_cv_results=True)
    expected = make_pipeline(
        StandardScaler(), PolynomialFeatures(2, include_bias=False), StandardScaler(), ridge
    )
    expected.fit(x_normal, y_normal)
    unseen = ridge.cv_results_[:, :, ridge.alpha_ == _PENALTIES]  # squared errors without itself
    spread = np.sqrt(unseen.mean((0, 2))) + 1e-9
    within = x_of.clip(x_normal.min(0), x_normal.max(0))
    return np.asarray((y_of - expected.predict(within)) / spread)


def _distance(normal: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Return Mahalanobis distances from normal examples, by a shrunk covariance of the features."""
    scale = normal.std(0) + 1e-9
    fitted = LedoitWolf().fit((normal - normal.mean(0)) / scale)
    squared = fitted.mahalanobis((of - normal.mean(0)) / scale)
    return np.asarray(np.sqrt(squared))
