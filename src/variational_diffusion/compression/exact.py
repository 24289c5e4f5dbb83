"""Numbers that are the same, bit for bit, on every machine.

Mathematical libraries differ in the last digits of exp, log and sums over an axis, and such a
digit can decide how a number is rounded. Nothing of that kind may reach the coder. What may:

- integers;
- constants from `decimal`, whose exp, ln, sqrt and basic operations are rounded correctly by its
  specification, so that every machine has all their digits;
- sums, differences, products, quotients and roundings of such numbers, one at a time in float64,
  which IEEE 754 defines to the last bit;
- numbers of the network, after `rounding.Rounding`.

Whatever is made so is rounded to a grid before it is coded (`on_grid`), which lets a test tell it
from any other number.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from typing import TypeVar

import numpy as np

GRID = 2.0**-26
"""Means and standard deviations that are coded, and positions among levels, are multiples."""

PER_OCTAVE = 128
"""Entries of `OCTAVE`."""

EXACT = Context(prec=50, rounding=ROUND_HALF_EVEN)
"""The decimal arithmetic that constants are computed in."""

_MANTISSA = 29  # bits after the point

Number = TypeVar("Number", float, np.ndarray)


def on_grid(values: Number) -> Number:
    """Return the nearest multiples of `GRID`."""
    return np.rint(values / GRID) * GRID


def grid_of(value: Decimal) -> float:
    """Return the nearest multiple of `GRID`."""
    return round(value / Decimal(GRID)) * GRID


LN_2 = float(EXACT.ln(Decimal(2)))
"""The natural logarithm of two."""


def _octave() -> np.ndarray:
    with localcontext(EXACT):
        step = Decimal(2).ln() / PER_OCTAVE
        return np.array([round((step * i).exp() * 2**_MANTISSA) for i in range(PER_OCTAVE)])


OCTAVE = _octave() * 2.0**-_MANTISSA
"""2^(i/128) for i = 0 … 127, each with 29 bits after the point."""
