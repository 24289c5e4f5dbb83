"""The generative classifier against Bayes' rule, where both are known."""

import math

import pytest
import torch
from scipy.stats import binomtest

from known_answers import exact_vdm
from test_conditions import MEANS, STD, of_classes
from variational_diffusion.errors import InputError
from variational_diffusion.likelihood import ContinuousBound, DiscreteBound
from variational_diffusion.likelihood.classification import (
    accuracy,
    class_bounds,
    confusion,
    probabilities,
)

COUNT = 1000


def examples():
    generator = torch.Generator().manual_seed(5)
    label = (torch.rand(COUNT, generator=generator) < 0.75).long()
    noise = torch.randn(COUNT, 1, generator=generator, dtype=torch.float64)
    return MEANS[label][:, None] + STD * noise, label


def exact_log_ratio(x):
    """log p(x|1) − log p(x|0)."""
    return ((x - MEANS[0]).square() - (x - MEANS[1]).square())[:, 0] / (2 * STD**2)


def test_the_difference_of_bounds_is_the_log_ratio_and_the_accuracy_is_bayes():
    vdm = of_classes(dimensions=1)
    x, label = examples()
    bounds = class_bounds(vdm, x, ContinuousBound(64), seed=1)
    difference = bounds[:, 0] - bounds[:, 1]
    exact = exact_log_ratio(x)
    error = difference - exact
    # the draws leave a spread of 0.55 to each; the end points shift it by 0.02
    assert abs(float(error.mean())) < 0.02 + 5 * 0.55 / math.sqrt(COUNT)
    assert float(error.std()) < 0.7
    prior = torch.tensor([0.25, 0.75], dtype=torch.float64)
    predicted = probabilities(bounds, prior).argmax(1)
    bayes = (exact + math.log(3) > 0).long()
    assert float((predicted == bayes).double().mean()) > 0.95
    # threshold t = ½(m_0 + m_1) − s² log 3/(m_1 − m_0): the error that no rule goes below
    low, high = MEANS.tolist()
    t = (low + high) / 2 - STD**2 * math.log(3) / (high - low)

    def cdf(u):
        return 0.5 * (1 + math.erf(u / math.sqrt(2)))

    best = 0.25 * cdf((t - low) / STD) + 0.75 * cdf((high - t) / STD)
    accuracy = float((predicted == label).double().mean())
    # five standard deviations: a false alarm in two million
    assert abs(accuracy - best) < 5 * math.sqrt(best * (1 - best) / COUNT)
    even = probabilities(bounds, torch.tensor([0.5, 0.5], dtype=torch.float64))
    torch.testing.assert_close(even[:, 1], torch.sigmoid(difference))


def test_sharing_the_noise_takes_most_of_it_out_of_the_difference():
    vdm = of_classes(dimensions=1)
    x = torch.zeros(400, 1, dtype=torch.float64)
    seeds = [class_bounds(vdm, x, ContinuousBound(4), seed=seed) for seed in (1, 2)]
    shared = (seeds[0][:, 0] - seeds[0][:, 1]).var()
    apart = (seeds[0][:, 0] - seeds[1][:, 1]).var()
    assert float(shared) < 0.8 * float(apart)


def test_any_estimator_will_do():
    vdm = of_classes(dimensions=1)
    x, _ = examples()
    gammas = torch.linspace(4, -6, 65, dtype=torch.float64)
    bounds = class_bounds(vdm, x[:200], DiscreteBound(gammas=gammas, draws=None), seed=0)
    right = (bounds[:, 0] - bounds[:, 1]) * exact_log_ratio(x[:200]) > 0
    assert float(right.double().mean()) > 0.9


def test_the_confusion_has_classes_in_rows_and_guesses_in_columns():
    truth, predicted = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 0])
    assert confusion(truth, predicted, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_a_model_without_labels_is_no_classifier():
    with pytest.raises(InputError, match="not conditioned on labels; train one with --condition"):
        class_bounds(exact_vdm(), torch.zeros(1, 4, dtype=torch.float64))


@pytest.mark.parametrize("right", [0, 7, 19, 20])
def test_the_accuracy_has_the_interval_of_a_binomial_share(right):
    found = accuracy(torch.tensor([[right, 0], [20 - right, 0]]))
    known = binomtest(right, 20).proportion_ci(method="wilson")
    assert found == pytest.approx((right / 20, known.low, known.high), abs=1e-12)
