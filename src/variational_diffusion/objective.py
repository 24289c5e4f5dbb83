"""The variational bound, term by term, per example and in nats.

−log p(x) ≤ prior + reconstruction + diffusion (VDM eq. 11). Each term is a function of plain
tensors and of a denoiser, so each can be tested against a closed form; `VDM.vlb` puts them
together.

Source: Kingma, Salimans, Poole, Ho, "Variational Diffusion Models" (2021), sections 3.5, 4 and
5 and appendix I.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from variational_diffusion import process
from variational_diffusion.numerics import expand, sum_per_example
from variational_diffusion.schedules import Schedule, Seen, between
from variational_diffusion.weightings import Weighting

PredictNoise = Callable[[Tensor, Tensor], Tensor]
"""ε̂(z, γ): z of shape (batch, *shape) and γ of shape (batch,) to the shape of z."""

PerExample = Float[Tensor, " batch"]


@dataclass(frozen=True)
class Bound:
    """An estimate of the variational bound on −log p(x), in nats per example (VDM eq. 11).

    Attributes:
        prior: KL(q(z_1|x) ‖ p(z_1)), shape (batch,).
        reconstruction: −log p(x|z_0), shape (batch,).
        diffusion: The diffusion loss, shape (batch,).

    Examples:
        >>> bound = vd.Bound(torch.ones(2), torch.zeros(2), torch.ones(2))
        >>> bound.total
        tensor([2., 2.])
    """

    prior: Tensor
    reconstruction: Tensor
    diffusion: Tensor

    @property
    def total(self) -> Tensor:
        """The bound itself: the sum of the three terms."""
        return self.prior + self.reconstruction + self.diffusion

    def detach(self) -> Bound:
        """Return the same numbers without their graph."""
        return Bound(self.prior.detach(), self.reconstruction.detach(), self.diffusion.detach())


class Draws(NamedTuple):
    """What is random in an estimate of the bound, with a row for each example.

    times: shape (batch,), in [0, 1). noise: ε of z_t, shape (batch, *shape). noise_0: ε of z_0.
    """

    times: Tensor
    noise: Tensor
    noise_0: Tensor

    def rows(self, rows: slice) -> Draws:
        """Return the draws of some of the examples."""
        return Draws(*(values[rows] for values in self))


def low_discrepancy_times(
    count: int, generator: torch.Generator | None = None, like: Tensor | None = None
) -> PerExample:
    """Return t_i = (u + i/count) mod 1 with one u ~ U(0, 1) (VDM appendix I.1).

    Each t_i is uniform on [0, 1) by itself; together they cover it evenly, which takes most of
    the variance over t out of the batch's mean. Type and device are those of `like`.
    """
    dtype, device = (like.dtype, like.device) if like is not None else (None, None)
    u = torch.rand((), generator=generator, dtype=dtype, device=device)
    return (u + torch.arange(count, dtype=u.dtype, device=device) / count) % 1


def prior(x: Float[Tensor, "batch *shape"], gamma_1: process.Gamma) -> PerExample:
    """Return KL(q(z_1|x) ‖ N(0, I)).

    ½ Σ (sigma_1² + alpha_1² x² − log sigma_1² − 1); x is encoded data.
    """
    return sum_per_example(prior_entries(x, gamma_1))


def prior_entries(
    x: Float[Tensor, "batch *shape"], gamma_1: process.Gamma
) -> Float[Tensor, "batch *shape"]:
    """Return the entries of which `prior` is the sum."""
    gamma_1 = expand(gamma_1, x)
    # sigma_1² − 1 = −sigmoid(−γ_1) and −log sigma_1² = softplus(−γ_1): nothing cancels
    excess = softplus(-gamma_1) - torch.sigmoid(-gamma_1)
    return 0.5 * (torch.sigmoid(-gamma_1) * x.square() + excess)


def diffusion(
    predict_noise: PredictNoise,
    schedule: Schedule,
    x: Float[Tensor, "batch *shape"],
    t: PerExample,
    noise: Float[Tensor, "batch *shape"],
    weighting: Weighting | None = None,
) -> PerExample:
    """Return an unbiased estimate of the diffusion loss for infinitely many steps (VDM eq. 17).

    L = ½ γ'(t) ‖ε − ε̂(z_t; γ_t)‖², with t ~ U(0, 1) and ε ~ N(0, I) given by the caller.

    A backward pass through its mean gives the network and the schedule's end points the gradient
    of the bound, and the schedule's shape, which the mean does not depend on, the gradient of
    E[L²] and so of the estimate's variance (VDM appendix I.2). There is one pass: L depends on
    the shape through γ_t and γ'_t alone, so ∇E[L²] = E[2 L (∂L/∂γ ∇γ + ∂L/∂γ' ∇γ')], which is the
    gradient of E[L] with what arrives at γ_t and γ'_t multiplied by 2 L for each example. In
    training it is multiplied by 2 (L − b), b the running mean of L over the steps before: the
    shape does not change E[L], so b changes nothing in the mean, and takes most of the noise away.

    The estimate of one example must not depend on others (no batch normalisation), and the network
    must have a derivative in z and γ. Scaling the loss, adding up batches and averaging over
    processes act on all three gradients alike.

    The end points have the gradient ½E‖ε − ε̂‖² at γ_1 for γ_1, and −½E‖ε − ε̂‖² at γ_0 for γ_0:
    measured on the batch, at the ends themselves. To differentiate the estimate at random times
    instead gives the same mean and hundreds of times the variance. In training the measurement is
    made at one step in `CALLS_PER_MEASUREMENT`, for 1 % of a step, and the one before serves in
    between.

    In training mode a backward pass through the result teaches the schedule what was measured:
    `Schedule.learn_from`. Without a backward pass it learns nothing.

    weighting: w(γ). The values returned stay those of the bound; the network's gradient is that of
    w(γ_t) L, and the shape's that of E[(w(γ_t) L)²]. The end points keep the gradient of the bound:
    they are part of the model whose likelihood is reported.
    """
    end_points = schedule.end_points
    u, rate_u = schedule.weighted_shape_and_rate(t, weighting)
    gamma_t, rate = between(end_points.detach(), u, rate_u)
    error = noise_error(predict_noise, x, gamma_t, noise)
    bound = rate * error
    loss = bound if weighting is None else weighting(gamma_t) * bound

    value = loss.detach()
    factor = 2 * (value - schedule.mean_loss) if schedule.training else 2 * value
    for of_the_shape in (gamma_t, rate):
        if of_the_shape.requires_grad:
            of_the_shape.register_hook(lambda gradient: factor * gradient)
    if weighting is not None:
        loss = bound.detach() + (loss - value)  # the bound's value with the gradient of w L
    at_ends = None
    if end_points.requires_grad:
        slopes = schedule.end_errors
        if schedule.measures_ends:
            at_ends = _errors_at_the_ends(predict_noise, end_points.detach(), x, noise)
            slopes = torch.where(at_ends.isfinite(), at_ends, slopes)
        at_0, at_1 = slopes * (end_points - end_points.detach())
        loss = loss + (at_1 - at_0)
    if schedule.training and loss.requires_grad:
        seen = Seen(u.detach(), error.detach(), value, at_ends)
        loss.register_hook(lambda _: schedule.learn_from(seen))
    return loss


@torch.no_grad()
def _errors_at_the_ends(
    predict_noise: PredictNoise, end_points: Tensor, x: Tensor, noise: Tensor
) -> Float[Tensor, " 2"]:
    """Return the mean of ½‖ε − ε̂‖² at γ_0 and at γ_1."""
    errors = [
        noise_error(predict_noise, x, gamma.expand(len(x)), noise).mean() for gamma in end_points
    ]
    return torch.stack(errors)


def diffusion_discrete(
    predict_noise: PredictNoise,
    gammas: Float[Tensor, " levels"],
    x: Float[Tensor, "batch *shape"],
    t: PerExample,
    noise: Float[Tensor, "batch *shape"],
    assumed: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> PerExample:
    """Return an unbiased estimate of the diffusion loss of a chain of T steps (VDM eq. 14).

    T KL(q(z_s|z_t, x) ‖ p(z_s|z_t)) for one step of the grid, which is
    (T/2) expm1(γ_t − γ_s) ‖ε − ε̂(z_t; γ_t)‖² for the paper's variance. A time t ~ U(0, 1) chooses
    the step: the lowest for t < 1/T, and so on.

    gammas: T + 1 values from γ_1 down to γ_0. assumed: (z_t, γ_t, ε̂) → E(ε − ε̂)², by which p
    is wider than q, see `process.widened`; None: not wider.
    """
    steps = len(gammas) - 1
    step = (t * steps).floor().clamp(0, steps - 1).long()
    rising = gammas.flip(0)
    gamma_s, gamma_t = rising[step], rising[step + 1]
    q = process.q_t(x, gamma_t)
    z = q.mean + q.std * noise
    estimate = predict_noise(z, gamma_t)
    wide = None if assumed is None else assumed(z, gamma_t, estimate)
    kl = process.posterior_kl(gamma_s, gamma_t, (noise - estimate).square(), wide)
    return steps * sum_per_example(kl)


def noise_error(
    predict_noise: PredictNoise,
    x: Float[Tensor, "batch *shape"],
    gamma: PerExample,
    noise: Float[Tensor, "batch *shape"],
) -> PerExample:
    """Return m = ½‖ε − ε̂(z; γ)‖² at z = alpha x + sigma ε: the diffusion loss per unit of γ."""
    return sum_per_example(noise_errors(predict_noise, x, gamma, noise))


def noise_errors(
    predict_noise: PredictNoise,
    x: Float[Tensor, "batch *shape"],
    gamma: PerExample,
    noise: Float[Tensor, "batch *shape"],
) -> Float[Tensor, "batch *shape"]:
    """Return the entries of which `noise_error` is the sum, ½(ε_i − ε̂_i)²."""
    q = process.q_t(x, gamma)
    return 0.5 * (noise - predict_noise(q.mean + q.std * noise, gamma)).square()
