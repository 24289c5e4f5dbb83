"""Real examples that samples are compared with."""

from __future__ import annotations

import numpy as np
from jaxtyping import Shaped

from variational_diffusion.errors import InputError
from variational_diffusion.quality.distances import (
    DISTANCES,
    Estimate,
    directions,
    estimate,
    sliced_wasserstein,
)
from variational_diffusion.quality.features import Features, Pixels, features_of, patches

PROJECTIONS = 100


class Reference:
    """Examples, and their features.

    examples: as the data set has them, in random order.
    levels: of the data; None: real values.
    """

    def __init__(
        self,
        examples: Shaped[np.ndarray, "m *shape"],
        features: Features,
        *,
        levels: int | None,
    ) -> None:
        self.shape = examples.shape[1:]
        self.features = features
        self.levels = levels
        self._rows = features_of(features, examples)
        self._sliced = self._projections(examples)

    def distances(self, samples: Shaped[np.ndarray, "n *shape"]) -> dict[str, Estimate]:
        """Return all distances between samples, in random order, and the examples.

        By name: those of `DISTANCES`, in the features; then "SW pixels" and, of images, "SW
        patches", sliced Wasserstein distances of the values, 0 to 1, and of patches of 5×5, along
        100 directions that are the same every time.
        Raises InputError for samples of another shape, and for too few of them.
        """
        if samples.shape[1:] != self.shape:
            raise InputError(
                f"samples have shape {samples.shape[1:]}, the examples {self.shape}: give samples "
                "of a model of these data"
            )
        rows = features_of(self.features, samples)
        found = {name: estimate(distance, rows, self._rows) for name, distance in DISTANCES.items()}
        for name, points in self._projections(samples).items():
            found[name] = estimate(sliced_wasserstein, points, self._sliced[name])
        return found

    def _projections(self, examples: np.ndarray) -> dict[str, np.ndarray]:
        points = {"SW pixels": features_of(Pixels(self.levels), examples)}
        if len(self.shape) == 3:
            points["SW patches"] = patches(examples, self.levels)
        return {
            name: values @ directions(values.shape[-1], PROJECTIONS)
            for name, values in points.items()
        }
