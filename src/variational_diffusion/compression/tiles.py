"""Images of any size as tiles of the model's size.

Tiles lie side by side from the top left corner. Those at the right and at the bottom are padded by
repeating the image's last column and row, which a model finds easy: values that follow from their
neighbours.
"""

from __future__ import annotations

import math

import numpy as np


def tiles_of(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return an image's tiles of `shape`, row by row, shape (tiles, *shape).

    image: of that shape, or (channels, height, width) of other height and width.
    """
    if image.shape == shape:
        return image[None]
    rows, columns = _grid(image.shape, shape)
    channels, height, width = shape
    missing = (rows * height - image.shape[1], columns * width - image.shape[2])
    padded = np.pad(image, [(0, 0), (0, missing[0]), (0, missing[1])], mode="edge")
    cells = padded.reshape(channels, rows, height, columns, width).transpose(1, 3, 0, 2, 4)
    return cells.reshape(-1, *shape)


def image_of(tiles: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the image of `shape` that `tiles_of` made these tiles of."""
    if tiles.shape[1:] == shape:
        return tiles[0]
    rows, columns = _grid(shape, tiles.shape[1:])
    channels, height, width = tiles.shape[1:]
    cells = tiles.reshape(rows, columns, channels, height, width).transpose(2, 0, 3, 1, 4)
    return cells.reshape(channels, rows * height, columns * width)[:, : shape[1], : shape[2]]


def number_of_tiles(image_shape: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """Return how many tiles of `shape` an image takes."""
    return 1 if image_shape == shape else math.prod(_grid(image_shape, shape))


def padding_of(image_shape: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Return which entries of an image's tiles are padding, bool of shape (tiles, *shape)."""
    if image_shape == shape:
        return np.zeros((1, *shape), bool)
    rows, columns = _grid(image_shape, shape)
    outside = np.ones((shape[0], rows * shape[1], columns * shape[2]), bool)
    outside[:, : image_shape[1], : image_shape[2]] = False
    return tiles_of(outside, shape)


def _grid(image_shape: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, int]:
    return math.ceil(image_shape[1] / shape[1]), math.ceil(image_shape[2] / shape[2])
