"""Measured and predicted errors of a model's ε̂, and the reverse variance they stand for.

Source: Bao, Li, Zhu, Zhang, "Analytic-DPM" (2022), and Bao et al., "Estimating the Optimal
Covariance with Imperfect Mean in Diffusion Probabilistic Models" (2022), here in γ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from variational_diffusion import process
from variational_diffusion.errors import InputError, one_of

_LARGEST_LOG = 8.0
_SMOOTH_MEAN, _SMOOTH_POSITION = 1.5, 3.0  # bins


@dataclass(frozen=True)
class NoiseErrors:
    """m(γ) = E(ε − ε̂)² of a trained model, in bins of one width over γ.

    gamma: middles of the bins, rising, shape (bins,), two or more.
    error: shape (bins, *shape), for every position of an example; an axis of length one stands for
        all positions along it.
    """

    gamma: Float[Tensor, " bins"]
    error: Float[Tensor, "bins *shape"]

    def at(self, gamma: process.Gamma) -> Float[Tensor, "*batch_and_shape"]:
        """Return m at every γ: linear between the middles of the bins, constant beyond them."""
        middles, error = self.gamma.to(gamma), self.error.to(gamma)
        last = len(middles) - 1
        place = ((gamma - middles[0]) / (middles[-1] - middles[0]) * last).clamp(0, last)
        below = place.floor().clamp(max=last - 1)
        share = (place - below).reshape(*gamma.shape, *(1,) * (error.ndim - 1))
        return torch.lerp(error[below.long()], error[below.long() + 1], share)

    def __call__(self, z: Tensor, gamma: Float[Tensor, " batch"], noise: Tensor) -> Tensor:
        """Return what is assumed of (ε − ε̂)² at z: its mean over all z at this γ."""
        return self.at(gamma)

    def smoothed(self) -> NoiseErrors:
        """Return the same with neighbouring bins averaged, which m(γ) being smooth allows.

        The mean over positions, in its logarithm, by a Gaussian of one and a half bins; what each
        position is of the mean, by one of three. A grid that is optimal for a noisy profile would
        put its steps where the noise happens to be low.
        """
        mean = self.averaged().error
        kernel = _kernel(len(self.gamma), _SMOOTH_MEAN).to(mean)
        of_position = _kernel(len(self.gamma), _SMOOTH_POSITION).to(mean)
        level = torch.tensordot(kernel, mean.log(), 1).exp()
        return NoiseErrors(self.gamma, level * torch.tensordot(of_position, self.error / mean, 1))

    def averaged(self) -> NoiseErrors:
        """Return the same with one number for all positions."""
        axes = tuple(range(1, self.error.ndim))
        return NoiseErrors(self.gamma, self.error.mean(axes, keepdim=True))


def _kernel(bins: int, width: float) -> Float[Tensor, "bins bins"]:
    place = torch.arange(bins, dtype=torch.float64)
    weights = torch.exp(-0.5 * ((place[:, None] - place) / width).square())
    return weights / weights.sum(1, keepdim=True)


@dataclass(frozen=True)
class PredictedErrors:
    """E[(ε − ε̂)² | z], by a network that predicts its logarithm relative to the mean over z.

    mean: measured errors. head: (z, γ, ε̂) → factor's logarithm, such as `networks.VarianceHead`.
    """

    mean: NoiseErrors
    head: Callable[[Tensor, Tensor, Tensor], Tensor]

    def __call__(self, z: Tensor, gamma: Float[Tensor, " batch"], noise: Tensor) -> Tensor:
        """Return what is assumed of (ε − ε̂)² at z, of the shape of z."""
        factor = self.head(z, gamma, noise).clamp(-_LARGEST_LOG, _LARGEST_LOG).exp()
        return self.mean.at(gamma) * factor


@dataclass(frozen=True)
class ReverseVariance:
    """How wide the reverse steps are.

    assumed: the measured errors of ε̂ → those that a step assumes. None: the step is that of the
    paper, and no errors are needed. predicted: whether a network refines them for every z.
    """

    assumed: Callable[[NoiseErrors], NoiseErrors] | None
    predicted: bool = False


def _as_measured(errors: NoiseErrors) -> NoiseErrors:
    return errors


VARIANCES: dict[str, ReverseVariance] = {
    "posterior": ReverseVariance(None),
    "scalar": ReverseVariance(NoiseErrors.averaged),
    "position": ReverseVariance(_as_measured),
    "predicted": ReverseVariance(_as_measured, predicted=True),
}
"""As in the paper; widened by one number a step; by one for each position; by one that a network
predicts from z."""


def variance_named(name: str) -> ReverseVariance:
    """Return an entry of `VARIANCES`; raise InputError for an unknown name."""
    one_of("variance", name, VARIANCES)
    return VARIANCES[name]


def assumed_errors(variance: str, errors: NoiseErrors | None) -> NoiseErrors | None:
    """Return the errors by which a name of `VARIANCES` widens the reverse step.

    For "predicted" those for each position, which a `PredictedErrors` refines for every z.
    """
    assumed = variance_named(variance).assumed
    if assumed is None:
        return None
    if errors is None:
        raise InputError(
            f"variance = {variance!r} needs measured errors; give them, or 'posterior'"
        )
    return assumed(errors)
