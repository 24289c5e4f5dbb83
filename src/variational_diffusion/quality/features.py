"""Features of images: what distances between sets of images are measured in.

A `Features` is called with examples as the data set has them and returns a vector for each. Only
figures of the same features, by their name and digest, can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from variational_diffusion.data.source import as_tensor
from variational_diffusion.errors import InputError
from variational_diffusion.storage.tensors import digest_of

_BATCH = 250
_PATCH = 5
_PATCHES = 8


@runtime_checkable
class Features(Protocol):
    """A function of examples.

    name: what it is called in tables. digest: of its weights; features with the same are equal.
    """

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    def __call__(self, examples: Shaped[Tensor, "n *shape"]) -> Float[Tensor, "n d"]:
        """Return the features of examples as the data set has them: levels, or real values."""
        ...


def in_unit_range(
    examples: Shaped[Tensor, "n *shape"], levels: int | None
) -> Float[Tensor, "n *shape"]:
    """Return levels as 0 to 1; real values (levels None) as they are; both in float32.

    float32 is enough for real values that `source.standardised` has brought to a scale of one.
    """
    return examples.float() if levels is None else examples.float() / (levels - 1)


class Pixels:
    """The values themselves, levels as 0 to 1. No weights, and no notion of what is alike."""

    name = "pixels"
    digest = "none"

    def __init__(self, levels: int | None) -> None:
        self.levels = levels

    def __call__(self, examples: Shaped[Tensor, "n *shape"]) -> Float[Tensor, "n d"]:
        return in_unit_range(examples, self.levels).flatten(1)


class Inception:
    """The last pooled layer of Inception v3 as FID is published with, 2,048 values.

    Needs the packages torch-fidelity and torchvision, and the weights, which torch-fidelity
    fetches when they are not in torch's cache. Source: Obukhov et al., "High-fidelity performance
    metrics for generative models in PyTorch" (2020).
    """

    name = "inception"

    def __init__(self, levels: int | None) -> None:
        if levels is None:
            raise InputError(
                "features = 'inception' take images of integers; give --features classifier"
            )
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import (  # noqa: PLC0415 (optional)
                FeatureExtractorInceptionV3,
            )
        except ImportError as error:
            raise InputError(
                f"features = 'inception': {error}; pip install torch-fidelity torchvision, or give "
                "--features classifier"
            ) from error
        self.levels = levels
        try:
            self.network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).eval()
        except OSError as error:
            raise InputError(
                f"features = 'inception': its weights cannot be fetched ({error}); connect, or "
                "give --features classifier"
            ) from error
        self.digest = digest_of(self.network.state_dict())

    def __call__(self, examples: Shaped[Tensor, "n *shape"]) -> Float[Tensor, "n d"]:
        if examples.ndim != 4:
            raise InputError(
                "features = 'inception' take images; give --features pixels for other arrays"
            )
        images = (in_unit_range(examples, self.levels) * 255).round().to(torch.uint8)
        if images.shape[1] not in (3, 4):
            images = images[:, :1].expand(-1, 3, -1, -1)
        return self.network(images[:, :3])[0].flatten(1)


def features_of(features: Features, examples: np.ndarray) -> Float[np.ndarray, "n d"]:
    """Return the features of an array of examples in float64, some hundreds at a time."""
    with torch.inference_mode():
        parts = [features(as_tensor(part)).double() for part in _parts(examples)]
    return torch.cat(parts).cpu().numpy()


def patches(
    images: Shaped[np.ndarray, "n c h w"], levels: int | None
) -> Float[np.ndarray, "n patches d"]:
    """Return 8 patches of 5×5 pixels of every image, at the same random places in all."""
    rng = np.random.default_rng(0)
    height, width = images.shape[2:]
    size_y, size_x = min(_PATCH, height), min(_PATCH, width)
    tops = rng.integers(0, height - size_y + 1, _PATCHES)
    lefts = rng.integers(0, width - size_x + 1, _PATCHES)
    cut = [
        images[:, :, top : top + size_y, left : left + size_x].reshape(len(images), -1)
        for top, left in zip(tops, lefts, strict=True)
    ]
    return np.stack(cut, axis=1) / (1 if levels is None else levels - 1)


def _parts(examples: np.ndarray) -> Iterator[np.ndarray]:
    yield from (examples[i : i + _BATCH] for i in range(0, len(examples), _BATCH))
