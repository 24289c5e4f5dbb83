"""x̂ kept within the range of the data."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from variational_diffusion import process
from variational_diffusion.errors import InputError
from variational_diffusion.numerics import expand
from variational_diffusion.sampling.contract import estimate


class Clipped(nn.Module):
    """A network whose x̂ lies in [−limit, limit], by another one.

    quantile: 0 cuts x̂ off at the limit. q > 0 cuts it off at that quantile of its sizes in an
        example, where this is above the limit, and scales the example down to the limit (Saharia
        et al., "Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding"
        (2022), section 2.3, dynamic thresholding).
    prediction: what the network estimates, as in `VDM`. Where x̂ is in range its output is kept.
    """

    def __init__(
        self, network: nn.Module, prediction: str, limit: float, quantile: float = 0.0
    ) -> None:
        super().__init__()
        if not 0 <= quantile <= 1:
            raise InputError(f"clip = {quantile}: give 0 to cut off, or a quantile up to 1")
        self.network, self.prediction = network, prediction
        self.limit, self.quantile = limit, quantile

    def around(self, network: nn.Module) -> Clipped:
        """Return the same around another network."""
        return Clipped(network, self.prediction, self.limit, self.quantile)

    def forward(
        self,
        z: Float[Tensor, "batch *shape"],
        gamma: Float[Tensor, " batch"],
        conditioning: Tensor | None = None,
    ) -> Float[Tensor, "batch *shape"]:
        """Return the estimate that fits to the clipped x̂."""
        output = estimate(self.network, z, gamma, conditioning)
        alpha, sigma = expand(process.alpha(gamma), z), expand(process.sigma(gamma), z)
        if self.prediction == "noise":
            x = (z - sigma * output) / alpha
            clipped = self._clip(x)
            fitting = (z - alpha * clipped) / sigma
        else:
            x = alpha * z - sigma * output
            clipped = self._clip(x)
            fitting = (alpha * z - clipped) / sigma
        return torch.where(clipped == x, output, fitting)

    def _clip(self, x: Tensor) -> Tensor:
        place = math.ceil(self.quantile * x[0].numel())
        if place == 0:
            return x.clamp(-self.limit, self.limit)
        size = x.abs().flatten(1).kthvalue(place, dim=1).values
        size = expand(size.clamp(min=self.limit), x)
        return x.clamp(-size, size) * (self.limit / size)
