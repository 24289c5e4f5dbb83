"""Samplers: generators that carry z along a falling grid of γ.

A sampler yields z after every step; what is done with it (a progress bar, an animation, stopping)
is the caller's loop. A sampler needs a reverse process, nothing else of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from variational_diffusion.numerics import Normal


@runtime_checkable
class ReverseProcess(Protocol):
    """What a sampler asks of a model; `VDM` has it."""

    def reverse(
        self,
        z_t: Tensor,
        gamma_t: Tensor,
        gamma_s: Tensor,
        conditioning: Tensor | None = None,
    ) -> Normal:
        """Return p(z_s|z_t)."""


def ancestral(
    model: ReverseProcess,
    z: Float[Tensor, "batch *shape"],
    gammas: Float[Tensor, " levels"],
    *,
    conditioning: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Float[Tensor, "batch *shape"]]:
    """Draw z_s ~ p(z_s|z_t) for each step of the grid (VDM appendix A).

    z: drawn from the prior N(0, I). gammas: from γ_1 down to γ_0, one more than there are steps.
    """
    for gamma_t, gamma_s in pairwise(gammas):
        z = model.reverse(z, gamma_t, gamma_s, conditioning).sample(generator)
        yield z


Sampler = Callable[..., Iterator[Tensor]]

SAMPLERS: dict[str, Sampler] = {
    "ancestral": ancestral,
}
