"""A transformer on patches, between two convolutional blocks at full resolution."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, pad, pixel_shuffle, scaled_dot_product_attention, silu

from variational_diffusion.config import Blocks, Count, Levels, LogNoise, Share, Size
from variational_diffusion.errors import InputError
from variational_diffusion.networks.dropout import Dropout
from variational_diffusion.networks.layers import (
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


class Transformer(nn.Module):
    """A prediction of the shape of z from (z, γ), by attention between patches.

    A stage of ResNet blocks sees single pixels, its output is cut into patches for the transformer,
    and what comes back is joined with it in a second stage: the last bits of a pixel depend on the
    noise next to it, which no patch embedding carries.

    Args:
        shape: (channels, height, width), any; padded to whole patches inside.
        gamma_min: Lower end of the range that the embedding of γ covers.
        gamma_max: Upper end of that range.
        levels: Number of levels of discrete data, whose lattice is then an input; None: real
            values.
        patch: Side of a patch, in pixels.
        width: Size of a patch's vector.
        depth: Number of transformer blocks.
        heads: Attention heads; they divide `width`.
        channels: Of the two stages at full resolution.
        blocks: ResNet blocks of each of these stages.
        dropout: Probability of dropout in training, in [0, 1).
        conditioning_size: Length of a vector to condition on, shape (batch, conditioning_size).
        conditioning_channels: Of an image to condition on, of the examples' height and width; the
            conditioning is one or the other.

    Raises:
        InputError: For another rank than that of images.

    Source: Peebles and Xie, "Scalable Diffusion Models with Transformers" (2023): its adaLN-Zero
    blocks.

    Examples:
        >>> network = vd.Transformer((1, 8, 8), width=12, depth=1, channels=8)
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
        patch: Count = 4,
        width: Count = 96,
        depth: Blocks = 6,
        heads: Count = 3,
        channels: Count = 32,
        blocks: Blocks = 1,
        dropout: Share = 0.0,
        conditioning_size: Size = 0,
        conditioning_channels: Size = 0,
    ) -> None:
        super().__init__()
        in_channels = image_channels(shape)
        if channels % 4 or width % heads:
            raise InputError(
                f"channels = {channels}, width = {width}, heads = {heads}: give channels as a "
                "multiple of 4 and a width that the heads divide"
            )
        self.levels = levels
        self.conditioning_channels = conditioning_channels
        self.patch = patch
        self.grid = math.ceil(shape[1] / patch), math.ceil(shape[2] / patch)
        self.embedding = NoiseLevelEmbedding(32, gamma_min, gamma_max, conditioning_size)
        size = self.embedding.size

        def stage(channels_in: int) -> Stage:
            return Stage(channels_in, channels, size, blocks=blocks, dropout=dropout)

        inputs = in_channels * inputs_per_channel(levels) + conditioning_channels
        self.conv_in = nn.Conv2d(inputs, channels, 3, padding=1)
        self.before = stage(channels)
        self.to_patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.position = nn.Parameter(0.02 * torch.randn(math.prod(self.grid), width))
        self.blocks = nn.ModuleList(
            TransformerBlock(width, heads, size, dropout=dropout) for _ in range(depth)
        )
        self.norm_patches = nn.LayerNorm(width)
        self.from_patches = nn.Linear(width, channels * patch**2)
        self.after = stage(2 * channels)
        self.norm_out = group_norm(channels)
        self.conv_out = zero_initialised(nn.Conv2d(channels, in_channels, 3, padding=1))

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
        h = self.before(h, embedding)
        height, width = z.shape[-2:]
        rows, columns = self.grid
        whole = pad(h, (0, columns * self.patch - width, 0, rows * self.patch - height))
        patches = self.to_patches(whole).flatten(2).mT + self.position
        for block in self.blocks:
            patches = block(patches, embedding)
        patches = self.from_patches(self.norm_patches(patches)).mT
        back = pixel_shuffle(patches.unflatten(2, self.grid), self.patch)[..., :height, :width]
        h = self.after(torch.cat([h, back], dim=1), embedding)
        with full_precision(z):
            return self.conv_out(silu(self.norm_out(h.to(z.dtype))))


class TransformerBlock(nn.Module):
    """Attention and a dense layer, each normalised, scaled, shifted and gated by the embedding."""

    def __init__(
        self, width: int, heads: int, embedding_size: int, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.heads = heads
        self.modulate = zero_initialised(nn.Linear(embedding_size, 6 * width))
        self.norm_1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm_2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.dense_1 = nn.Linear(width, 4 * width)
        self.dropout = Dropout(dropout)
        self.dense_2 = nn.Linear(4 * width, width)

    def forward(
        self, x: Float[Tensor, "batch n width"], embedding: Float[Tensor, "batch size"]
    ) -> Float[Tensor, "batch n width"]:
        modulation = self.modulate(embedding).unsqueeze(1)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation.chunk(6, dim=-1)
        h = self.query_key_value(self.norm_1(x) * (1 + scale_1) + shift_1)
        query, key, value = h.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + gate_1 * self.project(h)
        h = self.dense_1(self.norm_2(x) * (1 + scale_2) + shift_2)
        return x + gate_2 * self.dense_2(self.dropout(gelu(h, approximate="tanh")))
