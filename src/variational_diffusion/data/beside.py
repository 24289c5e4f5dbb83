"""What stands beside the examples to condition on: labels, vectors, images, or made of them.

A condition is asked for by one word of `DataConfig.condition`. `label`, `vector` and `image` are
read where the examples are; the names of `DEGRADATIONS` are functions of the example itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.nn.functional import avg_pool2d

from variational_diffusion.config import DataConfig
from variational_diffusion.errors import InputError, one_of

KINDS = ("label", "vector", "image")

Images = Shaped[Tensor, "batch channels h w"]
Degraded = Shaped[Tensor, "batch others h w"]
Parts = tuple[tuple[float, float], tuple[float, float]]
"""First and last row, first and last column, in shares of the sides."""


class Asked(NamedTuple):
    """kind: of `KINDS`. name: of the column or array, None where none was given."""

    kind: str
    name: str | None


def asked(config: DataConfig, allowed: Sequence[str]) -> Asked | None:
    """Return what is to be read beside the examples; None where nothing is.

    allowed: the kinds that this source has. Raises InputError for another.
    """
    if config.condition is None or config.condition in DEGRADATIONS:
        return None
    kind, colon, name = config.condition.partition(":")
    if kind not in KINDS or (colon and not name):
        raise InputError(
            f"condition = '{config.condition}': give label, label:NAME, vector:NAME or image:NAME "
            f"with the name of a column or array, or one of {', '.join(DEGRADATIONS)}"
        )
    if kind not in allowed:
        known = [*allowed, *DEGRADATIONS]
        raise InputError(
            f"condition = '{config.condition}': '{config.source}' has no {kind}s; known for it are "
            f"{', '.join(known)}"
        )
    if kind != "label" and not name:
        raise InputError(
            f"condition = '{kind}': give the name of the column or array too, as {kind}:NAME"
        )
    return Asked(kind, name or None)


def names_of(values: Iterable[Any]) -> tuple[str, ...]:
    """Return the names of all labels once, whole numbers by size before the others by letters.

    The order does not depend on how the data number their classes.
    """
    return tuple(sorted({str(value) for value in values}, key=_natural))


def labels_of(values: Iterable[Any], names: Sequence[str]) -> np.ndarray:
    """Return the number of each label among the names, int64; raise `InputError` for others."""
    number = {name: k for k, name in enumerate(names)}
    found = [str(value) for value in values]
    missing = sorted(set(found) - number.keys(), key=_natural)
    if missing:
        one_of("label", missing[0], names)
    return np.array([number[name] for name in found], np.int64)


def conditions_of(values: Sequence[Any], labels: Sequence[str] | None) -> np.ndarray:
    """Return label numbers, int64, or vectors, float64 of shape (n, d), of what was read.

    labels: names of the labels; None for vectors, which must be finite and of one length.
    """
    if labels is not None:
        return labels_of(values, labels)
    rows = [np.atleast_1d(np.asarray(value, np.float64)) for value in values]
    other = next((row for row in rows if row.shape != rows[0].shape or row.ndim != 1), None)
    if other is not None:
        raise InputError(
            f"condition = vector: one has shape {rows[0].shape} and one {other.shape}; give a "
            "column of numbers, or of lists of one length"
        )
    stacked = np.stack(rows) if rows else np.empty((0, 1))
    if not np.isfinite(stacked).all():
        raise InputError("condition = vector: values must be finite; leave those examples out")
    return stacked


def _natural(name: str) -> tuple[int, int, str]:
    return (0, int(name), name) if re.fullmatch(r"\d{1,18}", name) else (1, 0, name)


def grey(x: Images) -> Degraded:
    """Return the mean over the channels, one channel: to colour images."""
    return _real(x).mean(1, keepdim=True)


def _real(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.float()


def coarse(factor: int) -> Callable[[Images], Degraded]:
    """Return what replaces squares of so many pixels by their mean: to enlarge images."""

    def degrade(x: Images) -> Degraded:
        small = avg_pool2d(_real(x), factor, ceil_mode=True)
        large = small.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        return large[..., : x.shape[2], : x.shape[3]]

    return degrade


def hidden(rows: tuple[float, float], columns: tuple[float, float]) -> Callable[[Images], Degraded]:
    """Return what hides a part of an image, given in shares of its sides: to fill images in.

    Hidden pixels are zero, and one more channel is 1 where a pixel is hidden.
    """

    def degrade(x: Images) -> Degraded:
        return _without(x, [(rows, columns)] * len(x))

    return degrade


def hidden_anywhere(x: Images) -> Degraded:
    """Hide a rectangle of each image, as `hidden` does, a quarter to three quarters wide and high.

    It is drawn for each image, seeded by its pixels: an image always gets the same one.
    """
    return _without(x, [_drawn_parts(crc32(image.double().cpu().numpy().tobytes())) for image in x])


def _drawn_parts(seed: int) -> Parts:
    sizes, places = np.random.default_rng(seed).uniform(size=(2, 2))
    sizes = 0.25 + 0.5 * sizes
    starts = places * (1 - sizes)
    return (starts[0], starts[0] + sizes[0]), (starts[1], starts[1] + sizes[1])


def _without(x: Images, parts: Sequence[Parts]) -> Degraded:
    mask = torch.zeros_like(x[:, :1], dtype=torch.float32)
    for hole, (rows, columns) in zip(mask, parts, strict=True):
        (top, bottom), (left, right) = (
            [round(share * side) for share in shares]
            for shares, side in ((rows, x.shape[2]), (columns, x.shape[3]))
        )
        hole[:, top:bottom, left:right] = 1
    return torch.cat([x * (1 - mask), mask], dim=1)


DEGRADATIONS: dict[str, Callable[[Images], Degraded]] = {
    "grey": grey,
    "coarse-2": coarse(2),
    "coarse-4": coarse(4),
    "coarse-8": coarse(8),
    "hidden-centre": hidden((0.25, 0.75), (0.25, 0.75)),
    "hidden-right": hidden((0.0, 1.0), (0.5, 1.0)),
    "hidden-bottom": hidden((0.5, 1.0), (0.0, 1.0)),
    "hidden-anywhere": hidden_anywhere,
}
"""Functions of a batch of images, as they are read, to images of the same height and width."""
