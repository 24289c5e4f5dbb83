"""The constants of a chain: what turns latents, which are integers, into means and positions.

Coder and decoder compute them, exactly (`exact`), from what the file says: the chain, in units of
1/1024, and the number of levels.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal, localcontext
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from variational_diffusion.compression.exact import EXACT, grid_of
from variational_diffusion.compression.stack import UNIT


class Lattice(NamedTuple):
    """Constants of a chain of T steps; index 0 of each array is γ_0 and index T is γ_1.

    width: of the lattice of z_i. drawn_std: standard deviation of q(z_0|x), and of q(z_i|z_{i−1}),
    in widths. coded_std: least standard deviation of p(z_i|z_{i+1}), and that of p(z_T), in widths.
    signal: alpha_0, in widths. forward: z_{i−1} times this is the mean of q(z_i|z_{i−1}), both in
    widths; 0 at index 0. to_levels: z_0 times this, in widths, is the distance from the middle of
    the levels, in levels. spacing: of levels, in standard deviations of the noise in z_0.
    """

    width: np.ndarray
    drawn_std: np.ndarray
    coded_std: np.ndarray
    signal: float
    forward: np.ndarray
    to_levels: float
    spacing: float

    @property
    def prior_std(self) -> float:
        """Standard deviation of p(z_T), in widths."""
        return float(self.coded_std[-1])


def lattice_of(gammas: np.ndarray, levels: int) -> Lattice:
    """Return the constants of a chain from γ_1 down to γ_0, each the float64 nearest to it.

    Standard deviations are the nearest multiples of `exact.GRID`.
    """
    with localcontext(EXACT):
        odds = [Decimal(gamma).exp() for gamma in gammas[::-1].tolist()]  # sigma²/alpha²
        alpha = [(1 / (1 + x)).sqrt() for x in odds]
        sigma = [a * x.sqrt() for a, x in zip(alpha, odds, strict=True)]
        share = [(1 - s / t).sqrt() for s, t in pairwise(odds)]  # sqrt(c), theory of q(z_s|z_t, x)
        drawn = _products(sigma, [Decimal(1), *share])
        coded = [*_products(sigma[:-1], share), Decimal(1)]
        widths = [float(min(pair) / UNIT) for pair in zip(drawn, coded, strict=True)]
        width = [Decimal(w) for w in widths]
        scale = [a / w for a, w in zip(alpha, width, strict=True)]
        return Lattice(
            width=np.array(widths),
            drawn_std=np.array([grid_of(d / w) for d, w in zip(drawn, width, strict=True)]),
            coded_std=np.array([grid_of(c / w) for c, w in zip(coded, width, strict=True)]),
            signal=float(scale[0]),
            forward=np.array([0.0, *(float(t / s) for s, t in pairwise(scale))]),
            to_levels=float(levels / (2 * scale[0])),
            spacing=float(2 / (levels * odds[0].sqrt())),
        )


def _products(a: Iterable[Decimal], b: Iterable[Decimal]) -> list[Decimal]:
    return [x * y for x, y in zip(a, b, strict=True)]
