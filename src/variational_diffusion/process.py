"""The forward process and its posterior, as functions of γ = −log SNR (VDM section 3).

γ is the interface: small γ is clean data, large γ is noise, and nothing here knows a time. Every γ
has shape (batch,) or (), and s is the less noisy of two levels: gamma_s <= gamma_t.

Source: Kingma, Salimans, Poole, Ho, "Variational Diffusion Models" (2021), sections 3.1, 3.2 and
appendix A. All differences of variances are written with `expm1` and `softplus`, so that nothing
cancels at either end.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from variational_diffusion.numerics import Normal, expand

Gamma = Float[Tensor, " *batch"]


def alpha(gamma: Gamma) -> Gamma:
    """Return the signal's scale, alpha² = sigmoid(−γ)."""
    return torch.sigmoid(-gamma).sqrt()


def sigma(gamma: Gamma) -> Gamma:
    """Return the noise's standard deviation, sigma² = sigmoid(γ)."""
    return torch.sigmoid(gamma).sqrt()


def snr(gamma: Gamma) -> Gamma:
    """Return the signal-to-noise ratio alpha²/sigma² = exp(−γ)."""
    return torch.exp(-gamma)


def q_t(x: Float[Tensor, ...], gamma: Gamma) -> Normal:
    """Return q(z_t|x) = N(alpha_t x, sigma_t² I) (VDM section 3.1)."""
    gamma = expand(gamma, x)
    return Normal(alpha(gamma) * x, sigma(gamma))


def q_t_given_s(z_s: Float[Tensor, ...], gamma_s: Gamma, gamma_t: Gamma) -> Normal:
    """Return q(z_t|z_s) = N(alpha_ts z_s, sigma_ts² I), one step of the chain (VDM section 3.1).

    alpha_ts = alpha_t/alpha_s; sigma_ts² = sigma_t² − alpha_ts² sigma_s² = 1 − alpha_ts².
    """
    gamma_s, gamma_t = expand(gamma_s, z_s), expand(gamma_t, z_s)
    log_alpha_ts = 0.5 * (softplus(gamma_s) - softplus(gamma_t))
    return Normal(log_alpha_ts.exp() * z_s, (-torch.expm1(2 * log_alpha_ts)).sqrt())


def q_s_given_t(
    z_t: Float[Tensor, ...], x: Float[Tensor, ...], gamma_s: Gamma, gamma_t: Gamma
) -> Normal:
    """Return the posterior q(z_s|z_t, x) (VDM appendix A).

    With c = −expm1(γ_s − γ_t): mean alpha_s (z_t (1 − c)/alpha_t + c x), variance sigma_s² c.
    """
    gamma_s, gamma_t = expand(gamma_s, z_t), expand(gamma_t, z_t)
    c = -torch.expm1(gamma_s - gamma_t)
    mean = alpha(gamma_s) * (torch.exp(gamma_s - gamma_t) * z_t / alpha(gamma_t) + c * x)
    return Normal(mean, sigma(gamma_s) * c.sqrt())


def widened(
    posterior: Normal, gamma_s: Gamma, gamma_t: Gamma, assumed: Float[Tensor, ...]
) -> Normal:
    """Return the best reverse step whose x̂ has the error of ε̂ with E(ε − ε̂)² = `assumed`.

    posterior: `q_s_given_t` at x = x̂. Its mean stays; its variance sigma_s² c is multiplied by
    1 + expm1(γ_t − γ_s) · assumed (Bao et al., "Analytic-DPM" (2022), theorem 1, in γ).

    assumed: ≥ 0, broadcasts over the mean.
    """
    growth = torch.expm1(expand(gamma_t - gamma_s, posterior.mean))
    return Normal(posterior.mean, posterior.std * (1 + growth * assumed).sqrt())


def posterior_kl(
    gamma_s: Gamma,
    gamma_t: Gamma,
    squared_error: Float[Tensor, ...],
    assumed: Float[Tensor, ...] | None = None,
) -> Float[Tensor, ...]:
    """Return KL(q(z_s|z_t, x) ‖ p(z_s|z_t)) of every entry, in nats.

    p is `q_s_given_t` at x = x̂, or that `widened`. With E = expm1(γ_t − γ_s), e = (ε − ε̂)² and
    m = `assumed`: ½ (log(1 + E m) + E (e − m)/(1 + E m)), which is ½ E e for the paper's m = 0.

    squared_error, assumed: (ε − ε̂)² and E(ε − ε̂)², of shapes that γ, shape (batch,), expands to.
    """
    growth = torch.expm1(expand(gamma_t - gamma_s, squared_error))
    if assumed is None:
        return 0.5 * growth * squared_error
    wide = growth * assumed
    return 0.5 * (torch.log1p(wide) + (growth * squared_error - wide) / (1 + wide))
