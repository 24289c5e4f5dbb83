"""Reading files of format 2, and nothing else: its constants and its tables of levels.

Both are floating-point numbers of numpy's and torch's exp, whose last digits differ between
machines; so such a file is decoded for certain only by a machine of the kind that wrote it. What is
here stays as it was.
"""

from __future__ import annotations

import numpy as np
import torch

from variational_diffusion import process
from variational_diffusion.compression.lattice import Lattice
from variational_diffusion.compression.levels import nearest_of, parts, reach_of
from variational_diffusion.compression.stack import TABLE, UNIT, Stack

_FEW = 32  # offsets up to which the levels have a table each


def lattice_of(gammas: np.ndarray, levels: int) -> Lattice:
    """Return the constants of a chain from γ_1 down to γ_0."""
    gamma = torch.from_numpy(gammas[::-1].copy())
    alpha, sigma = process.alpha(gamma).numpy(), process.sigma(gamma).numpy()
    share = (-torch.expm1(gamma[:-1] - gamma[1:])).sqrt().numpy()
    drawn = sigma * np.concatenate([[1.0], share])
    coded = np.concatenate([sigma[:-1] * share, [1.0]])
    width = _shortened(np.minimum(drawn, coded) / UNIT)
    ratio = alpha[1:] * width[:-1] / (alpha[:-1] * width[1:])
    return Lattice(
        width=width,
        drawn_std=_shortened(drawn / width),
        coded_std=_shortened(coded / width),
        signal=float(_shortened(alpha / width)[0]),
        forward=_shortened(np.concatenate([[0.0], ratio])),
        to_levels=float(_shortened(0.5 * levels * width[:1] / alpha[:1])[0]),
        spacing=float(_shortened(2 / levels * np.exp(-0.5 * gamma[:1].numpy()))[0]),
    )


def pop_levels(stack: Stack, position: np.ndarray, spacing: float, levels: int) -> np.ndarray:
    """Return levels coded with p(k) ∝ exp(−½ spacing² (position − k)²): int64."""
    nearest, reach = nearest_of(position, levels), reach_of(spacing)
    if reach > _FEW:
        return nearest + stack.pop_near(position - nearest, 1 / spacing, reach)
    offset = np.empty(position.shape, np.int64)
    for part in parts(position.size, reach):
        table = _table(position.flat[part], nearest.flat[part], spacing, levels, reach)
        offset.flat[part] = stack.take(TABLE, table) - reach
    return nearest + offset


def _shortened(values: np.ndarray) -> np.ndarray:
    """Return values with 30 bits."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.rint(np.ldexp(mantissa, 30)), exponent - 30)


def _table(
    position: np.ndarray, nearest: np.ndarray, spacing: float, levels: int, reach: int
) -> np.ndarray:
    """Return the probabilities of the offsets −reach … reach from the nearest level."""
    offsets = np.arange(-reach, reach + 1)
    level = nearest[:, None] + offsets
    distance = (position - nearest).clip(-reach, reach)[:, None]
    weight = np.exp(spacing**2 * (offsets * distance - 0.5 * offsets**2))
    weight = np.where((level >= 0) & (level < levels), weight, 0.0)
    return weight / weight.sum(1, keepdims=True)
