"""A model of p(x|c) as a classifier: p(c|x) ∝ p(c) p(x|c), with the bound in place of −log p(x|c).

The same times and noise are taken for all classes, so that their bounds differ by the class and
not by the draws (Li, Prabhudesai, Duggal, Brown, Pathak, "Your Diffusion Model is Secretly a
Zero-Shot Classifier", 2023, section 3.3).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Integer, Shaped
from torch import Tensor

from variational_diffusion.conditions import Labels
from variational_diffusion.errors import InputError
from variational_diffusion.likelihood import ContinuousBound, Estimator
from variational_diffusion.model import VDM
from variational_diffusion.modes import in_evaluation_mode
from variational_diffusion.numerics import t_quantile


@in_evaluation_mode
def class_bounds(
    vdm: VDM,
    x: Shaped[Tensor, "batch *shape"],
    estimator: Estimator | None = None,
    *,
    seed: int = 0,
) -> Float[Tensor, "batch classes"]:
    """Return an estimate of −log p(x|c) in nats, for every class of a model of labels.

    estimator: by default the bound for infinitely many steps with 16 draws. seed: of its draws,
    which are the same for all classes.
    """
    estimator = estimator or ContinuousBound(16)
    device = vdm.schedule.initial_end_points.device
    bounds = []
    for label in range(len(labels_of(vdm).names)):
        model = vdm.given(torch.tensor([label]))
        bounds.append(estimator(model, x, torch.Generator(device).manual_seed(seed)).total)
    return torch.stack(bounds, dim=1)


def probabilities(
    bounds: Float[Tensor, "batch classes"], prior: Float[Tensor, " classes"]
) -> Float[Tensor, "batch classes"]:
    """Return p(c|x) by Bayes' rule, from bounds in nats and p(c)."""
    return torch.softmax(prior.log() - bounds, dim=1)


def confusion(
    truth: Integer[Tensor, " n"], predicted: Integer[Tensor, " n"], classes: int
) -> Integer[Tensor, "classes classes"]:
    """Return how many examples of each class (rows) were taken for each class (columns)."""
    return torch.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, -1)


class Accuracy(NamedTuple):
    """The share of examples whose class was named, and its 95 % interval, all in [0, 1]."""

    share: float
    low: float
    high: float


def accuracy(table: Integer[Tensor, "classes classes"]) -> Accuracy:
    """Return the accuracy that a `confusion` shows, for the population of the examples.

    The interval is Wilson's ("Probable Inference, the Law of Succession, and Statistical
    Inference", 1927): share ± 1.96 √(share (1 − share)/n) would have no width where all are right,
    and holds the truth less often than it says wherever few are wrong.
    """
    n, share = int(table.sum()), float(table.trace()) / int(table.sum())
    z = t_quantile(math.inf)
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    width = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return Accuracy(share, max(0.0, middle - width), min(1.0, middle + width))


def labels_of(vdm: VDM) -> Labels:
    """Return the labels that a model is conditioned on; raise `InputError` where it is not."""
    if not isinstance(vdm.condition, Labels):
        raise InputError(
            "classify: this model is not conditioned on labels; train one with --condition label"
        )
    return vdm.condition
