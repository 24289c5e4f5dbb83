"""A sheet of the most anomalous images and the most normal ones, with names and p-values."""

from __future__ import annotations

import os
from pathlib import PurePosixPath

import numpy as np

from variational_diffusion.anomaly.scoring import Scored
from variational_diffusion.images.pictures import save_sheet

_COLUMNS = 8
_EACH = 2 * _COLUMNS
_WIDTH = 96  # pixels, so that a caption has room


def save_score_sheet(found: Scored, path: str | os.PathLike[str]) -> None:
    """Write the 16 most anomalous images and then the 16 most normal ones as a .png or .webp file.

    All of them, the most anomalous first, where there are no more than 32. Under each image stand
    its p-value, with a star where it is marked, and the name of its file, or its split and number.
    Raises InputError as `pictures.save_sheet` does.
    """
    order = found.order
    rows = order if len(order) <= 2 * _EACH else np.concatenate([order[:_EACH], order[-_EACH:]])
    images = found.read(rows)
    save_sheet(
        images,
        next(iter(found.parts.values())).levels,
        path,
        columns=min(_COLUMNS, len(rows)),
        scale=-(-_WIDTH // images.shape[-1]),
        captions=[_caption(found, row) for row in rows.tolist()],
    )


def _caption(found: Scored, row: int) -> str:
    star = " *" if found.marked[row] else ""
    name = f"{found.split[row]} {found.number[row]}".strip()
    if found.names is not None:
        name = PurePosixPath(found.names[row]).name
    rank = f"p {found.p_value[row]:.2g}{star}" if found.held_out else f"{found.score[row]:.4g}"
    return f"{rank}\n{name}"
