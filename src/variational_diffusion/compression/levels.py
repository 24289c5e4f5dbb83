"""p(x|z_0) on the stack: levels k = 0 … levels − 1 with p(k) ∝ exp(−½ spacing² (position − k)²).

The weights of a table are integers that sum to 2^24. How far a level lies below the nearest one is
rounded to 1/128 of an octave and looked up in a table of integers, and what is left over after the
division by their sum goes to the nearest level. That takes at most 2e-6 bits per dimension.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from variational_diffusion.compression.exact import LN_2, OCTAVE, PER_OCTAVE, on_grid
from variational_diffusion.compression.stack import DRAWN, TOTAL, Stack

_FEW = 32  # offsets up to which the levels have a table each
_CHUNK = 1 << 20  # entries of such tables made at once
_BITS = 24  # of the weight of the nearest level
_OCTAVES = 0.5 * PER_OCTAVE / LN_2  # of exp(−½ x), in 128ths


def _weights() -> np.ndarray:
    """Return 2^(24 − i/128) for i = 0, 1, …, rounded, down to 0."""
    octaves, place = np.divmod(-np.arange(PER_OCTAVE * (_BITS + 2)), PER_OCTAVE)
    return np.rint(np.ldexp(OCTAVE[place], _BITS + octaves)).astype(np.int64)


_WEIGHTS = _weights()


def push_levels(
    stack: Stack, x: np.ndarray, position: np.ndarray, spacing: float, levels: int
) -> None:
    """Code levels.

    x: int64, at most 6.1/spacing from the positions, as every x is whose position was drawn by
    `Stack.draw`. position: in units of levels, multiples of `exact.GRID`.
    """
    nearest, reach = nearest_of(position, levels), reach_of(spacing)
    offset = x - nearest
    if reach > _FEW:
        return stack.push_near(offset, position - nearest, on_grid(1 / spacing), reach)
    for part in reversed(list(parts(position.size, reach))):
        table = table_of(position.flat[part], nearest.flat[part], spacing, levels, reach)
        stack.push_table(offset.flat[part] + reach, table)
    return None


def pop_levels(stack: Stack, position: np.ndarray, spacing: float, levels: int) -> np.ndarray:
    """Return the levels that `push_levels` coded: int64."""
    nearest, reach = nearest_of(position, levels), reach_of(spacing)
    if reach > _FEW:
        return nearest + stack.pop_near(position - nearest, on_grid(1 / spacing), reach)
    offset = np.empty(position.shape, np.int64)
    for part in parts(position.size, reach):
        table = table_of(position.flat[part], nearest.flat[part], spacing, levels, reach)
        offset.flat[part] = stack.pop_table(table) - reach
    return nearest + offset


def nearest_of(position: np.ndarray, levels: int) -> np.ndarray:
    """Return the level that is nearest to each position, int64."""
    return np.rint(position).clip(0, levels - 1).astype(np.int64)


def reach_of(spacing: float) -> int:
    """Return how many levels from the nearest one a coded level lies at most."""
    return int(np.ceil((DRAWN + 0.2) / spacing)) + 1


def parts(size: int, reach: int) -> Iterator[slice]:
    """Return the parts in which tables of so many positions are made."""
    step = max(1, _CHUNK // (2 * reach + 1))
    return (slice(first, min(first + step, size)) for first in range(0, size, step))


def table_of(
    position: np.ndarray, nearest: np.ndarray, spacing: float, levels: int, reach: int
) -> np.ndarray:
    """Return the weights of the offsets −reach … reach from the nearest level, for `push_table`."""
    offset = np.arange(-reach, reach + 1)
    level = nearest[:, None] + offset
    distance = (position - nearest).clip(-reach, reach)[:, None]
    below = np.rint(_OCTAVES * spacing * spacing * (offset * (offset - 2 * distance)))
    weight = _WEIGHTS[below.clip(0, len(_WEIGHTS) - 1).astype(np.int64)]
    weight[(level < 0) | (level >= levels)] = 0
    shared = TOTAL - len(offset)
    table = weight * shared // weight.sum(1, keepdims=True)
    table[:, reach] += shared - table.sum(1)
    return table + 1
