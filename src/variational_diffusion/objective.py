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

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from variational_diffusion import process
from variational_diffusion.numerics import expand, sum_per_example
from variational_diffusion.schedules import Schedule

PredictNoise = Callable[[Tensor, Tensor], Tensor]
"""ε̂(z, γ): z of shape (batch, *shape) and γ of shape (batch,) to the shape of z."""

PerExample = Float[Tensor, " batch"]


@dataclass(frozen=True)
class Bound:
    """An estimate of the variational bound on −log p(x), in nats per example, shape (batch,)."""

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
    gamma_1 = expand(gamma_1, x)
    # sigma_1² − 1 = −sigmoid(−γ_1) and −log sigma_1² = softplus(−γ_1): nothing cancels
    excess = softplus(-gamma_1) - torch.sigmoid(-gamma_1)
    return 0.5 * sum_per_example(torch.sigmoid(-gamma_1) * x.square() + excess)


def diffusion(
    predict_noise: PredictNoise,
    schedule: Schedule,
    x: Float[Tensor, "batch *shape"],
    t: PerExample,
    noise: Float[Tensor, "batch *shape"],
) -> PerExample:
    """Return an unbiased estimate of the diffusion loss for infinitely many steps (VDM eq. 17).

    ½ γ'(t) ‖ε − ε̂(z_t; γ_t)‖², with t ~ U(0, 1) and ε ~ N(0, I) given by the caller.
    """
    gamma_t, rate = schedule.gamma_and_rate(t)
    return 0.5 * rate * _squared_error(predict_noise, x, gamma_t, noise)


def diffusion_discrete(
    predict_noise: PredictNoise,
    schedule: Schedule,
    x: Float[Tensor, "batch *shape"],
    t: PerExample,
    noise: Float[Tensor, "batch *shape"],
    steps: int,
) -> PerExample:
    """Return an unbiased estimate of the diffusion loss for T = `steps` steps (VDM eq. 14).

    (T/2) expm1(γ_t − γ_s) ‖ε − ε̂(z_t; γ_t)‖² for one step from s = (i − 1)/T to i/T: T times
    KL(q(z_s|z_t, x) ‖ p(z_s|z_t)). A time t ~ U(0, 1) chooses its step, i = ⌊T t⌋ + 1.
    """
    step = (t * steps).floor().clamp(0, steps - 1)
    gamma_s, gamma_t = schedule(step / steps), schedule((step + 1) / steps)
    weight = 0.5 * steps * torch.expm1(gamma_t - gamma_s)
    return weight * _squared_error(predict_noise, x, gamma_t, noise)


def _squared_error(
    predict_noise: PredictNoise, x: Tensor, gamma: Tensor, noise: Tensor
) -> PerExample:
    """Return ‖ε − ε̂(z; γ)‖² at z = alpha x + sigma ε."""
    q = process.q_t(x, gamma)
    return sum_per_example((noise - predict_noise(q.mean + q.std * noise, gamma)).square())
