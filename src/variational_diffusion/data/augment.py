"""Flips and crops: random in training, none and central in evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from variational_diffusion.config import DataConfig, Flip
from variational_diffusion.errors import InputError

_AXES = {"none": (), "horizontal": (2,), "vertical": (1,), "both": (1, 2)}


@dataclass(frozen=True)
class Augmentation:
    """What is done to images of shape (channels, height, width), the same size or larger.

    flip: directions in which half of the training images, each for itself, are mirrored.
    crop: (height, width) that is cut out of every image; None: nothing is.
    """

    flip: Flip = "none"
    crop: tuple[int, int] | None = None

    @classmethod
    def of(cls, config: DataConfig) -> Augmentation | None:
        """Return what a configuration declares; None where it declares nothing."""
        if config.flip == "none" and config.crop is None:
            return None
        return cls(config.flip, config.crop)

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape that examples of `shape` come to.

        Raises InputError for what is no image, and for images that are smaller than the crop.
        """
        if len(shape) != 3:
            given = f"crop = {self.crop}" if self.crop is not None else f"flip = {self.flip!r}"
            raise InputError(
                f"{given} is for images of shape (channels, height, width), and these examples "
                f"have {shape}; leave out --flip and --crop"
            )
        if self.crop is None:
            return shape
        if self.crop[0] > shape[1] or self.crop[1] > shape[2]:
            raise InputError(
                f"crop = {self.crop}: the images have {shape[1]}×{shape[2]} pixels (height × "
                f"width); give --crop {shape[1]}x{shape[2]} or less"
            )
        return (shape[0], *self.crop)

    def central(self, image: np.ndarray) -> np.ndarray:
        """Return the middle of an image, for evaluation."""
        if self.crop is None:
            return image
        top, left = ((image.shape[i + 1] - self.crop[i]) // 2 for i in (0, 1))
        return image[:, top : top + self.crop[0], left : left + self.crop[1]]

    def random(self, image: np.ndarray, seed: int, number: int) -> np.ndarray:
        """Return a random crop, mirrored at random.

        It depends on the seed and `number` alone, which is the image's place in the endless stream
        of training examples: the same image is cut in another way in the next epoch.
        """
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))
        if self.crop is not None:
            top, left = (rng.integers(image.shape[i + 1] - self.crop[i] + 1) for i in (0, 1))
            image = image[:, top : top + self.crop[0], left : left + self.crop[1]]
        axes = [axis for axis in _AXES[self.flip] if rng.random() < 0.5]
        return np.flip(image, tuple(axes)) if axes else image
