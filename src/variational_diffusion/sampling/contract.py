"""What a sampler asks of a model, and what is asked of a sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from variational_diffusion.errors import InputError
from variational_diffusion.numerics import Normal


class Denoised(NamedTuple):
    """Estimates of the noise ε and of the encoded data x in z = alpha x + sigma ε."""

    noise: Tensor
    x: Tensor


@runtime_checkable
class ReverseProcess(Protocol):
    """What a sampler asks of a model; `VDM` has it."""

    def denoise(self, z: Tensor, gamma: Tensor) -> Denoised:
        """Estimate the noise in z and the encoded data under it."""

    def reverse(
        self,
        z_t: Tensor,
        gamma_t: Tensor,
        gamma_s: Tensor,
    ) -> Normal:
        """Return p(z_s|z_t)."""

    def drift(self, z: Tensor, gamma: Tensor) -> Tensor:
        """Return dz/dγ of the probability-flow ODE."""


def estimate(
    network: Callable[..., Tensor], z: Tensor, gamma: Tensor, conditioning: Tensor | None
) -> Tensor:
    """Return a network's output, which has the shape and the type of z.

    Under torch's autocast it is brought to that type. Raises InputError where it does not fit:
    shapes that broadcast would give samples without a word, and half precision is too coarse.
    """
    output = network(z, gamma, conditioning)
    if torch.is_autocast_enabled(z.device.type):
        output = output.to(z.dtype)
    if output.shape != z.shape or output.dtype != z.dtype:
        raise InputError(
            f"the network's output has shape {tuple(output.shape)} and type {output.dtype}: return "
            f"an estimate for every entry of z, of shape {tuple(z.shape)} and type {z.dtype}"
        )
    return output


Sampler = Callable[..., Iterator[Tensor]]
"""(model, z, gammas, *, generator) → z after every step; see the package."""
