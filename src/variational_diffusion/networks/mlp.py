"""A residual multi-layer perceptron: the default network for vectors, and for any other shape."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from variational_diffusion.config import Blocks, Count, Levels, LogNoise, Share, Size
from variational_diffusion.networks.dropout import Dropout
from variational_diffusion.networks.layers import (
    NoiseLevelEmbedding,
    full_precision,
    inputs_per_channel,
    with_features,
    zero_initialised,
)


class MLP(nn.Module):
    """A prediction of the shape of z from (z, γ), by residual blocks on the flattened array.

    Args:
        shape: Of one example, any.
        gamma_min: Lower end of the range that the embedding of γ covers.
        gamma_max: Upper end of that range.
        levels: Number of levels of discrete data, whose lattice is then an input; None: real
            values.
        width: Size of the residual blocks.
        blocks: Number of residual blocks.
        dropout: Probability of dropout in training, in [0, 1).
        conditioning_size: Entries of an array to condition on, shape (batch, …).

    Examples:
        >>> network = vd.MLP((3,), width=16, blocks=2)
        >>> network(torch.randn(5, 3), torch.zeros(5)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        gamma_min: LogNoise = -13.3,
        gamma_max: LogNoise = 5.0,
        levels: Levels | None = None,
        width: Count = 128,
        blocks: Blocks = 4,
        dropout: Share = 0.0,
        conditioning_size: Size = 0,
    ) -> None:
        super().__init__()
        size = math.prod(shape)
        self.levels = levels
        self.embedding = NoiseLevelEmbedding(32, gamma_min, gamma_max, conditioning_size)
        self.dense_in = nn.Linear(size * inputs_per_channel(levels), width)
        self.blocks = nn.ModuleList(
            ResidualBlock(width, self.embedding.size, dropout) for _ in range(blocks)
        )
        self.norm_out = nn.LayerNorm(width)
        self.dense_out = zero_initialised(nn.Linear(width, size))

    def forward(
        self,
        z: Float[Tensor, "batch *shape"],
        gamma: Float[Tensor, " batch"],
        conditioning: Float[Tensor, "batch *condition"] | None = None,
    ) -> Float[Tensor, "batch *shape"]:
        if conditioning is not None:
            conditioning = conditioning.flatten(1)
        with full_precision(z):
            embedding = self.embedding(gamma, conditioning)
            h = self.dense_in(with_features(z.flatten(1), gamma, self.levels))
        for block in self.blocks:
            h = block(h, embedding)
        with full_precision(z):
            return self.dense_out(silu(self.norm_out(h.to(z.dtype)))).reshape(z.shape)


class ResidualBlock(nn.Module):
    """LayerNorm, SiLU, dense, + embedding, SiLU, dropout, dense, + x."""

    def __init__(self, width: int, embedding_size: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.dense_1 = nn.Linear(width, 2 * width)
        self.embed = nn.Linear(embedding_size, 2 * width, bias=False)
        self.dropout = Dropout(dropout)
        self.dense_2 = zero_initialised(nn.Linear(2 * width, width))

    def forward(
        self, x: Float[Tensor, "batch width"], embedding: Float[Tensor, "batch size"]
    ) -> Float[Tensor, "batch width"]:
        h = self.dense_1(silu(self.norm(x))) + self.embed(embedding)
        return x + self.dense_2(self.dropout(silu(h)))
