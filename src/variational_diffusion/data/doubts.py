"""What data may have been meant as: other axes, or fewer levels, than they are read with."""

from __future__ import annotations

import numpy as np

_USUAL_CHANNELS = (1, 3, 4)
_THIN = 4
"""Height or width of images up to which they may be series with so many channels."""


def of_axes(stored: tuple[int, ...], read: tuple[int, ...]) -> list[str]:
    """Return how an array is read where that can be doubted, in a line, and what else to save.

    stored: shape of the array. read: shape of an example.
    """
    n, *sides = stored
    shown = "×".join(map(str, sides))
    if len(stored) == 3 and min(sides) <= _THIN:
        channels, length = sorted(sides)
        return [
            f"shape {stored} is read as {n} grey images of {shown} (height × width); a series with "
            f"{channels} channels is saved as ({n}, {channels}, 1, {length}), numbers without "
            f"neighbours as ({n}, {channels * length})"
        ]
    if len(stored) == 4 and read[0] not in _USUAL_CHANNELS:
        return [
            f"shape {stored} is read as {n} images of {read[1]}×{read[2]} with {read[0]} channels; "
            f"volumes are saved as ({n}, 1, {', '.join(map(str, sides))}), slices of them as "
            f"({n * sides[0]}, {sides[1]}, {sides[2]})"
        ]
    if len(stored) >= 5:
        return [f"shape {stored} is read as {n} examples of {shown}, which are no images"]
    return []


def of_levels(values: np.ndarray, levels: int | None) -> list[str]:
    """Return a question where values of a type have far fewer levels than the type; else nothing.

    values: found in the data. levels: that they are read with.
    """
    found = np.unique(values)
    if levels is None or len(found) < 2 or 2 * len(found) > levels:
        return []
    largest, step = int(found[-1]), int(np.diff(found).min())
    evenly = bool((np.diff(found) == step).all())
    if 2 * (largest + 1) <= levels:
        fewer = largest + 1 if largest < 256 else 1 << largest.bit_length()
        options = f"--levels {fewer}"
    elif evenly:
        options = f"--levels {len(found)} --range {found[0]} {found[-1]}"
    else:
        return []
    few = ", ".join(map(str, found[:4])) + (", …" if len(found) > 4 else "")
    return [
        f"read with {levels} levels, of which {len(found)} were found ({few}): is {options} meant?"
    ]
