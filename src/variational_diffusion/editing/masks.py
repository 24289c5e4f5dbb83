"""Masks: what of an example is hidden or painted anew."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from variational_diffusion.errors import InputError
from variational_diffusion.images.pictures import is_image
from variational_diffusion.storage.files import expanded

Mask = str | Path | np.ndarray | Tensor
"""Booleans of an example's shape; or a file: such an .npy array, or a picture of that size."""

_WHITE = 128  # a picture's grey value from which it is white


def mask_of(mask: Mask, shape: tuple[int, ...]) -> Tensor:
    """Return a mask of one example's shape, bool; a picture's holds for all channels.

    Raises InputError for another type or size, and for a file that cannot be read.
    """
    if isinstance(mask, np.ndarray | Tensor):
        return _checked(torch.as_tensor(mask), "the array", shape)
    mask = expanded(mask)
    if not os.path.isfile(mask):
        raise InputError(f"mask = '{mask}': there is no such file")
    if mask.suffix == ".npy":
        return _checked(torch.from_numpy(np.load(mask, allow_pickle=False)), f"'{mask}'", shape)
    if not is_image(shape):
        raise InputError(f"mask = '{mask}': these data are no images; give booleans in an .npy")
    try:
        with Image.open(mask) as picture:
            grey = np.asarray(picture.convert("L"))
    except OSError as error:
        raise InputError(f"mask = '{mask}': this is no picture that can be read") from error
    if grey.shape != shape[1:]:
        height, width = grey.shape
        raise InputError(
            f"mask = '{mask}' has {height}x{width} pixels: the model's images have "
            f"{shape[1]}x{shape[2]}; give a mask of that size"
        )
    return torch.from_numpy(grey >= _WHITE).expand(shape).clone()


def _checked(mask: Tensor, name: str, shape: tuple[int, ...]) -> Tensor:
    if mask.dtype != torch.bool or tuple(mask.shape) != shape:
        held = str(mask.dtype).removeprefix("torch.")
        raise InputError(
            f"mask = {name} holds {held} of shape {tuple(mask.shape)}: "
            f"give booleans of the shape of an example, {shape}"
        )
    return mask
