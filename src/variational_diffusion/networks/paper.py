"""The network of the paper, to the letter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import silu

from variational_diffusion.config import Blocks, Count, LogNoise, Share
from variational_diffusion.errors import InputError
from variational_diffusion.networks.layers import (
    AttentionBlock,
    NoiseLevelEmbedding,
    ResnetBlock,
    fourier_features,
    full_precision,
    group_norm,
    image_channels,
    zero_initialised,
)

FourierExponent = Annotated[int, Field(ge=-64, le=64)]


class PaperUNet(nn.Module):
    """ε̂(z, γ) at full resolution throughout, with skips from the way down to the way up.

    conv → `blocks` ResNet blocks → block, attention, block → `blocks` + 1 blocks on [h, skip] →
    GroupNorm, SiLU, conv; ε̂ = net + z. Fourier features of z are appended to the input. The
    parameters of the official release fit this network one by one. Its conditioning is one number
    an example, shape (batch, 1), or None.

    Args:
        shape: (channels, height, width), any.
        gamma_min: Lower end of the range that the embedding of γ covers.
        gamma_max: Upper end of that range.
        width: 128 in the paper's CIFAR-10 model (30.5 M parameters).
        blocks: 32 in that model.
        groups: Of every GroupNorm; None: 32, or a quarter of `width` where that is less.
        dropout: Probability of dropout in training, in [0, 1).
        fourier_exponents: n of the features sin, cos(2π 2^n z); they suit 256 levels.

    Raises:
        InputError: For another rank than that of images.

    Source: Kingma et al. (2021), appendix B; the official release's `ScoreUNet`.

    Examples:
        >>> network = vd.PaperUNet((1, 4, 4), width=8, blocks=1)
        >>> network(torch.randn(2, 1, 4, 4), torch.zeros(2)).shape
        torch.Size([2, 1, 4, 4])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        gamma_min: LogNoise = -13.3,
        gamma_max: LogNoise = 5.0,
        width: Count = 128,
        blocks: Blocks = 32,
        groups: Count | None = None,
        dropout: Share = 0.1,
        fourier_exponents: Sequence[FourierExponent] = (6, 7),
    ) -> None:
        super().__init__()
        channels = image_channels(shape)
        if width < 4:
            raise InputError(f"width = {width}: this network takes 4 channels or more")
        self.fourier_exponents = tuple(fourier_exponents)
        self.embedding = NoiseLevelEmbedding(width, gamma_min, gamma_max, conditioning_size=1)

        def block(channels_in: int) -> ResnetBlock:
            return ResnetBlock(
                channels_in, width, self.embedding.size, groups=groups, dropout=dropout
            )

        inputs = channels * (1 + 2 * len(self.fourier_exponents))
        self.conv_in = nn.Conv2d(inputs, width, 3, padding=1)
        self.down = nn.ModuleList(block(width) for _ in range(blocks))
        self.middle_1 = block(width)
        self.middle_attention = AttentionBlock(width, groups=groups)
        self.middle_2 = block(width)
        self.up = nn.ModuleList(block(2 * width) for _ in range(blocks + 1))
        self.norm_out = group_norm(width, groups)
        self.conv_out = zero_initialised(nn.Conv2d(width, channels, 3, padding=1))

    def forward(
        self,
        z: Float[Tensor, "batch c h w"],
        gamma: Float[Tensor, " batch"],
        conditioning: Float[Tensor, "batch 1"] | None = None,
    ) -> Float[Tensor, "batch c h w"]:
        with full_precision(z):
            embedding = self.embedding(gamma, conditioning)
            h = self.conv_in(torch.cat([z, fourier_features(z, self.fourier_exponents)], dim=1))
        skips = [h]
        for block in self.down:
            h = block(h, embedding)
            skips.append(h)
        h = self.middle_1(h, embedding)
        h = self.middle_attention(h)
        h = self.middle_2(h, embedding)
        for block in self.up:
            h = block(torch.cat([h, skips.pop()], dim=1), embedding)
        with full_precision(z):
            return z + self.conv_out(silu(self.norm_out(h.to(z.dtype))))
