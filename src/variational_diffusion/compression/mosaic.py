"""Images side by side in one picture, so that one header serves all, and back.

Files keep such pictures (docs/format.md), so where an image lies in one never changes.
"""

from __future__ import annotations

import math

import numpy as np


def mosaic(images: np.ndarray) -> np.ndarray:
    """Put images, shape (n, channels, height, width), into one picture, about square.

    Return shape (rows·height, columns·width) for one channel, else (…, …, channels). Images are in
    rows from the top left corner; what is left over of the last row is zero.
    """
    n, channels, height, width = images.shape
    rows, columns = cells_of(images.shape)
    cells = np.zeros((rows * columns, *images.shape[1:]), images.dtype)
    cells[:n] = images
    cells = cells.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    picture = cells.reshape(rows * height, columns * width, channels)
    return picture[..., 0] if channels == 1 else picture


def images_of(picture: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the images of shape (n, channels, height, width) that `mosaic` made the picture of."""
    n, channels, height, width = shape
    rows, columns = cells_of(shape)
    cells = picture.reshape(rows, height, columns, width, channels).transpose(0, 2, 4, 1, 3)
    return cells.reshape(-1, channels, height, width)[:n]


def cells_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the rows and columns in which the images of a shape are laid."""
    n, _, height, width = shape
    columns = min(n, math.ceil(math.sqrt(n * height / width)))
    return math.ceil(n / columns), columns


def size_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the height and width of the picture of images of a shape."""
    rows, columns = cells_of(shape)
    return rows * shape[2], columns * shape[3]
