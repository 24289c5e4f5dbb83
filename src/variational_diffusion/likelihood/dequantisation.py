"""Discrete data as densities: z_0 ~ q(z_0|x), for likelihoods by the probability-flow ODE.

For any q, log p(x) ≥ E_q[log p(z_0) + log p(x|z_0) − log q(z_0|x)], and the mean of
p(z_0) p(x|z_0)/q(z_0|x) over draws from q is an unbiased estimate of p(x). The data are encoded by
the decoder, f(k) = 2 (k + ½)/L − 1 for level k of L, and z_0 lies around alpha_0 f(x).

    truncated-normal  z_0 = alpha_0 f(x) + sigma_0 ε, ε of a normal distribution cut off where the
                      bin of x ends, at ±τ, τ = alpha_0/(L sigma_0); p(x|z_0) = 1 in the bin
    uniform           z_0 uniform in the bin of x; p(x|z_0) = 1 there
    variational       z_0 ~ q(z_0|x) of the diffusion, and the decoder's p(x|z_0)
    none              z_0 = alpha_0 f(x), for real-valued data: the density of z_0/alpha_0

Source: Zheng, Lu, Chen, Zhu, "Improved Techniques for Maximum Likelihood Estimation for Diffusion
ODEs" (2023), section 4.2, for the truncated normal; Theis, van den Oord, Bethge, "A Note on the
Evaluation of Generative Models" (2016), for the uniform.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from variational_diffusion import process
from variational_diffusion.decoders import Discretized
from variational_diffusion.errors import InputError
from variational_diffusion.model import VDM
from variational_diffusion.numerics import sum_per_example


class Dequantised(NamedTuple):
    """A draw z_0 ~ q(z_0|x), and log q(z_0|x) − log p(x|z_0), shape (batch,), in nats.

    log q is that of the draw and not its mean, which is known for some: a good model's log p(z_0)
    moves with it, and their difference has the smaller variance.
    """

    z_0: Tensor
    cost: Tensor


Dequantisation = Callable[[VDM, Tensor, torch.Generator | None], Dequantised]


def truncated_normal(vdm: VDM, x: Tensor, generator: torch.Generator | None = None) -> Dequantised:
    """Draw z_0 from q(z_0|x) of the diffusion, cut off at the edges of the bin of x."""
    u, alpha, sigma, levels = _discrete(vdm, x)
    tau = (alpha / (levels * sigma)).double()
    share = torch.erf(tau / math.sqrt(2))
    # the inverse of the distribution function, in float64: erfinv is steep at both ends
    place = torch.rand(u.shape, generator=generator, dtype=torch.float64, device=u.device)
    noise = math.sqrt(2) * torch.erfinv((2 * place - 1) * share)
    constant = 0.5 * math.log(2 * math.pi) + sigma.double().log() + share.log()
    cost = sum_per_example(-0.5 * noise.square() - constant)
    return Dequantised(alpha * u + sigma * noise.to(u.dtype), cost.to(u.dtype))


def uniform(vdm: VDM, x: Tensor, generator: torch.Generator | None = None) -> Dequantised:
    """Draw z_0 uniformly from the bin of x."""
    u, alpha, _, levels = _discrete(vdm, x)
    place = torch.rand(u.shape, generator=generator, dtype=u.dtype, device=u.device)
    cost = (-torch.log(2 * alpha / levels) * u[0].numel()).expand(len(u))
    return Dequantised(alpha * (u + (2 * place - 1) / levels), cost)


def variational(vdm: VDM, x: Tensor, generator: torch.Generator | None = None) -> Dequantised:
    """Draw z_0 ~ q(z_0|x) of the diffusion; what p(x|z_0) loses is part of the cost."""
    gamma_0 = vdm.schedule.gamma_0
    q_0 = process.q_t(vdm.encode(x), gamma_0)
    z_0 = q_0.sample(generator)
    lost = -vdm.decoder.log_prob(x, z_0, gamma_0)
    return Dequantised(z_0, lost + sum_per_example(q_0.log_prob(z_0)))


def none(vdm: VDM, x: Tensor, generator: torch.Generator | None = None) -> Dequantised:
    """Take z_0 = alpha_0 u for encoded data u, whose density is then that of z_0/alpha_0."""
    if isinstance(vdm.decoder, Discretized):
        raise InputError(
            "dequantisation = 'none': data of discrete levels have no density; "
            "take 'truncated-normal'"
        )
    alpha = process.alpha(vdm.schedule.gamma_0)
    u = vdm.encode(x)
    # log p(x) = log p(u) − Σ log scale, and the decoder's −log scale is what encoding costs
    cost = vdm.decoder.log_scale(x) - u[0].numel() * alpha.double().log()
    return Dequantised(alpha * u, cost.to(u.dtype))


DEQUANTISATIONS: dict[str, Dequantisation] = {
    "truncated-normal": truncated_normal,
    "variational": variational,
    "uniform": uniform,
    "none": none,
}


def _discrete(vdm: VDM, x: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return the encoded data, alpha_0, sigma_0 and the number of levels."""
    if not isinstance(vdm.decoder, Discretized):
        raise InputError(
            "dequantisation: real-valued data have no bins to draw from; take 'none' or "
            "'variational'"
        )
    gamma_0 = vdm.schedule.gamma_0
    return (
        vdm.encode(x),
        process.alpha(gamma_0),
        process.sigma(gamma_0),
        vdm.decoder.levels,
    )
