"""Numbers rounded to integers alike on machines whose arithmetic differs in the last digits.

The encoder writes down how it rounded every number that lies within a band around a boundary, and
the decoder follows it there. Elsewhere both round the same way as long as their numbers differ by
less than the band.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

BAND = 2.0**-42
"""Half width of the band in which decisions are written down, in units of what goes into a number.

It is 2,048 units in the last place, 2^−53. Batch shapes, memory formats, numbers of threads,
instruction sets and libraries make a difference of up to 40 for a network of random weights, and
of fewer for trained ones, whatever the number of levels (experiments/LOG.md).
"""

CALL = 1 << 31
"""Numbers that one call of a `Rounding` takes at most."""


class Rounding:
    """Round to the nearest integer, and remember what was decided near a boundary.

    decisions: what an earlier `Rounding` decided, rising, to follow; None to decide anew.
    portable: False writes nothing down, for numbers that are the same bit for bit.
    """

    def __init__(self, decisions: Sequence[int] | None = None, *, portable: bool = True) -> None:
        self.decisions: list[int] = [] if decisions is None else list(decisions)
        self._follows = decisions is not None
        self._band = BAND if portable else 0.0

    def __call__(self, values: np.ndarray, call: int, size: float) -> np.ndarray:
        """Return int64 of the shape of values.

        call: a number of this call, the same in encoder and decoder. size: of the numbers that the
        values are sums and differences of, which may be much larger; values that are larger still
        count for themselves. Raises ValueError for values that are not finite.
        """
        if not np.isfinite(values).all():
            raise ValueError("values to be rounded are not finite")
        upper = values + 0.5
        rounded = np.floor(upper)
        boundary = np.rint(upper)
        start = call * CALL
        if self._follows:
            first = bisect.bisect_left(self.decisions, 2 * start)
            last = bisect.bisect_left(self.decisions, 2 * (start + values.size))
            for decision in self.decisions[first:last]:
                place, up = divmod(decision, 2)
                rounded.flat[place - start] = boundary.flat[place - start] - 1 + up
        else:
            band = self._band * (size + np.abs(upper))
            near = np.flatnonzero(np.abs(upper - boundary) < band)
            up = rounded.flat[near] == boundary.flat[near]
            self.decisions += [2 * (start + int(i)) + int(u) for i, u in zip(near, up, strict=True)]
        return rounded.astype(np.int64)
