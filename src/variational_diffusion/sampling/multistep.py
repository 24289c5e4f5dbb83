"""Exponential multistep methods: DDIM, DPM-Solver++, SDE-DPM-Solver++ and UniPC as one table.

In λ = −γ/2 the step from t to s, h = λ_s − λ_t, of the flow is exactly

    z_s = (sigma_s/sigma_t) z_t + alpha_s ∫ e^{τ−h} x̂(λ_t + τ) dτ   for τ from 0 to h,

and all that differs is the polynomial that stands for x̂ on the way: through the last x̂ (order 1),
the last two, three, and, to correct z_s afterwards, the new one too. Its integral is a weighted sum
of the x̂ that it goes through, with weights that only depend on the grid.

Noise can be renewed on the way. The noise in z_s then is η of what the ancestral step draws, fresh,
and as much of the old as leaves its variance sigma_s² (Song, Meng, Ermon, "Denoising Diffusion
Implicit Models" (2021), eq. 16). That shortens the memory of z_t as a longer step would do.

Source: Lu et al., "DPM-Solver++" (2022), for data prediction and the SDE; Zhao et al., "UniPC"
(2023), for the corrector that costs no evaluation. Weights are the exact integrals. For two x̂ they
are what the first paper calls φ_2, where its algorithm takes the middle of the step. For three, its
published code has half of the second difference, which makes it a method of second order.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from variational_diffusion.errors import InputError
from variational_diffusion.numerics import randn_like
from variational_diffusion.sampling.contract import ReverseProcess

_LONGEST_GROWTH = 2.0
_NEARLY_ALL = 0.99  # of the noise: beyond it, what is kept is no difference to one


@dataclass(frozen=True)
class Step:
    """z_s = keep z_t + fresh ξ + Σ_j predict[j] x̂_j, where x̂_0 is the newest.

    correct: the weights that take the place of `predict` once x̂ at z_s is known, which comes
    first; None where a step is not corrected.
    """

    keep: float
    fresh: float
    predict: list[float]
    correct: list[float] | None


@dataclass(frozen=True)
class Multistep:
    """A sampler that goes on with a polynomial through the last x̂.

    order: 1, 2 or 3, the number of x̂; the first steps have fewer. eta: in [0, 1]; 0 is
    deterministic, 1 renews as much noise as the ancestral sampler, which is order 1 with eta 1.
    corrected: whether z_s is corrected with the x̂ that the next step evaluates anyway. The z that
    is yielded is the one before the correction, and the last one stays uncorrected.
    """

    order: int
    eta: float = 0.0
    corrected: bool = False

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise InputError(f"order = {self.order}: give 1, 2 or 3")
        if not 0 <= self.eta <= 1:
            raise InputError(
                f"eta = {self.eta}: give 0 (deterministic) to 1 (as much noise as ancestral)"
            )

    def __call__(
        self,
        model: ReverseProcess,
        z: Float[Tensor, "batch *shape"],
        gammas: Float[Tensor, " levels"],
        *,
        generator: torch.Generator | None = None,
    ) -> Iterator[Float[Tensor, "batch *shape"]]:
        """Yield z after every step; one evaluation each."""
        seen: list[Tensor] = []  # x̂, the newest first
        base, correct = z, None
        for gamma_t, step in zip(gammas, self.steps(gammas), strict=False):
            x = model.denoise(z, gamma_t).x
            seen = [x, *seen]
            if correct is not None:
                z = _sum(base, correct, seen)
            base = step.keep * z
            if step.fresh > 0:
                base = base + step.fresh * randn_like(z, generator)
            z, correct = _sum(base, step.predict, seen), step.correct
            yield z
            seen = seen[: self.order]

    def steps(self, gammas: Float[Tensor, " levels"]) -> list[Step]:
        """Return the coefficients of every step of a falling grid, in double precision.

        Where a step is more than twice as long as the one before it, x̂ is not extrapolated.
        """
        lambdas = (-0.5 * gammas.detach().double()).tolist()
        steps: list[Step] = []
        for i, (here, there) in enumerate(pairwise(lambdas)):
            h = there - here
            order = min(self.order, i + 1)
            if i > 0 and h > _LONGEST_GROWTH * (here - lambdas[i - 1]):
                order = 1
            places = [(lambdas[i - j] - here) / h for j in range(order)]
            log_kept = _log_kept(self.eta, h)
            alpha_s, sigma_s, sigma_t = _alpha(there), _alpha(-there), _alpha(-here)
            steps.append(
                Step(
                    keep=sigma_s / sigma_t * math.exp(log_kept),
                    fresh=self.eta * sigma_s * math.sqrt(-math.expm1(-2 * h)),
                    predict=[alpha_s * w for w in weights(places, h - log_kept)],
                    correct=[alpha_s * w for w in weights([1.0, *places], h - log_kept)]
                    if self.corrected
                    else None,
                )
            )
        return steps


def weights(places: list[float], span: float) -> list[float]:
    """Return the weights w with Σ_j w_j p(places_j) = ∫ e^{span (r − 1)} p(r) span dr over [0, 1].

    p: any polynomial of a degree below the number of places, which all differ. span: > 0.
    """
    from scipy.special import hyp1f1  # noqa: PLC0415 (a quarter of a second)

    # of r^0, r^1, …: Kummer's function, exact however short or long the step (DLMF 13.4.1)
    moments = [span / (k + 1) * hyp1f1(1, k + 2, -span) for k in range(len(places))]
    powers = np.vander(places, increasing=True).T
    return [float(w) for w in np.linalg.solve(powers, moments)]


def _log_kept(eta: float, h: float) -> float:
    """Return log √(1 − η² (1 − e^{−2h})), what is left of the old noise where η is drawn anew."""
    renewed = -(eta**2) * math.expm1(-2 * h)
    if renewed < _NEARLY_ALL:
        return 0.5 * math.log1p(-renewed)
    kept = (1 - eta) * (1 + eta) + eta**2 * math.exp(-2 * h)
    return 0.5 * math.log(max(kept, sys.float_info.min))


def _alpha(half_log_snr: float) -> float:
    """Return alpha at λ, sqrt(sigmoid(2λ)), which at −λ is sigma."""
    return math.exp(-0.5 * float(np.logaddexp(0.0, -2 * half_log_snr)))


def _sum(base: Tensor, coefficients: list[float], terms: list[Tensor]) -> Tensor:
    for coefficient, term in zip(coefficients, terms, strict=False):
        base = torch.add(base, term, alpha=coefficient)
    return base
