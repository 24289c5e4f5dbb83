"""Examples that are there more than once: exact copies, and images that look the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

_BITS = 2
"""Of the 64 bits of two perceptual hashes, how many may differ between near copies."""

_DISTANCE = 0.02
"""Of the range of values, how far their thumbnails may be apart, root mean square."""

_FLAT = 0.02
"""Of the range of values, the standard deviation below which a thumbnail shows nothing."""

_LEAST_SIDE = 16
"""Pixels that an image needs to have a perceptual hash."""

_BLOCK = 1024
"""Images that are compared with all others together."""


@dataclass(frozen=True)
class Copies:
    """Examples that are alike.

    Attributes:
        examples: How many are like an earlier one.
        across: How many of the groups of examples that are alike stand in more than one split.
        first: Two that are alike, by split and position; empty where none are.
    """

    examples: int = 0
    across: int = 0
    first: tuple[tuple[str, int], ...] = ()


def exact_copies(keys: np.ndarray, where: Sequence[tuple[str, int]]) -> Copies:
    """Return the copies among examples with these keys, shape (n,), at these places."""
    return _grouped(np.unique(keys, return_inverse=True)[1], where)


def thumbnails(images: np.ndarray, levels: int | None) -> Float[Tensor, "n 9 8"] | None:
    """Return small grey pictures of images, of values from 0 to 1; None for what has no hash."""
    if levels is None or images.ndim != 4 or min(images.shape[2:]) < _LEAST_SIDE:
        return None
    grey = torch.from_numpy(images.astype(np.float32)).mean(1, keepdim=True) / (levels - 1)
    return adaptive_avg_pool2d(grey, (9, 8))[:, 0]


def near_copies(
    small: Float[Tensor, "n 9 8"], keys: np.ndarray, where: Sequence[tuple[str, int]]
) -> Copies:
    """Return the images that look like an earlier one; exact copies count once.

    The hash is that of differences ("dHash", N. Krawetz, "Kind of Like That", 2013): whether each
    of 64 places is brighter than its neighbour. As other images may have it too, the thumbnails
    have to be alike as well. small: from `thumbnails`, with keys, shape (n,), and places.
    """
    alone = np.sort(np.unique(keys, return_index=True)[1])
    alone = alone[(small[alone].std((1, 2)) > _FLAT).numpy()]
    few, at = small[alone], [where[i] for i in alone]
    bits = torch.where(few[:, 1:] > few[:, :-1], 1.0, -1.0).flatten(1)
    flat = few.flatten(1)
    length, far = flat.square().sum(1), flat.shape[1] * _DISTANCE**2
    group: list[int] = []
    for first in range(0, len(few), _BLOCK):
        some = slice(first, first + _BLOCK)
        apart = length[some, None] + length - 2 * flat[some] @ flat.T
        alike = (bits[some] @ bits.T >= 64 - 2 * _BITS) & (apart <= far)
        for j, i in enumerate(alike.int().argmax(1).tolist(), first):  # i: the first that is alike
            group.append(group[i] if i < j else j)
    return _grouped(np.array(group, np.int64), at)


def _grouped(group: np.ndarray, where: Sequence[tuple[str, int]]) -> Copies:
    """Return the copies among examples of which those of one group are alike."""
    order = np.argsort(group, kind="stable")
    again = np.flatnonzero(np.diff(group[order]) == 0)
    if not len(again):
        return Copies()
    splits = np.array([name for name, _ in where])[order]
    moved = again[splits[again] != splits[again + 1]]
    shown = moved[0] if len(moved) else again[0]
    return Copies(
        examples=len(again),
        across=len(np.unique(group[order][moved])),
        first=(where[order[shown]], where[order[shown + 1]]),
    )
