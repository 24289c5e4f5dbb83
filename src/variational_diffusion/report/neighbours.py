"""Nearest examples: whether samples are copies of what was trained on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from variational_diffusion.data import Split

_BATCH = 1024


class Nearest(NamedTuple):
    """The nearest of the examples that were searched, the nearest first.

    distances: root of the mean squared difference of the entries. positions: in the split.
    """

    distances: Float[Tensor, "queries count"]
    positions: Int[Tensor, "queries count"]
    searched: int


def nearest(queries: Tensor, split: Split, count: int) -> Iterator[Nearest]:
    """Search a split for the `count` examples nearest to each query; yield after every batch.

    queries: shape (n, *shape). Squared distances are |q|² + |x|² − 2 q·x about the queries' mean,
    in float64, which leaves a copy at a distance of the order of 1e-8 of the values.
    """
    flat = queries.flatten(1).double()
    centre = flat.mean(0)
    flat = flat - centre
    best = torch.full((len(flat), 0), math.inf, dtype=torch.float64)
    positions = torch.full((len(flat), 0), 0)
    for first in range(0, len(split), _BATCH):
        rows = np.arange(first, min(first + _BATCH, len(split)))
        x = split.__getitems__(rows).flatten(1).double() - centre
        squared = flat.square().sum(1)[:, None] + x.square().sum(1) - 2 * flat @ x.T
        best = torch.cat([best, squared.clamp(min=0)], dim=1)
        positions = torch.cat([positions, torch.from_numpy(rows).expand(len(flat), -1)], dim=1)
        best, order = best.topk(min(count, best.shape[1]), largest=False)
        positions = positions.gather(1, order)
        yield Nearest((best / flat.shape[1]).sqrt(), positions, int(rows[-1]) + 1)
