"""Chains of few steps: the best reverse variance, what it costs, and the grid of least cost."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from known_answers import ExactDenoiser, entropy, error, exact_vdm, gap, prior, reconstruction
from variational_diffusion import grids, process
from variational_diffusion.decoders import Gaussian
from variational_diffusion.errors import InputError
from variational_diffusion.grids import (
    NoiseErrors,
    PredictedErrors,
    assumed_errors,
    bound_optimal,
)
from variational_diffusion.likelihood import DiscreteBound, evaluate
from variational_diffusion.likelihood.loss_profile import noise_errors, predictions
from variational_diffusion.model import VDM
from variational_diffusion.networks import VarianceHead
from variational_diffusion.sampling import Multistep
from variational_diffusion.schedules import Cosine, FixedLinear
from variational_diffusion.training.variance_head import fit_head

MEAN, STD, DIMENSIONS = 0.3, 0.5, 4
SCHEDULE = FixedLinear(-6.0, 4.0).double()


def known_errors(std=STD, bins=2000):
    """E(ε − ε̂)² of the exact denoiser of N(mean, std²), the same at all positions."""
    gamma = torch.linspace(-6, 4, bins, dtype=torch.float64)
    return NoiseErrors(gamma, std**2 / (std**2 + gamma.exp())[:, None].expand(-1, DIMENSIONS))


def test_errors_are_interpolated_and_constant_beyond_the_ends():
    errors = NoiseErrors(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([[1.0, 0], [3, 1], [2, 1]]))
    at = errors.at(torch.tensor([-5.0, 0.25, 1.0, 1.5, 2.0, 9.0]))
    assert at.tolist() == [[1, 0], [1.5, 0.25], [3, 1], [2.5, 1], [2, 1], [2, 1]]
    assert errors.at(torch.tensor(0.5)).tolist() == [2, 0.5]
    assert errors.averaged().at(torch.tensor([0.0, 1.5])).tolist() == [[0.5], [1.75]]


@pytest.mark.parametrize("per_position", [False, True])
def test_a_widened_step_costs_what_its_kl_says(per_position, generator):
    """posterior_kl against KL(q(z_s|z_t, x) ‖ widened q(z_s|z_t, x̂)), entry by entry."""
    x, z_t, wrong = torch.randn(3, 5, 7, dtype=torch.float64, generator=generator)
    gamma_t = torch.linspace(-5, 4, 5, dtype=torch.float64)
    gamma_s = gamma_t - torch.linspace(0.01, 3, 5, dtype=torch.float64)
    assumed = torch.rand(7 if per_position else 1, dtype=torch.float64, generator=generator)
    q = process.q_s_given_t(z_t, x, gamma_s, gamma_t)
    p = process.widened(
        process.q_s_given_t(z_t, wrong, gamma_s, gamma_t), gamma_s, gamma_t, assumed
    )
    # x̂ − x = (sigma/alpha)(ε − ε̂)
    squared_error = (wrong - x).square() * torch.exp(-gamma_t)[:, None]
    torch.testing.assert_close(
        process.posterior_kl(gamma_s, gamma_t, squared_error, assumed), q.kl(p), rtol=1e-9, atol=0
    )
    narrow = process.q_s_given_t(z_t, wrong, gamma_s, gamma_t)
    torch.testing.assert_close(
        process.posterior_kl(gamma_s, gamma_t, squared_error), q.kl(narrow), rtol=1e-9, atol=0
    )


def test_the_best_assumption_is_the_mean_error(generator):
    squared_error = torch.randn(1000, dtype=torch.float64, generator=generator).square()
    gamma_s, gamma_t = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    assumed = squared_error.mean().requires_grad_()
    cost = process.posterior_kl(gamma_s, gamma_t, squared_error, assumed).mean()
    (slope,) = torch.autograd.grad(cost, assumed)
    cost = cost.detach()
    assert abs(float(slope)) < 1e-12
    for other in (0.9, 1.1):
        assert process.posterior_kl(
            gamma_s, gamma_t, squared_error, other * assumed.detach()
        ).mean() > float(cost)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_with_the_best_variance_few_steps_lose_nothing_on_gaussian_data(steps, generator):
    """p(z_s|z_t) is then the true conditional, and the bound exact but for its two ends."""
    vdm = exact_vdm(mean=MEAN, std=STD, dimensions=DIMENSIONS)
    x = MEAN + STD * torch.randn(4000, DIMENSIONS, dtype=torch.float64, generator=generator)
    gammas = grids.uniform_in_gamma(vdm.schedule, steps)
    exact = DIMENSIONS * (entropy(STD) + gap(-6.0, 4.0, MEAN, STD))
    bound = DiscreteBound(gammas=gammas, draws=None)
    (estimate,) = evaluate(vdm.widened(known_errors()), [x], bound, generator=generator)
    excess = estimate.total - exact
    # Two-sided at 4 standard errors: false alarm 6e-5 for each of three
    noise = 4 * float(excess.std()) / math.sqrt(len(x))
    assert abs(float(excess.mean())) < noise < 0.2
    (estimate,) = evaluate(vdm, [x], bound, generator=generator)
    assert float(estimate.total.mean()) - exact > 0.2


@pytest.mark.parametrize("variance", grids.VARIANCES)
@pytest.mark.parametrize("grid", grids.GRIDS)
def test_what_a_chain_is_expected_to_cost_is_what_it_costs(grid, variance, generator):
    vdm = exact_vdm(mean=MEAN, std=STD, dimensions=DIMENSIONS, schedule=Cosine(-6.0, 4.0))
    x = MEAN + STD * torch.randn(4000, DIMENSIONS, dtype=torch.float64, generator=generator)
    errors = known_errors()
    assumed = assumed_errors(variance, errors)
    vdm = vdm.widened(assumed)
    gammas = grids.step_grid(grid, vdm.schedule, 6, errors, assumed)
    (estimate,) = evaluate(vdm, [x], DiscreteBound(gammas=gammas, draws=None), generator=generator)
    expected = DIMENSIONS * grids.expected_diffusion(gammas, errors, assumed)
    total = DIMENSIONS * (prior(4.0, MEAN, STD) + reconstruction(-6.0)) + expected
    for value, known in ((estimate.terms["diffusion"], expected), (estimate.total, total)):
        # Two-sided at 4.5 standard errors: false alarm 7e-6 for each of eighteen
        noise = 4.5 * float(value.std()) / math.sqrt(4000)
        assert abs(float(value.mean()) - known) < noise < 0.1 * known


def uneven_errors(generator, bins=50, positions=6):
    gamma = torch.linspace(-5.9, 3.9, bins, dtype=torch.float64)
    scale = torch.rand(positions, dtype=torch.float64, generator=generator)
    return NoiseErrors(gamma, torch.sigmoid(-2 * gamma[:, None] * scale) * scale)


@pytest.mark.parametrize("variance", grids.VARIANCES)
def test_no_grid_of_two_steps_costs_less_than_the_optimal_one(variance, generator):
    errors = uneven_errors(generator)
    assumed = assumed_errors(variance, errors)
    best = bound_optimal(SCHEDULE, 2, errors, assumed)
    every = torch.linspace(-6, 4, 401, dtype=torch.float64)[1:-1]
    ends = torch.tensor([4.0, -6.0], dtype=torch.float64)
    costs = [
        grids.expected_diffusion(torch.stack([ends[0], middle, ends[1]]), errors, assumed)
        for middle in every
    ]
    assert grids.expected_diffusion(best, errors, assumed) == pytest.approx(min(costs), rel=1e-9)
    assert float(best[1]) == pytest.approx(float(every[int(np.argmin(costs))]))


@pytest.mark.parametrize("variance", grids.VARIANCES)
@pytest.mark.parametrize("steps", [1, 5, 40])
def test_the_optimal_grid_ends_exactly_and_beats_the_uniform_ones(steps, variance, generator):
    errors = uneven_errors(generator)
    assumed = assumed_errors(variance, errors)
    best = bound_optimal(SCHEDULE, steps, errors, assumed)
    assert len(best) == steps + 1
    assert (float(best[0]), float(best[-1])) == (4.0, -6.0)
    assert (best.diff() < 0).all()
    cost = grids.expected_diffusion(best, errors, assumed)
    even = grids.uniform_in_gamma(SCHEDULE, steps)
    assert cost <= grids.expected_diffusion(even, errors, assumed) + 1e-12
    for i, shift in itertools.product(range(1, steps), (-0.025, 0.025)):
        moved = best.clone()
        moved[i] += shift
        if (moved.diff() < 0).all():
            assert grids.expected_diffusion(moved, errors, assumed) >= cost - 1e-12


def test_many_positions_are_stood_for_by_a_sample(generator):
    errors = uneven_errors(generator, positions=3000)
    assumed = assumed_errors("position", errors)
    cost = grids.expected_diffusion(bound_optimal(SCHEDULE, 8, errors, assumed), errors, assumed)
    even = grids.expected_diffusion(grids.uniform_in_gamma(SCHEDULE, 8), errors, assumed)
    assert cost < even


def test_uniform_grids():
    cosine = Cosine(-6.0, 4.0).double()
    t = torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=torch.float64)
    torch.testing.assert_close(grids.uniform_in_time(cosine, 4), cosine(t))
    even = grids.uniform_in_gamma(cosine, 4)
    torch.testing.assert_close(even, torch.tensor([4, 1.5, -1, -3.5, -6], dtype=torch.float64))
    ratio = torch.exp(0.5 * grids.karras(cosine, 4)) ** (1 / 7)
    torch.testing.assert_close(ratio.diff(), (ratio[-1] - ratio[0]).expand(4) / 4)
    nearly = grids.karras(cosine, 4, rho=1e4)
    torch.testing.assert_close(nearly, even, rtol=0, atol=1e-2)


@pytest.mark.parametrize("name", grids.GRIDS)
@pytest.mark.parametrize("steps", [2, 5, 30])
def test_every_grid_falls_from_end_to_end(name, steps):
    schedule = Cosine(-6.0, 4.0).double()
    errors = known_errors()
    whole = grids.step_grid(name, schedule, steps, errors)
    short = grids.step_grid(name, schedule, steps, errors, stop=-2.5)
    for gammas in (whole, short):
        assert len(gammas) == steps + 1
        assert (float(gammas[0]), float(gammas[-1])) == (4.0, -6.0)
        assert (gammas.diff() < 0).all()
    assert float(short[-2]) == -2.5
    with pytest.raises(InputError, match=r"end = -7.0: give a γ between -6.00 and 4.00"):
        grids.step_grid(name, schedule, steps, errors, stop=-7.0)
    with pytest.raises(InputError, match="steps = 1: stopping early takes two"):
        grids.step_grid(name, schedule, 1, errors, stop=-2.5)
    if name in grids.MEASURED:
        with pytest.raises(InputError, match=f"grid = '{name}' needs measured errors"):
            grids.step_grid(name, schedule, steps)


def test_a_grid_that_stops_early_is_laid_as_the_whole_one_is():
    cosine = Cosine(-6.0, 4.0).double()
    t = torch.linspace(1, 0, 5, dtype=torch.float64)
    gammas = grids.uniform_in_time(cosine, 3, end=float(cosine(t)[3]))
    torch.testing.assert_close(gammas, cosine(t)[:4])


def local_errors(gammas, stds):
    """What each step of DDIM adds to the end of the exact flow, for each std, in closed form."""
    alpha, sigma = process.alpha(gammas)[:, None], process.sigma(gammas)[:, None]
    spread = (alpha**2 * stds**2 + sigma**2).sqrt()
    noise = sigma[:-1] / spread[:-1] ** 2  # ε̂ for z = 1
    step = sigma[1:] * noise + alpha[1:] / alpha[:-1] * (1 - sigma[:-1] * noise)
    exact = spread[1:] / spread[:-1]
    return (step - exact) * spread[:-1] * spread[-1] / spread[1:]


def test_equal_error_is_equal_where_the_theory_is_exact():
    """One std, DDIM, small steps: no error is a tenth away from the mean, and the sum is least."""
    errors, stds = known_errors(), torch.tensor([STD], dtype=torch.float64)
    even = grids.equal_error(SCHEDULE, 400, errors, order=1)
    found = local_errors(even, stds).abs()
    assert (found / found.mean() - 1).abs().max() < 0.1
    for other in (grids.uniform_in_gamma(SCHEDULE, 400), grids.karras(SCHEDULE, 400)):
        assert local_errors(other, stds).abs().sum() > 1.05 * found.sum()


@pytest.mark.parametrize("order", [1, 2])
def test_equal_error_serves_data_of_several_scales(order):
    """The end of the flow, against the uniform grid, for entries of stds from 0.03 to 1."""
    stds = torch.tensor([0.03, 0.1, 0.3, 1.0], dtype=torch.float64)
    gamma = torch.linspace(-12, 8, 500, dtype=torch.float64)
    errors = NoiseErrors(gamma, stds**2 / (stds**2 + gamma.exp()[:, None]))
    schedule = FixedLinear(-12.0, 8.0).double()
    z = torch.eye(4, dtype=torch.float64)
    exact = flow_scale(schedule, stds)

    vdm = VDM(ExactDenoiser(0.0, stds, "velocity"), schedule, Gaussian(), (4,))
    off = []
    for name in ("equal-error", "gamma"):
        gammas = grids.step_grid(name, schedule, 30, errors)
        *_, z_0 = Multistep(order)(vdm, z, gammas)
        off.append(float((z_0.diagonal() - exact).square().sum().sqrt()))
    assert off[0] < 0.8 * off[1]


def flow_scale(schedule, stds):
    """Return by how much the exact flow scales z of each std."""
    gammas = schedule.end_points[:, None]
    spread = (torch.sigmoid(-gammas) * stds**2 + torch.sigmoid(gammas)).sqrt()
    return spread[0] / spread[1]


def test_errors_are_measured_at_their_positions(generator):
    """The exact denoiser of N(mean, std²) has std²/(std² + e^γ) everywhere."""
    vdm = exact_vdm(mean=MEAN, std=STD, dimensions=DIMENSIONS)
    x = MEAN + STD * torch.randn(20_000, DIMENSIONS, dtype=torch.float64, generator=generator)
    *_, errors = noise_errors(vdm, x.split(500), bins=10, generator=generator)
    assert errors.error.shape == (10, DIMENSIONS)
    expected = torch.tensor([error(g, STD) for g in errors.gamma.tolist()])[:, None].double()
    # (ε − ε̂)² is expected · χ²: 4.5 standard errors of 2,000 draws, false alarm 3e-4 for all 40;
    # and a bin's mean differs from its middle's value by up to 2 %
    limit = (4.5 * math.sqrt(2 / 2000) + 0.02) * expected
    assert ((errors.error - expected).abs() < limit).all()
    assert errors.gamma[0] == pytest.approx(-5.5)


class Off(nn.Module):
    """Where the data are zero, the true noise less √(γ + 10): an error of γ + 10."""

    def forward(self, z, gamma, conditioning=None):
        return z / process.sigma(gamma)[:, None] - (gamma[:, None] + 10).sqrt()


@pytest.mark.parametrize("count", [1, 2, 7, 300])
def test_bins_without_a_measurement_are_between_those_that_have_one(count, generator):
    vdm = VDM(Off(), FixedLinear(-6.0, 4.0), Gaussian(), (3,), "noise").double()
    *_, errors = noise_errors(vdm, [torch.zeros(count, 3).double()], generator=generator)
    assert errors.error.shape == (100, 3)
    off = errors.error - errors.gamma[:, None] - 10
    # evenly spread times leave 10/count between two measurements, and as much at the ends in all,
    # where the error is constant; elsewhere γ is known to half a bin of 0.1
    assert off.abs().max() < 10 / count + 0.1
    inside = (errors.gamma > -6 + 10 / count + 0.1) & (errors.gamma < 4 - 10 / count - 0.1)
    assert bool(inside.any()) == (count > 2)
    assert (off[inside].abs() < 0.05 + 1e-9).all()
    assert errors.smoothed().error.isfinite().all()


def test_smoothing_keeps_a_smooth_profile_and_takes_noise_away(generator):
    """m(γ) that grows by e from bin to bin at one position and stays at another."""
    gamma = torch.linspace(-10, 5, 60, dtype=torch.float64)
    level = torch.exp(-0.1 * gamma)
    true = torch.stack([level, 3 * level], dim=1)
    inside = slice(8, -8)  # a kernel is cut off at the ends
    smooth = NoiseErrors(gamma, true).smoothed().error
    torch.testing.assert_close(smooth[inside], true[inside], rtol=2e-3, atol=0.0)
    noise = torch.exp(0.2 * torch.randn(60, 2, dtype=torch.float64, generator=generator))
    noisy = NoiseErrors(gamma, true * noise)
    before = (noisy.error / true).log().std()
    after = (noisy.smoothed().error[inside] / true[inside]).log()
    assert after.std() < 0.5 * before
    # Two-sided: the mean of 120 draws of 0.2 has an error of 0.018, and a bias of its mean square
    assert abs(float(after.mean()) - 0.02) < 0.08


class Silent(nn.Module):
    """ε̂ = 0: where the data are zero, its error (z/sigma)² can be read off z."""

    def forward(self, z, gamma, conditioning=None):
        return torch.zeros_like(z)


def test_a_head_learns_what_z_says_of_the_error(generator):
    vdm = VDM(Silent(), FixedLinear(-4.0, 4.0), Gaussian(), (1, 4, 4), "noise")
    x = torch.zeros(64, 1, 4, 4)
    *_, errors = noise_errors(vdm, [x] * 50, bins=10, generator=generator)
    torch.manual_seed(0)
    head = VarianceHead((1, 4, 4), gamma_min=-4.0, gamma_max=4.0)
    losses = list(fit_head(vdm, head, errors, itertools.repeat(x), steps=200))
    assert np.mean(losses[-20:]) < np.mean(losses[:5]) - 0.02
    gamma = torch.tensor([-3.0, 0.0, 3.0])
    noise = torch.randn(3, 1, 4, 4, generator=generator)
    z = process.q_t(torch.zeros(3, 1, 4, 4), gamma).std * noise
    predicted = PredictedErrors(errors, head)(z, gamma, torch.zeros_like(z))
    both = torch.stack([predicted.flatten().log(), noise.square().flatten().log()])
    assert torch.corrcoef(both)[0, 1] > 0.8
    totals = []
    for assumed in (None, errors, PredictedErrors(errors, head)):
        chain = DiscreteBound(grids.uniform_in_gamma(vdm.schedule, 4), None)
        (estimate,) = evaluate(
            vdm.widened(assumed), [x], chain, generator=torch.Generator().manual_seed(0)
        )
        totals.append(float(estimate.terms["diffusion"].mean()))
    assert totals[0] > totals[1] > totals[2]


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_predictions_are_sorted_and_keep_their_ratio_to_the_errors(factor, generator):
    """A head that knows (ε − ε̂)² = (z/sigma)², up to a factor; twice that as the measured mean."""
    vdm = VDM(Silent(), FixedLinear(-4.0, 4.0), Gaussian(), (1, 4, 4), "noise")
    measured = NoiseErrors(torch.linspace(-3.5, 3.5, 8), torch.full((8, 1, 4, 4), 2.0))

    def head(z, gamma, noise):
        return (z / process.sigma(gamma)[:, None, None, None]).square().log() + math.log(factor / 2)

    batches = itertools.repeat(torch.zeros(500, 1, 4, 4))
    assumed = PredictedErrors(measured, head)
    errors, predicted = predictions(vdm, assumed, batches, groups=20, generator=generator)
    assert errors.error.shape == predicted.error.shape == (8, 20)
    assert (predicted.error.diff(dim=1) > 0).all()
    known = slice(2, None)  # a head says e^−8 times the mean at least
    ratio = predicted.error[:, known] / errors.error[:, known]
    torch.testing.assert_close(ratio, torch.full_like(ratio, factor), rtol=1e-3, atol=0.0)
    torch.testing.assert_close(errors.error.mean(1), torch.full((8,), 2.0).double())
    # of 20 groups of ε², the least is 0.0013 on average and the largest 5.58, of a mean of 1
    assert float(errors.error[:, 0].mean()) < 0.01
    assert float(errors.error[:, -1].mean()) == pytest.approx(11.2, rel=0.05)


def test_predictions_need_a_batch_for_every_bin():
    vdm = VDM(Silent(), FixedLinear(-4.0, 4.0), Gaussian(), (1, 4, 4), "noise")
    measured = NoiseErrors(torch.linspace(-3.5, 3.5, 8), torch.ones(8, 1, 4, 4))
    assumed = PredictedErrors(measured, lambda z, gamma, noise: 0 * z)
    with pytest.raises(InputError, match="batches = 7: one for each of the 8 bins"):
        predictions(vdm, assumed, [torch.zeros(5, 1, 4, 4)] * 7)


@pytest.mark.parametrize("excess", [0.02, 0.1])
def test_the_fewest_steps_are_the_fewest(excess):
    errors = known_errors(bins=200)

    def diffusion(gammas):
        return grids.expected_diffusion(gammas, errors, None)

    steps = grids.fewest_steps(SCHEDULE, errors, None, excess)
    limit = (1 + excess) * diffusion(grids.uniform_in_gamma(SCHEDULE, 1000))
    assert diffusion(bound_optimal(SCHEDULE, steps, errors)) <= limit
    assert diffusion(bound_optimal(SCHEDULE, steps - 1, errors)) > limit


def test_reverse_takes_the_predicted_errors(generator):
    vdm = VDM(Silent(), FixedLinear(-4.0, 4.0), Gaussian(), (1, 2, 2), "noise")
    flat = NoiseErrors(torch.tensor([-4.0, 4.0]), torch.full((2, 1, 2, 2), 0.5))
    z = torch.randn(3, 1, 2, 2, generator=generator)
    gamma_t, gamma_s = torch.tensor([1.0, -1.0])
    plain = vdm.reverse(z, gamma_t, gamma_s)
    errors = PredictedErrors(flat, lambda z, gamma, noise: math.log(3.0) + 0 * z)
    wide = vdm.widened(errors).reverse(z, gamma_t, gamma_s)
    torch.testing.assert_close(wide.mean, plain.mean)
    factor = math.sqrt(1 + math.expm1(2.0) * 1.5)
    torch.testing.assert_close(wide.std, (factor * plain.std).expand(wide.std.shape))


def test_mistakes_are_named():
    with pytest.raises(
        InputError, match="grid = 'even': known are time, gamma, karras, equal-error"
    ):
        grids.step_grid("even", SCHEDULE, 3)
    with pytest.raises(InputError, match="grid = 'optimal' needs measured errors"):
        grids.step_grid("optimal", SCHEDULE, 3)
    with pytest.raises(InputError, match="variance = 'small': known are posterior"):
        assumed_errors("small", None)
    with pytest.raises(InputError, match="variance = 'scalar' needs measured errors"):
        assumed_errors("scalar", None)
    with pytest.raises(InputError, match="steps = 0"):
        grids.uniform_in_time(SCHEDULE, 0)
    with pytest.raises(InputError, match=r"steps = 1001.*up to 1000"):
        bound_optimal(SCHEDULE, 1001, known_errors())
    with pytest.raises(InputError, match="steps = 3 and gammas"):
        exact_vdm().vlb(
            torch.zeros(1, 4, dtype=torch.float64),
            steps=3,
            gammas=grids.uniform_in_time(SCHEDULE, 3),
        )
