"""Comparisons of models: the difference, its error, what is shared, and what is refused."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from known_answers import ExactDenoiser, error, exact_vdm
from variational_diffusion.data.values import examples_of
from variational_diffusion.decoders import Discretized
from variational_diffusion.errors import InputError
from variational_diffusion.likelihood import (
    ContinuousBound,
    DiscreteBound,
    Estimate,
    ImportanceWeighted,
    ODELikelihood,
    compare_models,
    evaluate_rounds,
    summarize,
)
from variational_diffusion.model import VDM
from variational_diffusion.numerics import t_quantile
from variational_diffusion.schedules import Cosine, FixedLinear

MEAN, STD, D = 0.3, 0.5, 4
ENDS = -6.0, 4.0
BITS = 1 / math.log(2)


def gaussian(count, seed, std=STD):
    """Return examples of N(MEAN, std² I) as a split."""
    generator = torch.Generator().manual_seed(seed)
    x = MEAN + std * torch.randn(count, D, generator=generator, dtype=torch.float64)
    return examples_of(x, (D,), None)


def true_difference(mean, std):
    """Bits/dim that the denoiser of N(mean, std²) loses on N(MEAN, STD²), for γ in ENDS.

    Prior and reconstruction are the same. Of the diffusion, ½ ∫ E(ε − ε̂)² dγ with
    ε − ε̂ = ε (1 − sigma²/v) − sigma alpha (x − mean)/v, v = alpha² std² + sigma².
    """

    def excess(gamma):
        alpha_2, sigma_2 = 1 / (1 + math.exp(gamma)), 1 / (1 + math.exp(-gamma))
        v = alpha_2 * std**2 + sigma_2
        spread = STD**2 + (MEAN - mean) ** 2
        own = (alpha_2 * std**2 / v) ** 2 + sigma_2 * alpha_2 * spread / v**2
        return own - error(gamma, STD)

    return 0.5 * BITS * quad(excess, *ENDS)[0]


def test_the_truth_of_these_tests_is_a_divergence():
    """For all γ it is KL(N(MEAN, STD²) ‖ N(0.5, 0.6²)), up to what is left beyond ENDS."""
    ratio = STD / 0.6
    kl = 0.5 * (ratio**2 + ((MEAN - 0.5) / 0.6) ** 2 - 1) - math.log(ratio)
    assert true_difference(0.5, 0.6) == pytest.approx(BITS * kl, rel=0.06)


def test_the_difference_is_that_of_the_closed_form_and_covers_it_as_often_as_it_says():
    """120 sets of 30 examples: the squared z-score has mean 1.07 ± 0.15 for t with 29 degrees.

    Stratified times make it a little less. Four standard errors on both sides: a false alarm in
    about 10,000 seeds.
    """
    models = [exact_vdm(), exact_vdm(mean=0.5, std=0.6)]
    truth = true_difference(0.5, 0.6)
    scores, covered = [], 0
    for seed in range(120):
        found = compare_models(models, gaussian(30, seed), ContinuousBound(1), rounds=1, seed=seed)
        scores.append((found.difference - truth) / found.standard_error)
        low, high = found.interval
        covered += low < truth < high
    assert abs(np.mean(scores)) < 4.2 / math.sqrt(120)
    assert 0.47 < np.mean(np.square(scores)) < 1.67
    assert 104 <= covered <= 119  # 114 ± 2.4


def test_flipping_a_sign_of_the_difference_is_seen():
    pair = [exact_vdm(), exact_vdm(mean=0.5, std=0.6)]
    x = gaussian(200, 0)
    there, back = compare_models(pair, x, rounds=2), compare_models(pair[::-1], x, rounds=2)
    assert there.difference == -back.difference > 0
    assert there.interval == (-back.interval[1], -back.interval[0])
    assert (there.pairs[0].better, back.pairs[0].better) == (0, 1)
    assert there.difference == pytest.approx(
        there.summaries[1].bits_per_dim - there.summaries[0].bits_per_dim
    )
    assert there.difference == pytest.approx(true_difference(0.5, 0.6), abs=0.04)


class Coupled(ExactDenoiser):
    """A denoiser with a Jacobian that probes see with noise; `by` changes it a little."""

    def __init__(self, by):
        super().__init__(MEAN, STD, "noise")
        self.by = by

    def forward(self, z, gamma, conditioning=None):
        return super().forward(z, gamma) + 0.2 * torch.sin((2 + self.by) * z.roll(1, dims=1))


def coupled(by, decoder=None):
    """Return a model around `Coupled`."""
    decoder = decoder or exact_vdm().decoder
    return VDM(Coupled(by), FixedLinear(*ENDS), decoder, (D,), "noise").double()


ESTIMATORS = {
    "vlb": ContinuousBound(2),
    "discrete": DiscreteBound(torch.linspace(4, -6, 11, dtype=torch.float64), 3),
    "exact": DiscreteBound(torch.linspace(4, -6, 6, dtype=torch.float64), None),
    "ode": ODELikelihood(tolerance=1e-4),
    "importance": ImportanceWeighted(2, ODELikelihood("variational", probes=3, tolerance=1e-4)),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_models_that_are_nearly_the_same_differ_nearly_without_noise(name):
    """The noise is shared: the difference and its errors go to zero with the perturbation."""
    models = [coupled(0.0), coupled(1e-6)]
    found = compare_models(models, gaussian(10, 1), ESTIMATORS[name], rounds=2)
    own, pair = found.summaries[0], found.pairs[0]
    assert own.draws_error > 1e-3 * own.standard_error  # there is noise to share
    assert 0 < pair.standard_error < 1e-4 * own.standard_error
    assert pair.draws_error < 1e-3 * own.draws_error


class Watched(ExactDenoiser):
    """An exact denoiser that keeps the noise it was shown."""

    def __init__(self, schedule, x):
        super().__init__(MEAN, STD, "noise")
        self.x, self.seen = x, []

    def forward(self, z, gamma, conditioning=None):
        alpha, sigma = (-gamma).sigmoid().sqrt()[:, None], gamma.sigmoid().sqrt()[:, None]
        self.seen.append((z - alpha * self.x) / sigma)
        return super().forward(z, gamma)


def test_other_schedules_and_end_points_see_the_same_unit_noise():
    split = gaussian(20, 2)
    x = torch.from_numpy(split.read())
    schedules = FixedLinear(-6.0, 4.0), Cosine(-5.0, 3.0)
    networks = [Watched(schedule, x) for schedule in schedules]
    models = [
        VDM(network, schedule, exact_vdm().decoder, (D,), "noise").double()
        for network, schedule in zip(networks, schedules, strict=True)
    ]
    compare_models(models, split, rounds=3)
    seen = [torch.stack(network.seen) for network in networks]
    assert seen[0].shape == (6, 20, D)
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=1e-9)
    assert (seen[0][0] - seen[0][2]).abs().min() > 0  # rounds have noise of their own


def test_dequantisation_takes_the_same_quantiles_of_models_with_other_ends():
    """z_0 of discrete data lies at the same place of its bin, wherever γ_0 is."""
    from variational_diffusion.likelihood.dequantisation import uniform  # noqa: PLC0415

    x = torch.randint(0, 5, (10, D), generator=torch.Generator().manual_seed(0))
    places = []
    for gamma_0 in (-6.0, -4.0):
        vdm = VDM(Coupled(0.0), FixedLinear(gamma_0, 4.0), Discretized(5), (D,), "noise").double()
        drawn = uniform(vdm, x, torch.Generator().manual_seed(1)).z_0
        places.append(drawn / (-vdm.schedule.gamma_0).sigmoid().sqrt() - vdm.encode(x))
    torch.testing.assert_close(*places)


def test_a_model_does_not_differ_from_itself():
    found = compare_models([exact_vdm(), exact_vdm()], gaussian(20, 3), names=("a", "a again"))
    assert found.difference == 0
    assert found.standard_error == 0
    assert found.interval == (0, 0)
    assert found.pairs[0].verdict(found.names) == (
        "no difference: both give each of 20 examples the same bits"
    )


def test_the_figures_of_each_model_are_those_of_evaluate():
    models, x = [exact_vdm(), exact_vdm(std=0.6)], gaussian(50, 4)
    found = compare_models(models, x, rounds=3, batch_size=20, seed=7)
    for vdm, summary in zip(models, found.summaries, strict=True):
        done = evaluate_rounds(vdm, x, ContinuousBound(2), rounds=3, batch_size=20, seed=7)
        assert summary == summarize(*done.rounds, dimensions=D)
    assert found.bits.mean(1).tolist() == [s.bits_per_dim for s in found.summaries]


def test_three_models_have_three_pairs_whose_intervals_hold_together():
    models = [exact_vdm(), exact_vdm(std=0.6), exact_vdm(std=0.7)]
    found = compare_models(models, gaussian(30, 5), names=("a", "b", "c"), rounds=2)
    assert [(pair.first, pair.second) for pair in found.pairs] == [(0, 1), (0, 2), (1, 2)]
    assert found.pairs[0].difference + found.pairs[2].difference == pytest.approx(
        found.pairs[1].difference
    )
    pair = found.pairs[0]
    low, high = pair.interval
    # t with 29 degrees: 2.5409 leaves 0.05/6 above; 2.0452 would leave 0.025
    assert t_quantile(29, 1 - 0.05 / 6) == pytest.approx(2.5409, rel=1e-4)
    few = replace(pair.summary, skewness=0.0, interval_degrees=29.0)
    low, high = replace(pair, summary=few).interval
    assert (high - low) / 2 == pytest.approx(2.5409 * pair.standard_error, rel=1e-3)
    assert any("Bonferroni" in note for note in found.notes)
    with pytest.raises(InputError, match=r"3 models have 3 differences"):
        _ = found.difference


class Simple:
    """An estimator whose difference between models of std a and b is (b − a) (Σ x + noise)."""

    terms = ("total",)

    def __init__(self, noise):
        self.noise = noise

    def __call__(self, vdm, x, generator=None):
        drawn = torch.randn(len(x), generator=generator, dtype=x.dtype)
        return Estimate({"total": vdm.network.std * (x.sum(1) + self.noise * drawn)}, 8)


@pytest.mark.parametrize(("noise", "rounds"), [(0.1, 2), (0.8, 10), (30.0, 16)])
def test_rounds_end_when_the_draws_are_a_small_part_or_the_cost_is_spent(noise, rounds):
    """Σ x has a spread of 1: noise of 0.8 needs (0.8/0.25)² rounds; 16 have 128 evaluations."""
    models = [exact_vdm(), exact_vdm(std=0.6)]
    found = compare_models(models, gaussian(200, 6), Simple(noise), batch_size=10)
    pair = found.pairs[0]
    assert found.rounds == pytest.approx(rounds, rel=0.3)
    small = noise < 10
    assert (pair.draws_error <= found.standard_error / 4) == small == (found.notes == ())
    assert small or f"(--rounds {4 * found.rounds})" in found.notes[0]
    spread = 0.1 * BITS / D / math.sqrt(200)
    whole = spread * math.sqrt(1 + noise**2 / found.rounds)
    assert found.standard_error == pytest.approx(whole, rel=0.2)  # ± 5 %
    draws = spread * noise / math.sqrt(found.rounds)
    assert pair.draws_error == pytest.approx(draws, rel=0.6)  # ± 15 % for 19 degrees


def test_rounds_go_on_until_the_draws_of_the_difference_are_as_few_as_asked():
    models = [exact_vdm(), exact_vdm(std=0.6)]
    spread = 0.1 * BITS / D / math.sqrt(200)
    found = compare_models(
        models, gaussian(200, 6), Simple(1.0), batch_size=10, target_error=spread / 3
    )
    assert found.pairs[0].draws_error <= spread / 3
    assert found.rounds == pytest.approx(9, abs=3)
    assert found.notes == ()


def test_noise_that_cannot_be_shared_is_said_and_does_no_harm():
    models = [exact_vdm(), exact_vdm(mean=0.5, std=0.6).float()]
    found = compare_models(models, gaussian(400, 7), rounds=4)
    assert "do not see the same noise" in found.notes[0]
    assert abs(found.difference - true_difference(0.5, 0.6)) < 4 * found.standard_error


def test_models_that_are_not_comparable_are_refused():
    x = gaussian(5, 8)
    with pytest.raises(InputError, match="give two runs or models"):
        compare_models([exact_vdm()], x)
    with pytest.raises(InputError, match=r"shape \(4,\).*shape \(5,\).*cannot be compared"):
        compare_models([exact_vdm(), exact_vdm(dimensions=5)], x)
    with pytest.raises(InputError, match=r"levels None.*levels 5"):
        compare_models([exact_vdm(), coupled(0.0, Discretized(5))], x)
    with pytest.raises(InputError, match="2 models, 3 splits"):
        compare_models([exact_vdm(), exact_vdm()], [x, x, x])


@pytest.mark.parametrize(
    ("values", "levels", "message"),
    [
        (np.zeros((3, 5)), None, r"data has shape \(3, 5\): the model takes \(n, 4\)"),
        (np.zeros((0, 4)), None, r"data has shape \(0, 4\)"),
        (np.zeros((3, 4)), 5, "holds float64: the model takes integers from 0 to 4"),
        (np.full((3, 4), 5), 5, "data, example 0 has the value 5"),
        (np.full((3, 4), np.nan), None, "must be finite"),
    ],
)
def test_examples_in_memory_are_looked_at(values, levels, message):
    with pytest.raises(InputError, match=message):
        examples_of(values, (D,), levels)
