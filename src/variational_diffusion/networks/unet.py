"""A down-sampling U-Net: the default network for images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate, silu

from variational_diffusion.config import Blocks, Count, Levels, LogNoise, Share, Size
from variational_diffusion.errors import InputError
from variational_diffusion.networks.layers import (
    AttentionBlock,
    NoiseLevelEmbedding,
    Stage,
    full_precision,
    group_norm,
    image_channels,
    inputs_per_channel,
    with_features,
    with_image,
    zero_initialised,
)


class UNet(nn.Module):
    """A prediction of the shape of z from (z, γ), computed at several resolutions.

    Every resolution has `blocks` ResNet blocks on the way down and on the way up, where the last
    output of the same resolution is joined in. A step down halves height and width, rounded up, so
    any size is allowed.

    Args:
        shape: (channels, height, width).
        gamma_min: Lower end of the range that the embedding of γ covers.
        gamma_max: Upper end of that range.
        levels: Number of levels of discrete data, whose lattice is then an input; None: real
            values.
        widths: Channels at each resolution, the full one first.
        blocks: ResNet blocks at each resolution, each way.
        attention: Whether the lowest resolution ends in self-attention.
        dropout: Probability of dropout in training, in [0, 1).
        conditioning_size: Length of a vector to condition on, shape (batch, conditioning_size).
        conditioning_channels: Of an image to condition on, of the examples' height and width; the
            conditioning is one or the other.

    Raises:
        InputError: For another rank than that of images.

    Examples:
        >>> network = vd.UNet((1, 8, 8), widths=(8, 16), levels=17)
        >>> network(torch.randn(2, 1, 8, 8), torch.zeros(2)).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        gamma_min: LogNoise = -13.3,
        gamma_max: LogNoise = 5.0,
        levels: Levels | None = None,
        widths: Annotated[Sequence[Count], Field(min_length=1)] = (32, 48, 64),
        blocks: Blocks = 1,
        attention: bool = False,
        dropout: Share = 0.0,
        conditioning_size: Size = 0,
        conditioning_channels: Size = 0,
    ) -> None:
        super().__init__()
        channels = image_channels(shape)
        if any(width % 4 for width in widths) or not widths:
            raise InputError(f"widths = {list(widths)}: give one or more multiples of 4")
        self.levels = levels
        self.conditioning_channels = conditioning_channels
        self.embedding = NoiseLevelEmbedding(widths[0], gamma_min, gamma_max, conditioning_size)
        size = self.embedding.size

        def stage(channels_in: int, width: int) -> Stage:
            return Stage(channels_in, width, size, blocks=blocks, dropout=dropout)

        inputs = channels * inputs_per_channel(levels) + conditioning_channels
        self.conv_in = nn.Conv2d(inputs, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        self.shrink = nn.ModuleList()
        self.grow = nn.ModuleList()
        self.up = nn.ModuleList()
        for i, width in enumerate(widths):
            self.down.append(stage(width, width))
            self.up.append(stage(2 * width, width))
            if i + 1 < len(widths):
                self.shrink.append(nn.Conv2d(width, widths[i + 1], 3, stride=2, padding=1))
                self.grow.append(nn.Conv2d(widths[i + 1], width, 1))
        self.attention = AttentionBlock(widths[-1]) if attention else None
        self.norm_out = group_norm(widths[0])
        self.conv_out = zero_initialised(nn.Conv2d(widths[0], channels, 3, padding=1))

    def forward(
        self,
        z: Float[Tensor, "batch c h w"],
        gamma: Float[Tensor, " batch"],
        conditioning: Float[Tensor, "batch *condition"] | None = None,
    ) -> Float[Tensor, "batch c h w"]:
        with full_precision(z):
            channels = self.conditioning_channels
            embedding = self.embedding(gamma, None if channels else conditioning)
            inputs = with_features(z, gamma, self.levels)
            h = self.conv_in(with_image(inputs, conditioning, channels))
        skips = []
        for i, blocks in enumerate(self.down):
            h = blocks(h, embedding)
            skips.append(h)
            if i < len(self.shrink):
                h = self.shrink[i](h)
        if self.attention is not None:
            h = self.attention(h)
        for i in reversed(range(len(self.up))):
            skip = skips[i]
            if i < len(self.grow):
                # project before enlarging: the same numbers, computed on a quarter of the pixels
                h = interpolate(self.grow[i](h), size=skip.shape[-2:], mode="nearest")
            h = self.up[i](torch.cat([h, skip], dim=1), embedding)
        with full_precision(z):
            return self.conv_out(silu(self.norm_out(h.to(z.dtype))))
