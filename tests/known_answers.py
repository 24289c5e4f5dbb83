"""Gaussian data, for which everything has a closed form: x ~ N(mean, std² I)."""

import itertools
import math

import torch
from torch import Tensor, nn

from variational_diffusion.decoders import Gaussian
from variational_diffusion.model import VDM
from variational_diffusion.numerics import expand
from variational_diffusion.schedules import FixedLinear, Schedule


class ExactDenoiser(nn.Module):
    """E[ε|z] = sigma (z − alpha mean)/(alpha² std² + sigma²), as noise or as velocity."""

    def __init__(self, mean: float, std: float, prediction: str) -> None:
        super().__init__()
        self.mean, self.std, self.prediction = mean, std, prediction

    def forward(self, z: Tensor, gamma: Tensor, conditioning: Tensor | None = None) -> Tensor:
        gamma = expand(gamma, z)
        alpha, sigma = (-gamma).sigmoid().sqrt(), gamma.sigmoid().sqrt()
        noise = sigma * (z - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2)
        if self.prediction == "noise":
            return noise
        return (noise - sigma * z) / alpha  # ε̂ = alpha v̂ + sigma z


def exact_vdm(
    *,
    mean: float = 0.3,
    std: float = 0.5,
    dimensions: int = 4,
    gamma_min: float = -6.0,
    gamma_max: float = 4.0,
    prediction: str = "velocity",
    schedule: Schedule | None = None,
) -> VDM:
    """Return the model that is exact for N(mean, std² I), in float64."""
    schedule = schedule or FixedLinear(gamma_min, gamma_max)
    network = ExactDenoiser(mean, std, prediction)
    return VDM(network, schedule, Gaussian(), (dimensions,), prediction).double()


def error(gamma: float, std: float) -> float:
    """E(ε − ε̂)² per dimension: std²/(std² + e^γ)."""
    return std**2 / (std**2 + math.exp(gamma))


def diffusion(gamma_0: float, gamma_1: float, std: float) -> float:
    """½ ∫ E(ε − ε̂)² dγ per dimension, in nats."""

    def antiderivative(gamma: float) -> float:
        return gamma - math.log(std**2 + math.exp(gamma))

    return 0.5 * (antiderivative(gamma_1) - antiderivative(gamma_0))


def diffusion_discrete(gammas: list[float], std: float) -> float:
    """½ Σ expm1(γ_t − γ_s) E(ε − ε̂(γ_t))² per dimension, in nats; gammas rise."""
    return 0.5 * sum(math.expm1(t - s) * error(t, std) for s, t in itertools.pairwise(gammas))


def prior(gamma_1: float, mean: float, std: float) -> float:
    """E KL(q(z_1|x) ‖ N(0, 1)) per dimension, in nats."""
    alpha_2, sigma_2 = 1 / (1 + math.exp(gamma_1)), 1 / (1 + math.exp(-gamma_1))
    return 0.5 * (sigma_2 + alpha_2 * (mean**2 + std**2) - math.log(sigma_2) - 1)


def reconstruction(gamma_0: float) -> float:
    """E −log N(x; z_0/alpha_0, e^γ_0) per dimension, in nats: the entropy of the noise on x."""
    return 0.5 * (math.log(2 * math.pi) + gamma_0 + 1)


def entropy(std: float) -> float:
    """E −log p(x) per dimension, in nats."""
    return 0.5 * math.log(2 * math.pi * math.e * std**2)


def gap(gamma_0: float, gamma_1: float, mean: float, std: float) -> float:
    """What separates the bound from the entropy, per dimension, with the exact denoiser.

    KL(q(z_1) ‖ N(0, 1)) + E KL(q(x|z_0) ‖ p(x|z_0)); the chain between loses nothing.
    """
    alpha_2, sigma_2 = 1 / (1 + math.exp(gamma_1)), 1 / (1 + math.exp(-gamma_1))
    variance = alpha_2 * std**2 + sigma_2
    last = 0.5 * (variance + alpha_2 * mean**2 - math.log(variance) - 1)
    return last + 0.5 * math.log1p(math.exp(gamma_0) / std**2)


def ancestral_moments(gammas: list[float], mean: float, std: float) -> tuple[float, float]:
    """Mean and variance of z_0 when the exact chain starts from N(0, 1) at gammas[0]; they fall."""
    m, v = 0.0, 1.0
    for t, s in itertools.pairwise(gammas):
        alpha_t, alpha_s = (1 / math.sqrt(1 + math.exp(g)) for g in (t, s))
        sigma_t2, sigma_s2 = (1 / (1 + math.exp(-g)) for g in (t, s))
        c = 1 - math.exp(s - t)
        shrink = alpha_t * std**2 / (alpha_t**2 * std**2 + sigma_t2)  # x̂ = mean + shrink (z − …)
        slope = alpha_s * ((1 - c) / alpha_t + c * shrink)
        offset = alpha_s * c * mean * (1 - shrink * alpha_t)
        m, v = slope * m + offset, slope**2 * v + sigma_s2 * c
    return m, v


class CorrelatedDenoiser(nn.Module):
    """E[ε|z] for x ~ N(mean, covariance), one γ for the whole batch, as noise."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        super().__init__()
        self.mean, self.covariance = mean, covariance

    def forward(self, z: Tensor, gamma: Tensor, conditioning: Tensor | None = None) -> Tensor:
        alpha, sigma = (-gamma[0]).sigmoid().sqrt(), gamma[0].sigmoid().sqrt()
        spread = alpha**2 * self.covariance + sigma**2 * torch.eye(len(self.mean)).to(z)
        return sigma * torch.linalg.solve(spread, (z - alpha * self.mean).T).T


def correlated_vdm(
    mean: Tensor, covariance: Tensor, gamma_min: float = -8.0, gamma_max: float = 8.0
) -> VDM:
    """Return the model that is exact for N(mean, covariance), in float64."""
    network = CorrelatedDenoiser(mean, covariance)
    schedule = FixedLinear(gamma_min, gamma_max)
    return VDM(network, schedule, Gaussian(), (len(mean),), "noise").double()
