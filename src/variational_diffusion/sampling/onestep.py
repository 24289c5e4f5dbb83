"""Samplers whose steps do not know of each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from variational_diffusion import flow, process
from variational_diffusion.sampling.contract import ReverseProcess


def ancestral(
    model: ReverseProcess,
    z: Float[Tensor, "batch *shape"],
    gammas: Float[Tensor, " levels"],
    *,
    generator: torch.Generator | None = None,
) -> Iterator[Float[Tensor, "batch *shape"]]:
    """Draw z_s ~ p(z_s|z_t) for each step of the grid (VDM appendix A).

    The only sampler of the chain whose bound is known, and the only one that uses its variance.
    """
    for gamma_t, gamma_s in pairwise(gammas):
        z = model.reverse(z, gamma_t, gamma_s).sample(generator)
        yield z


def heun(
    model: ReverseProcess,
    z: Float[Tensor, "batch *shape"],
    gammas: Float[Tensor, " levels"],
    *,
    generator: torch.Generator | None = None,
) -> Iterator[Float[Tensor, "batch *shape"]]:
    """Follow the flow by the trapezoidal rule, two evaluations a step; draws nothing.

    With y = z/alpha and k = sigma/alpha it is dy/dk = ε̂ (Karras, Aittala, Aila, Laine,
    "Elucidating the Design Space of Diffusion-Based Generative Models" (2022), algorithm 1).
    """
    for gamma_t, gamma_s in pairwise(gammas):
        alpha_ts = process.alpha(gamma_s) / process.alpha(gamma_t)
        # alpha_s (k_s − k_t)
        move = alpha_ts * process.sigma(gamma_t) * torch.expm1(0.5 * (gamma_s - gamma_t))
        noise = model.denoise(z, gamma_t).noise
        ahead = model.denoise(alpha_ts * z + move * noise, gamma_s).noise
        z = alpha_ts * z + 0.5 * move * (noise + ahead)
        yield z


@dataclass(frozen=True)
class Adaptive:
    """Follow the flow by dopri5, which chooses its own steps between those of the grid.

    The solver begins anew at every step of the grid, so few of them are best; it takes eight
    evaluations or more for each. tolerance: error of one of its steps, as in `flow.solve`; it is
    measured over the batch, so a sample depends a little on those drawn with it.
    """

    tolerance: float = 1e-4

    def __call__(
        self,
        model: ReverseProcess,
        z: Float[Tensor, "batch *shape"],
        gammas: Float[Tensor, " levels"],
        *,
        generator: torch.Generator | None = None,
    ) -> Iterator[Float[Tensor, "batch *shape"]]:
        """Yield z at every level of the grid; draws nothing."""
        for gamma_t, gamma_s in pairwise(gammas):
            solution = flow.solve(model, z, gamma_t, gamma_s, tolerance=self.tolerance)
            z = solution.z
            yield z
