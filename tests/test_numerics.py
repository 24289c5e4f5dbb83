"""Broadcasting, the normal distribution and units."""

import itertools
import math

import pytest
import torch

from variational_diffusion.numerics import (
    Normal,
    bits_per_dim,
    derived_seed,
    expand,
    randn_like,
    sum_per_example,
    t_quantile,
)


def test_a_value_for_each_example_broadcasts_over_its_example(generator):
    like = torch.randn(3, 2, 4, generator=generator)
    values = torch.tensor([1.0, 10.0, 100.0])
    by_hand = torch.stack([value * example for value, example in zip(values, like, strict=True)])
    assert torch.equal(expand(values, like) * like, by_hand)
    assert torch.equal(expand(values[0], like) * like, like)


def test_units():
    nats = sum_per_example(torch.full((2, 3, 4), torch.tensor(2.0).log()))
    torch.testing.assert_close(bits_per_dim(nats, 12), torch.ones(2))
    assert torch.equal(sum_per_example(torch.arange(3.0)), torch.arange(3.0))


def test_kl_and_log_prob_agree_with_torch(generator):
    mean, other_mean = torch.randn(2, 50, dtype=torch.float64, generator=generator)
    std, other_std = 0.1 + torch.rand(2, 50, dtype=torch.float64, generator=generator)
    ours, theirs = Normal(mean, std), torch.distributions.Normal(mean, std)
    other = torch.distributions.Normal(other_mean, other_std)
    torch.testing.assert_close(
        ours.kl(Normal(other_mean, other_std)), torch.distributions.kl_divergence(theirs, other)
    )
    torch.testing.assert_close(ours.log_prob(other_mean), theirs.log_prob(other_mean))


@pytest.mark.parametrize("difference", [1e-4, -1e-6, 1e-7])
def test_the_kl_of_nearly_equal_variances_keeps_its_digits(difference):
    """KL = δ² − δ³/3 + δ⁴/4 … for std = 1 + δ against 1; log(σ'/σ) would leave noise of 1e-16."""
    zero, one = torch.tensor([0.0, 1.0], dtype=torch.float64)
    kl = float(Normal(zero, one + difference).kl(Normal(zero, one)))
    assert kl == pytest.approx(difference**2 - difference**3 / 3, rel=1e-6, abs=0)


def test_samples_have_the_moments_of_a_normal(generator):
    n = 200_000
    normal = Normal(torch.full((n,), 2.0, dtype=torch.float64), torch.tensor(3.0).double())
    standard = (normal.sample(generator) - 2) / 3
    # Two-sided at 5 standard errors each: false alarm below 1e-6. U(0,1) noise fails all three.
    assert abs(standard.mean()) < 5 / n**0.5
    assert abs(standard.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs(standard.pow(4).mean() - 3) < 5 * (96 / n) ** 0.5


def test_noise_is_normal_as_a_whole(generator):
    n = 50_000
    noise = randn_like(torch.empty(n, dtype=torch.float64), generator).sort().values
    distance = (torch.special.ndtr(noise) - torch.arange(1, n + 1) / n).abs().max()
    # Kolmogorov–Smirnov: P(distance > 2.3/√n) = 2 exp(−2 · 2.3²) = 5e-5
    assert distance < 2.3 / math.sqrt(n)


def test_a_mean_and_many_standard_deviations_are_as_many_independent_draws(generator):
    n = 20_000
    draws = Normal(torch.tensor(1.0), torch.full((n,), 2.0)).sample(generator)
    assert draws.shape == (n,)
    # Two-sided at 5 standard errors: false alarm 6e-7
    assert abs(draws.var() / 4 - 1) < 5 * math.sqrt(2 / n)


def test_draws_are_a_function_of_the_generator_and_leave_the_global_one_alone():
    before = torch.random.get_rng_state()
    normal = Normal(torch.zeros(4), torch.ones(4))
    first, second = (normal.sample(torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_quantiles_of_student_are_those_of_the_tables():
    assert t_quantile(1) == pytest.approx(math.tan(0.475 * math.pi), rel=1e-12)
    assert t_quantile(2, 0.95) == pytest.approx(0.9 / math.sqrt(2 * 0.95 * 0.05), rel=1e-12)
    assert t_quantile(9) == pytest.approx(2.2621571628, rel=1e-9)
    assert t_quantile(math.inf) == pytest.approx(1.9599639845, rel=1e-9)
    assert t_quantile(1e9) == pytest.approx(1.9599639845, rel=1e-6)


def test_seeds_of_other_numbers_and_of_other_lengths_differ():
    values = (0, 1, 2, 2**32, 2**32 + 1, 2**33)
    lists = [row for n in (1, 3, 4, 5) for row in itertools.product(values, repeat=n)]
    lists += list(itertools.product(range(40), repeat=2))
    assert len({derived_seed(*row) for row in lists}) == len(lists)
    assert all(0 <= derived_seed(*row) < 2**63 for row in lists[:100])


def test_seeds_of_pairs_are_what_they_were():
    """Training goes on by them: (seed, step), as numpy's SeedSequence mixes the two."""
    assert derived_seed(3, 5) == 4895867234429419378
