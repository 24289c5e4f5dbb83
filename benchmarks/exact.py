"""Models whose every figure is known: the best denoiser of a mixture has a closed form.

The data are patterns of integer levels, each with its probability, so −log P(x) is known for every
example and a mean over the population is a finite sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from variational_diffusion import process
from variational_diffusion.conditions import Labels
from variational_diffusion.decoders import Discretized
from variational_diffusion.model import VDM
from variational_diffusion.presets import noise_range
from variational_diffusion.schedules import FixedLinear, Schedule


class Mixture(nn.Module):
    """E[ε|z] for data from Σ_k weights_k N(centres_k, std² I), as noise.

    weights: shape (K,), of sum 1. centres: encoded, shape (K, *shape). std: 0 for known patterns.
    classes: of each component, shape (K,): with a one-hot class as conditioning it is the denoiser
    of the class, with zeros or without conditioning that of all.
    """

    def __init__(
        self, weights: Tensor, centres: Tensor, std: float = 0.0, classes: Tensor | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("log_weights", weights.double().log())
        self.register_buffer("centres", centres.double().flatten(1))
        self.std = std
        members = None if classes is None else nn.functional.one_hot(classes).T.double()
        self.register_buffer("members", members)  # (classes, K)

    def log_prob(self, z: Tensor, gamma: Tensor) -> Tensor:
        """Return the log density of z_γ, shape (batch,); gamma of shape (batch,) or ()."""
        alpha, variance = self._alpha_and_variance(gamma.expand(len(z)))
        constant = z[0].numel() * torch.log(2 * math.pi * variance[:, 0])
        far = z.flatten(1).square().sum(1) / variance[:, 0]
        return self._parts(z, alpha, variance).logsumexp(1) - 0.5 * (far + constant)

    def forward(self, z: Tensor, gamma: Tensor, conditioning: Tensor | None = None) -> Tensor:
        """Return ε̂(z; γ)."""
        alpha, variance = self._alpha_and_variance(gamma)
        parts = self._parts(z, alpha, variance)
        if conditioning is not None:
            free = (conditioning.sum(1, keepdim=True) == 0).to(z)
            parts = parts + (conditioning @ self.members + free).log()
        mean = parts.softmax(1) @ self.centres
        noise = process.sigma(gamma)[:, None] * (z.flatten(1) - alpha * mean) / variance
        return noise.reshape(z.shape)

    def _parts(self, z: Tensor, alpha: Tensor, variance: Tensor) -> Tensor:
        """Return log weights_k N(z; alpha c_k, variance), but for what all k share."""
        near = alpha * (z.flatten(1) @ self.centres.T)
        near = near - 0.5 * alpha.square() * self.centres.square().sum(1)
        return self.log_weights + near / variance

    def _alpha_and_variance(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = process.alpha(gamma)[:, None], process.sigma(gamma)[:, None]
        return alpha, (alpha * self.std) ** 2 + sigma**2


def exact_model(
    patterns: np.ndarray,
    weights: Sequence[float] | np.ndarray,
    levels: int,
    *,
    std: float = 0.0,
    classes: np.ndarray | None = None,
    schedule: Schedule | None = None,
) -> VDM:
    """Return the model, in float64, that is exact for patterns, shape (K, *shape), and weights.

    classes: of each pattern, from 0; the model is then conditioned on labels. schedule: by default
    linear, between the presets' end points for so many levels.
    """
    decoder = Discretized(levels)
    share = torch.as_tensor(np.asarray(weights, dtype=float))
    of = None if classes is None else torch.from_numpy(np.asarray(classes))
    network = Mixture(share, decoder.encode(torch.from_numpy(patterns)), std, of)
    schedule = schedule or FixedLinear(*noise_range(levels))
    condition = None
    if of is not None:
        names = [f"class {k}" for k in range(int(of.max()) + 1)]
        condition = Labels(names, [float(share[of == k].sum()) for k in range(len(names))])
    parts = network, schedule, decoder, patterns.shape[1:], "noise", condition
    return VDM(*parts).double().eval()
