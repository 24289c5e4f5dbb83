"""A small network that predicts where the noise estimate is wrong, for the reverse variance."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from variational_diffusion.config import Blocks, Count, Levels, LogNoise
from variational_diffusion.networks.layers import (
    NoiseLevelEmbedding,
    Stage,
    group_norm,
    image_channels,
    inputs_per_channel,
    with_features,
    zero_initialised,
)


class VarianceHead(nn.Module):
    """log E[(ε − ε̂)² | z] of every position, less that of its mean over all z.

    A few ResNet blocks at full resolution on z, its features and ε̂, which start at
    zero.

    shape: (channels, height, width).
    gamma_min, gamma_max: range that the embedding maps to [0, 1].
    levels: number of levels of discrete data; None: real values.

    Source: Bao, Li, Sun, Zhu, Zhang, "Estimating the Optimal Covariance with Imperfect Mean in
    Diffusion Probabilistic Models" (2022), section 3.2: a second network for the squared error.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        gamma_min: LogNoise,
        gamma_max: LogNoise,
        levels: Levels | None = None,
        width: Count = 16,
        blocks: Blocks = 2,
    ) -> None:
        super().__init__()
        channels = image_channels(shape)
        self.levels = levels
        self.options = {
            "gamma_min": gamma_min,
            "gamma_max": gamma_max,
            "levels": levels,
            "width": width,
            "blocks": blocks,
        }
        self.embedding = NoiseLevelEmbedding(width, gamma_min, gamma_max, conditioning_size=0)
        inputs = channels * (inputs_per_channel(levels) + 1)
        self.conv_in = nn.Conv2d(inputs, width, 3, padding=1)
        self.blocks = Stage(width, width, self.embedding.size, blocks=blocks, dropout=0.0)
        self.norm_out = group_norm(width)
        self.conv_out = zero_initialised(nn.Conv2d(width, channels, 3, padding=1))

    def forward(
        self,
        z: Float[Tensor, "batch c h w"],
        gamma: Float[Tensor, " batch"],
        noise: Float[Tensor, "batch c h w"],
    ) -> Float[Tensor, "batch c h w"]:
        h = torch.cat([with_features(z, gamma, self.levels), noise], dim=1)
        h = self.blocks(self.conv_in(h), self.embedding(gamma, None))
        return self.conv_out(silu(self.norm_out(h)))
