"""Layers that the networks share: features of z, the noise level's embedding, blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from variational_diffusion.errors import InputError
from variational_diffusion.lattice import mean_distance
from variational_diffusion.networks.dropout import Dropout
from variational_diffusion.numerics import expand
from variational_diffusion.process import alpha


def full_precision(x: Tensor) -> torch.autocast:
    """Return a context in which autocast is off, for the first and the last layer of a network.

    sigma_0 = 0.0013 is below the spacing of bfloat16 near 1 (0.0039): z, what is computed from it
    and the output keep their own precision, and only the layers between may run in a lower one.
    """
    return torch.autocast(x.device.type, enabled=False)


def image_channels(shape: tuple[int, ...]) -> int:
    """Return the channels of (channels, height, width); raise `InputError` for other ranks."""
    if len(shape) != 3:
        raise InputError(
            f"shape = {tuple(shape)}: this network takes images, (channels, height, width); "
            "use the network mlp for other arrays"
        )
    return shape[0]


def fourier_features(
    z: Float[Tensor, "batch channels *space"], exponents: Sequence[int]
) -> Float[Tensor, "batch features *space"]:
    """Return sin(2π 2^n z), then cos(2π 2^n z), for every n of `exponents` (VDM section 3.4).

    2 · channels · len(exponents) features, those of one channel side by side.
    """
    angles = torch.stack([2 * math.pi * 2.0**n * z for n in exponents], dim=2).flatten(1, 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def lattice_features(
    z: Float[Tensor, "batch channels *space"], gamma: Float[Tensor, " batch"], levels: int
) -> Float[Tensor, "batch features *space"]:
    """Return where z/alpha lies in the lattice of the levels, in standard deviations of the noise.

    Three features per channel, those of one kind side by side: how far it is from the levels around
    it (`lattice.mean_distance`, cut off at ±4), above the lowest level and below the highest (both
    squashed to ±4). The first is nearly the noise itself where that is finer than the spacing of
    the levels, and fades where it is coarser. The other two are the noise of every black and of
    every white pixel, whatever γ: a network would have to learn a gain of up to 1/sigma to see it.

    All are continuous in z and γ, so the loss is too, and its derivative along γ has the right
    mean: a distance from the nearest level, which jumps, gives a wrong gradient to the noise
    schedule and a wrong divergence to the probability-flow ODE.
    """
    gamma = expand(gamma, z)
    position = 0.5 * levels * z / alpha(gamma) + 0.5 * (levels - 1)
    spacing = (2 / levels) * torch.exp(-0.5 * gamma)
    around = (spacing * mean_distance(position, spacing, levels)).clamp(-4, 4)
    above = 4 * torch.tanh(0.25 * spacing * position)
    below = 4 * torch.tanh(0.25 * spacing * (levels - 1 - position))
    return torch.cat([around, above, below], dim=1)


def with_features(
    z: Float[Tensor, "batch channels *space"], gamma: Float[Tensor, " batch"], levels: int | None
) -> Float[Tensor, "batch inputs *space"]:
    """Return what a network sees of z: with `lattice_features` of discrete data, as it is of real.

    These are `inputs_per_channel(levels)` for every channel of z.
    """
    return z if levels is None else torch.cat([z, lattice_features(z, gamma, levels)], dim=1)


def inputs_per_channel(levels: int | None) -> int:
    """Return the number of inputs that `with_features` makes of one channel."""
    return 1 if levels is None else 4


def with_image(
    inputs: Float[Tensor, "batch inputs *space"], conditioning: Tensor | None, channels: int
) -> Float[Tensor, "batch all *space"]:
    """Append the channels of an image to condition on, zeros when there is none."""
    if not channels:
        return inputs
    if conditioning is None:
        conditioning = inputs.new_zeros(len(inputs), channels, *inputs.shape[2:])
    return torch.cat([inputs, conditioning], dim=1)


class NoiseLevelEmbedding(nn.Module):
    """γ, and a vector to condition on, as a vector of 4 · width entries (VDM appendix B).

    Sines and cosines of 1000 (γ − gamma_min)/(gamma_max − gamma_min), joined with the conditioning
    (zeros when there is none), through two dense layers.
    """

    def __init__(
        self, width: int, gamma_min: float, gamma_max: float, conditioning_size: int
    ) -> None:
        super().__init__()
        self.gamma_min, self.gamma_max = gamma_min, gamma_max
        self.frequencies = width // 2
        self.conditioning_size = conditioning_size
        self.size = 4 * width
        self.dense_0 = nn.Linear(2 * self.frequencies + conditioning_size, self.size)
        self.dense_1 = nn.Linear(self.size, self.size)

    def forward(
        self, gamma: Float[Tensor, " batch"], conditioning: Float[Tensor, "batch n"] | None
    ) -> Float[Tensor, "batch size"]:
        u = (gamma - self.gamma_min) / (self.gamma_max - self.gamma_min)
        k = torch.arange(self.frequencies, dtype=gamma.dtype, device=gamma.device)
        angles = 1000 * u[:, None] * torch.exp(k * (-math.log(10_000) / (self.frequencies - 1)))
        if conditioning is None:
            conditioning = gamma.new_zeros(gamma.shape[0], self.conditioning_size)
        embedding = torch.cat([angles.sin(), angles.cos(), conditioning], dim=1)
        return silu(self.dense_1(silu(self.dense_0(embedding))))


def group_norm(channels: int, groups: int | None = None) -> nn.GroupNorm:
    """Normalise in `groups` groups: 32, or fewer so that each has four channels or more.

    With one channel a group, a constant added to a channel cancels in the next normalisation, and
    a network that adds its embedding there is blind to the noise level.
    """
    groups = groups or math.gcd(32, max(1, channels // 4))
    return nn.GroupNorm(groups, channels, eps=1e-6)


def zero_initialised(layer: nn.Module) -> nn.Module:
    """Set all parameters of a layer to zero, so that its block starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ResnetBlock(nn.Module):
    """GroupNorm, SiLU, conv, + embedding, GroupNorm, SiLU, dropout, conv, + shortcut (VDM app. B).

    The shortcut is the identity, or a 1×1 convolution where the widths differ.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        embedding_size: int,
        *,
        groups: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm_1 = group_norm(channels_in, groups)
        self.conv_1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.embed = zero_initialised(nn.Linear(embedding_size, channels_out, bias=False))
        self.norm_2 = group_norm(channels_out, groups)
        self.dropout = Dropout(dropout)
        self.conv_2 = zero_initialised(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        self.shortcut = (
            nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else None
        )

    def forward(
        self, x: Float[Tensor, "batch c h w"], embedding: Float[Tensor, "batch size"]
    ) -> Float[Tensor, "batch c_out h w"]:
        h = self.conv_1(silu(self.norm_1(x)))
        h = h + expand(self.embed(embedding), h)
        h = self.conv_2(self.dropout(silu(self.norm_2(h))))
        return h + (x if self.shortcut is None else self.shortcut(x))


class Stage(nn.Module):
    """ResNet blocks in a row, the first of which may change the width."""

    def __init__(
        self, channels_in: int, width: int, embedding_size: int, *, blocks: int, dropout: float
    ) -> None:
        super().__init__()
        widths = [channels_in] + [width] * (blocks - 1)
        self.blocks = nn.ModuleList(
            ResnetBlock(channels, width, embedding_size, dropout=dropout) for channels in widths
        )

    def forward(
        self, x: Float[Tensor, "batch c h w"], embedding: Float[Tensor, "batch size"]
    ) -> Float[Tensor, "batch c_out h w"]:
        for block in self.blocks:
            x = block(x, embedding)
        return x


class AttentionBlock(nn.Module):
    """Self-attention over all positions of an image, with GroupNorm before and x added after."""

    def __init__(self, channels: int, *, groups: int | None = None, heads: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels, groups)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.project = zero_initialised(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c h w"]:
        batch, channels, height, width = x.shape
        joined = self.query_key_value(self.norm(x)).reshape(
            batch, 3, self.heads, channels // self.heads, height * width
        )
        query, key, value = joined.transpose(-1, -2).unbind(1)
        h = scaled_dot_product_attention(query, key, value)
        return x + self.project(h.transpose(-1, -2).reshape(x.shape))
