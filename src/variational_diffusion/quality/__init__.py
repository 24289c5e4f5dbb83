"""How good samples are, in numbers: distances between them and examples of the data.

Nothing here is called in training.
"""

from variational_diffusion.quality.classifier import (
    Classifier,
    fit_classifier,
    load_classifier,
    new_classifier,
    save_classifier,
)
from variational_diffusion.quality.distances import (
    DISTANCES,
    Estimate,
    combined,
    directions,
    estimate,
    frechet,
    kernel,
    nearest,
    precision,
    recall,
    sliced_wasserstein,
)
from variational_diffusion.quality.features import (
    Features,
    Inception,
    Pixels,
    features_of,
    patches,
)
from variational_diffusion.quality.labels import labels_of
from variational_diffusion.quality.reference import Reference

__all__ = [
    "DISTANCES",
    "Classifier",
    "Estimate",
    "Features",
    "Inception",
    "Pixels",
    "Reference",
    "combined",
    "directions",
    "estimate",
    "features_of",
    "fit_classifier",
    "frechet",
    "kernel",
    "labels_of",
    "load_classifier",
    "nearest",
    "new_classifier",
    "patches",
    "precision",
    "recall",
    "save_classifier",
    "sliced_wasserstein",
]
