"""x̂ kept within the range of the data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from variational_diffusion import process
from variational_diffusion.denoiser import AssumedErrors, Denoised, Denoiser
from variational_diffusion.errors import InputError
from variational_diffusion.numerics import expand


@dataclass(frozen=True)
class Clipped(Denoiser):
    """A denoiser whose x̂ lies in [−limit, limit], and whose ε̂ fits to it.

    quantile: 0 cuts x̂ off at the limit. q > 0 cuts it off at that quantile of its sizes in an
    example, where this is above the limit, and scales the example down to the limit (Saharia et
    al., "Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding" (2022),
    section 2.3, dynamic thresholding).
    """

    model: Denoiser
    limit: float
    quantile: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.quantile <= 1:
            raise InputError(f"clip = {self.quantile}: give a quantile from 0 to 1")

    @property
    def reverse_errors(self) -> AssumedErrors | None:  # type: ignore[override]
        """Those of the model."""
        return self.model.reverse_errors

    def denoise(
        self, z: Tensor, gamma: process.Gamma, conditioning: Tensor | None = None
    ) -> Denoised:
        noise, x = self.model.denoise(z, gamma, conditioning)
        clipped = self._clip(x)
        gamma = expand(gamma, z)
        fitting = (z - process.alpha(gamma) * clipped) / process.sigma(gamma)
        return Denoised(torch.where(clipped == x, noise, fitting), clipped)

    def _clip(self, x: Tensor) -> Tensor:
        place = math.ceil(self.quantile * x[0].numel())
        if place == 0:
            return x.clamp(-self.limit, self.limit)
        size = x.abs().flatten(1).kthvalue(place, dim=1).values
        size = expand(size.clamp(min=self.limit), x)
        return x.clamp(-size, size) * (self.limit / size)
