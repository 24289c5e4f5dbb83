"""Where in an example the bits are: the bound, entry by entry."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from variational_diffusion import objective, process
from variational_diffusion.likelihood.estimators import stratified_times
from variational_diffusion.model import VDM
from variational_diffusion.modes import in_evaluation_mode
from variational_diffusion.numerics import randn_like


@in_evaluation_mode
@torch.inference_mode()
def bits_of_entries(
    vdm: VDM, x: Tensor, *, draws: int = 16, generator: torch.Generator | None = None
) -> Float[Tensor, "batch *shape"]:
    """Return the bits that every entry contributes to the bound for infinitely many steps.

    Their mean over an example estimates its bits per dimension.

    x: shape (batch, *shape), in the decoder's domain. draws: evaluations of the network an example.
    """
    encoded = vdm.encode(x)
    gamma_0, gamma_1 = vdm.schedule.end_points
    total = objective.prior_entries(encoded, gamma_1)
    for t in stratified_times(len(x), draws, generator, like=encoded):
        gamma, rate = vdm.schedule.gamma_and_rate(t)
        error = objective.noise_errors(
            lambda z, gamma: vdm.denoise(z, gamma).noise,
            encoded,
            gamma,
            randn_like(encoded, generator),
        )
        rate = rate.reshape(-1, *(1,) * (x.ndim - 1))
        z_0 = process.q_t(encoded, gamma_0).sample(generator)
        log_p = vdm.decoder.log_prob_entries(x, z_0, gamma_0)
        total = total + (rate * error - log_p) / draws
    return total / math.log(2)
