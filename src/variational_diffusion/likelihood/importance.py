"""Importance weights: K draws of the dequantisation make the bound by the ODE tighter.

With log weights ℓ_k = log p(z_k) p(x|z_k)/q(z_k|x), E log 1/K Σ e^{ℓ_k} ≤ log p(x), and it rises
with K to log p(x).

Where the divergence is estimated with probes, ℓ_k is known up to noise, which the logarithm of a
sum of exponentials would turn into a gain that is not there: log E e^η > 0 for noise η of mean
zero. So the draws are weighted by some probes and summed by others. For all w ≥ 0 with Σ w_k = 1

    log 1/K Σ e^{ℓ_k} ≥ Σ w_k ℓ_k − Σ w_k log w_k − log K,

with equality for w_k ∝ e^{ℓ_k}, and the right side is linear in ℓ. With w made of some probes and ℓ
estimated by the others, its mean is a lower bound on log p(x), whatever the noise; noise makes w
worse and the bound less tight. Every probe is left out of w once, and the bounds are averaged. The
best w for noisy ℓ is made of their posterior means, which are nearer to each other: with the
variance s² of the noise and V of what is seen, the differences are multiplied by (1 − s²/V)⁺. That
two probes differ tells s², so with the one that is left out there are three or more.

Source: Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders" (2016), eq. 8; the
inequality is that of Gibbs; the factor is that of an empirical Bayes estimate of normal means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from variational_diffusion.errors import InputError
from variational_diffusion.likelihood.estimators import Estimate, ODELikelihood, at_least_one
from variational_diffusion.model import VDM

EXACT_DIMENSIONS = 16
"""Entries of an example up to which the divergence is exact where nothing else is asked for: it
then takes at most three to four times as long as with probes. For 64 it is thirteen times."""

PROBES = 4
"""Of the divergence for more entries than these."""

LEAST_PROBES = 3
"""One is left out, and that two others differ tells how noisy they are."""


@dataclass(frozen=True)
class ImportanceWeighted:
    """An upper bound on −log p(x) by importance weights, tighter than `ODELikelihood`.

    Args:
        samples: Draws K of the dequantisation.
        ode: With the exact divergence or three or more probes; None: the exact divergence up to
            `EXACT_DIMENSIONS` entries, else `PROBES` probes.

    Raises:
        InputError: For fewer than one sample, and for one or two probes.

    Source: Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders" (2016), eq. 8.

    Examples:
        >>> vd.ImportanceWeighted(samples=16).terms
        ('importance',)
    """

    samples: int = 8
    ode: ODELikelihood | None = None
    terms: ClassVar[tuple[str, ...]] = ("importance",)

    def __post_init__(self) -> None:
        at_least_one("samples", self.samples)
        probes = None if self.ode is None else self.ode.probes
        if probes is not None and probes < LEAST_PROBES:
            raise InputError(
                f"estimator = 'importance', probes = {probes}: the draws are weighted by some "
                f"probes and summed by others; give {LEAST_PROBES} or more, or --exact"
            )

    @torch.no_grad()
    def __call__(self, vdm: VDM, x: Tensor, generator: torch.Generator | None = None) -> Estimate:
        flow = self.ode or ODELikelihood(probes=default_probes(vdm.dimensions))
        if flow.name(vdm) == "none":
            raise InputError(
                "estimator = 'importance', dequantisation = 'none': there is nothing to draw; "
                "take 'variational'"
            )
        weights, evaluations, failures = flow.log_weights(vdm, x, self.samples, generator)
        return Estimate({"importance": -log_mean(weights)}, evaluations, failures)


def default_probes(dimensions: int) -> int | None:
    """Return how many probes `ImportanceWeighted` takes for examples of d entries; None: exact."""
    return None if dimensions <= EXACT_DIMENSIONS else PROBES


def log_mean(log_weights: Float[Tensor, "estimates draws batch"]) -> Float[Tensor, " batch"]:
    """Return log 1/K Σ e^{ℓ_k} for exact ℓ, one estimate, and a bound on it for three or more.

    The mean of the bound over the noise of the estimates, which is independent between them, is at
    most the value for exact ℓ.
    """
    estimates, draws, _ = log_weights.shape
    if estimates == 1:
        return log_weights[0].logsumexp(0) - math.log(draws)
    bounds = []
    for left_out in range(estimates):
        others = [i for i in range(estimates) if i != left_out]
        log_w = _posterior_means(log_weights[others]).log_softmax(0)
        gain = log_weights[left_out] - log_w - math.log(draws)
        bounds.append((log_w.exp() * gain).sum(0))
    return torch.stack(bounds).mean(0)


def _posterior_means(
    log_weights: Float[Tensor, "estimates draws batch"],
) -> Float[Tensor, "draws batch"]:
    """Return what the differences of ℓ between the draws most likely are, up to a constant."""
    estimates, draws, _ = log_weights.shape
    centred = log_weights - log_weights.mean(1, keepdim=True)
    mean = centred.mean(0)
    if draws == 1:
        return mean
    degrees = draws - 1
    noise = (centred - mean).square().sum((0, 1)) / ((estimates - 1) * degrees)
    seen = (mean.square().sum(0) / degrees).clamp(min=torch.finfo(mean.dtype).tiny)
    return mean * (1 - noise / (estimates * seen)).clamp(min=0)
