"""A network with its condition filled in, and guidance by it.

Classifier-free guidance takes ε̂(z) + w (ε̂(z; c) − ε̂(z)) for the noise, which is sharper in c than
p(x|c) for w > 1 (Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022, eq. 6, with w − 1
for their w). In an interval of noise levels alone it costs less of the samples' variety
(Kynkäänniemi et al., "Applying Guidance in a Limited Interval Improves Sample and Distribution
Quality in Diffusion Models", 2024).

Noise and velocity are the same affine function of each other in both terms, and the weights add up
to one, so guidance of a network's output is guidance of ε̂, whatever the network predicts. Samplers
and the probability-flow ODE call the network and need not know of it.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from variational_diffusion.errors import InputError
from variational_diffusion.numerics import expand

EVERYWHERE = (-math.inf, math.inf)


class Guided(nn.Module):
    """A network of (z, γ) alone: another one, given what it is conditioned on.

    conditioning: encoded, shape (batch, *condition); one row serves any batch.
    weight: w ≥ 0; 1 is p(x|c) itself and 0 is p(x).
    interval: lowest and highest γ at which w applies; elsewhere it is 1.
    """

    def __init__(
        self,
        network: nn.Module,
        conditioning: Float[Tensor, "batch *condition"],
        weight: float = 1.0,
        interval: tuple[float, float] = EVERYWHERE,
    ) -> None:
        super().__init__()
        if not 0 <= weight < math.inf:
            raise InputError(f"guidance = {weight}: give a number of 0 or more; 1 is none")
        if not interval[0] < interval[1]:
            raise InputError(
                f"guidance_interval = {interval}: the lower γ comes first, as in "
                "--guidance-interval -4 2"
            )
        self.network = network
        self.conditioning = conditioning
        self.weight, self.interval = weight, interval

    def forward(
        self,
        z: Float[Tensor, "batch *shape"],
        gamma: Float[Tensor, " batch"],
        conditioning: None = None,
    ) -> Float[Tensor, "batch *shape"]:
        assert conditioning is None, "the condition of this network is filled in"
        c = self.conditioning.expand(len(z), *self.conditioning.shape[1:])
        low, high = self.interval
        inside = (low <= gamma) & (gamma <= high)
        if self.weight == 1 or not bool(inside.any()):
            return self.network(z, gamma, c)
        both = torch.cat([c, torch.zeros_like(c)])
        output = self.network(torch.cat([z, z]), torch.cat([gamma, gamma]), both)
        given, free = output.chunk(2)
        guided = free + self.weight * (given - free)
        return torch.where(expand(inside, z), guided, given)
