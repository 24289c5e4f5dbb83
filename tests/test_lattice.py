"""Sums over the levels against the same sums written out, with an axis of levels."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from variational_diffusion.lattice import (
    log_lattice_sum,
    mean_distance,
    nearest_level,
    sample_level,
)

SPACINGS = [6.04, 1.0, 0.1, 0.003]


def log_weights(position, spacing, levels):
    """−½ r² (position − k)² for all k, shape (..., levels)."""
    k = torch.arange(levels, dtype=torch.float64)
    return -0.5 * spacing[..., None] ** 2 * (position[..., None] - k) ** 2


def positions(levels, generator):
    """Positions within the lattice, on ties, at its ends and beyond them."""
    inside = (levels - 1) * torch.rand(20, dtype=torch.float64, generator=generator)
    special = torch.tensor([-3.2, -0.5, 0.0, 0.5, levels - 1.5, levels - 1, levels + 7.3])
    return torch.cat([inside, special.double()])


def test_the_nearest_level_stays_on_the_lattice():
    position = torch.tensor([-7.0, -0.2, 0.4, 0.6, 15.7, 16.4, 99.0])
    assert nearest_level(position, 17).tolist() == [0, 0, 0, 1, 16, 16, 16]


@pytest.mark.parametrize("spacing", [60.0, 6.04, 2.0, 1.0, 0.003])
@pytest.mark.parametrize("levels", [2, 3, 17, 256])
def test_the_mean_distance_is_the_mean_over_all_levels(levels, spacing, generator):
    position = positions(levels, generator)
    r = torch.full_like(position, spacing)
    weight = log_weights(position, r.clamp(min=2), levels).softmax(-1)
    expected = position - weight @ torch.arange(levels, dtype=torch.float64)
    got = mean_distance(position, r[:1], levels)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("spacing", [20.0, 2.5, 0.1])
def test_the_mean_distance_has_no_jumps(spacing):
    """Steps of 2e-5 change it by no more than its steepest slope allows, and 2e-5 of the cut."""
    position = torch.linspace(-2, 6, 400_001, dtype=torch.float64)
    change = mean_distance(position, torch.tensor([spacing], dtype=torch.float64), 5).diff().abs()
    assert change.max() < 2e-5 * max(1, 0.25 * spacing**2) + 2e-5
    r, few = torch.tensor([spacing], dtype=torch.float64), position[::40_000].requires_grad_()
    assert torch.autograd.gradcheck(lambda p, s: mean_distance(p + 0.013, s, 5), (few, r))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("levels", [2, 3, 17, 256])
def test_the_sum_is_the_sum_over_all_levels(levels, spacing, generator):
    position = positions(levels, generator)
    r = torch.full_like(position, spacing)
    distance = position - nearest_level(position, levels)
    expected = log_weights(position, r, levels).logsumexp(-1) + 0.5 * (r * distance) ** 2
    got = log_lattice_sum(position, r, levels)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def test_the_sum_neither_overflows_nor_vanishes_far_from_the_lattice():
    position = torch.tensor([-1e6, 1e6], requires_grad=True)
    spacing = torch.tensor([6.04, 6.04], requires_grad=True)
    total = log_lattice_sum(position, spacing, 256)
    total.sum().backward()
    for values in (total, position.grad, spacing.grad):
        assert values is not None
        torch.testing.assert_close(values, torch.zeros(2))  # one level holds all the weight


@pytest.mark.parametrize("spacing", SPACINGS)
def test_gradients_by_finite_differences(spacing, generator):
    inside = 0.3 * torch.rand(6, dtype=torch.float64, generator=generator)
    position = (inside + torch.arange(-1.0, 5.0)).requires_grad_()
    r = torch.full_like(inside, spacing).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, s: log_lattice_sum(p, s, 4), (position, r))


@pytest.mark.parametrize(("position", "spacing"), [(3.3, 0.7), (0.5, 2.0), (-4.0, 0.5), (5.5, 0.1)])
def test_draws_follow_the_weights(position, spacing, generator):
    n, levels = 40_000, 6
    p, r = (torch.tensor([value], dtype=torch.float64) for value in (position, spacing))
    probability = log_weights(p, r, levels)[0].softmax(-1)
    drawn = sample_level(p.expand(n), r.expand(n), levels, generator).long()
    counts = torch.bincount(drawn, minlength=levels)
    rare = probability * n < 5
    # Poisson of a mean below 25, at 4 standard deviations or more: false alarm below 1e-4
    assert counts[rare].sum() <= n * probability[rare].sum() + 20
    terms = ((counts - probability * n) ** 2 / (probability * n))[~rare]
    freedom = max(1, len(terms) - 1)
    # chi² by Wilson and Hilferty at 4 standard deviations: false alarm 3e-5 for each of four
    limit = freedom * (1 - 2 / (9 * freedom) + 4 * math.sqrt(2 / (9 * freedom))) ** 3
    assert terms.sum() < limit


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that any operation returns."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.entries = max(self.entries, result.numel())
        return result


@pytest.mark.parametrize("levels", [2, 256, 65_536])
def test_no_operation_has_an_axis_of_levels(levels, generator):
    position = ((levels - 1) * torch.rand(50, generator=generator)).requires_grad_()
    spacing = torch.full((50,), 0.05).requires_grad_()
    with Largest() as largest:
        log_lattice_sum(position, spacing, levels).sum().backward()
        sample_level(position, spacing, levels, generator)
    assert position.grad is not None
    assert largest.entries == 50
