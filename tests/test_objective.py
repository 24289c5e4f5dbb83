"""The bound: each term against its closed form on Gaussian data, where the denoiser is exact."""

import functools
import math

import numpy as np
import pytest
import torch

from known_answers import (
    diffusion,
    diffusion_discrete,
    entropy,
    error,
    exact_vdm,
    gap,
    prior,
    reconstruction,
)
from variational_diffusion import objective, process
from variational_diffusion.grids import uniform_in_time
from variational_diffusion.numerics import Normal
from variational_diffusion.schedules import Adaptive, FixedLinear, Monotone

MEAN, STD, DIMENSIONS = 0.3, 0.5, 4
N = 40_000


@pytest.fixture
def x(generator):
    """Draws of the data distribution, float64."""
    noise = torch.randn(N, DIMENSIONS, dtype=torch.float64, generator=generator)
    return MEAN + STD * noise


def assert_mean(values, expected):
    """Two-sided at 5 standard errors of the mean: false alarm 6e-7."""
    assert abs(values.mean() - expected) < 5 * values.std() / math.sqrt(len(values)) + 1e-9


@pytest.mark.parametrize("gamma_1", [-3.0, 0.0, 5.0, 20.0])
def test_prior_is_the_kl_divergence(gamma_1, generator):
    encoded = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    gamma = torch.tensor(gamma_1, dtype=torch.float64)
    q = process.q_t(encoded, gamma)
    standard = Normal(torch.zeros_like(encoded), torch.ones_like(encoded))
    torch.testing.assert_close(
        objective.prior(encoded, gamma), q.kl(standard).sum(1), rtol=1e-9, atol=1e-14
    )


@pytest.mark.parametrize("prediction", ["noise", "velocity"])
def test_all_terms_for_infinitely_many_steps(prediction, x, generator):
    vdm = exact_vdm(mean=MEAN, std=STD, dimensions=DIMENSIONS, prediction=prediction)
    bound = vdm.vlb(x, generator=generator)
    gamma_0, gamma_1 = vdm.schedule.end_points.tolist()
    assert_mean(bound.prior, DIMENSIONS * prior(gamma_1, MEAN, STD))
    assert_mean(bound.reconstruction, DIMENSIONS * reconstruction(gamma_0))
    assert_mean(bound.diffusion, DIMENSIONS * diffusion(gamma_0, gamma_1, STD))


@pytest.mark.parametrize("prediction", ["noise", "velocity"])
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_the_diffusion_term_for_finitely_many_steps(steps, prediction, x, generator):
    vdm = exact_vdm(mean=MEAN, std=STD, dimensions=DIMENSIONS, prediction=prediction)
    gammas = torch.linspace(*vdm.schedule.end_points.tolist(), steps + 1).double().tolist()
    bound = vdm.vlb(x, steps=steps, generator=generator)
    assert_mean(bound.diffusion, DIMENSIONS * diffusion_discrete(gammas, STD))


@pytest.mark.parametrize("prediction", ["noise", "velocity"])
def test_the_loss_of_t_steps_tends_to_that_of_infinitely_many_as_one_over_t(prediction):
    """For one x, with the mean over ε by Gauss–Hermite and over t by midpoints: no chance in it."""
    vdm = exact_vdm(mean=MEAN, std=STD, dimensions=1, prediction=prediction)
    nodes, weights = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(8))
    weights = weights / weights.sum()

    def mean_loss(cells, loss):
        t = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
        each = [
            loss(
                lambda z, gamma: vdm.denoise(z, gamma).noise,
                vdm.schedule,
                torch.full((cells, 1), 0.9, dtype=torch.float64),
                t,
                node.expand(cells, 1),
            ).mean()
            for node in nodes
        ]
        return float((torch.stack(each) * weights).sum())

    def discrete(predict_noise, schedule, *rest, steps):
        gammas = uniform_in_time(schedule, steps)
        return objective.diffusion_discrete(predict_noise, gammas, *rest)

    limit = mean_loss(16_384, objective.diffusion)
    excess = [mean_loss(T, functools.partial(discrete, steps=T)) - limit for T in (128, 256, 512)]
    slope = np.polyfit(np.log([128, 256, 512]), np.log(excess), 1)[0]
    assert slope == pytest.approx(-1, abs=0.02)


@pytest.mark.parametrize("gammas", [(-6.0, 4.0), (-13.0, 13.0), (-2.0, 0.5)])
def test_the_closed_forms_add_up_to_the_exact_likelihood(gammas):
    """With the exact denoiser only the noise left at γ_0 and the prior's mismatch are lost."""
    gamma_0, gamma_1 = gammas
    terms = prior(gamma_1, MEAN, STD), reconstruction(gamma_0), diffusion(gamma_0, gamma_1, STD)
    assert sum(terms) == pytest.approx(entropy(STD) + gap(*gammas, MEAN, STD), rel=1e-12)


@pytest.mark.parametrize("gammas", [(-2.0, 0.5), (-6.0, 4.0), (-13.0, 13.0)])
def test_the_bound_is_the_exact_negative_log_likelihood_and_a_known_gap(gammas, x, generator):
    vdm = exact_vdm(
        mean=MEAN, std=STD, dimensions=DIMENSIONS, gamma_min=gammas[0], gamma_max=gammas[1]
    )
    total = vdm.vlb(x, generator=generator).total
    assert_mean(total, DIMENSIONS * (entropy(STD) + gap(*gammas, MEAN, STD)))


@pytest.mark.parametrize("prediction", ["noise", "velocity"])
def test_a_step_of_the_loss_is_the_kl_of_posterior_and_reverse(prediction, generator):
    """expm1(γ_t − γ_s)/2 · ‖ε − ε̂‖² = KL(q(z_s|z_t, x) ‖ p(z_s|z_t)), draw by draw."""
    vdm = exact_vdm(mean=MEAN, std=STD, dimensions=DIMENSIONS, prediction=prediction)
    x, noise = torch.randn(2, 6, DIMENSIONS, dtype=torch.float64, generator=generator)
    steps = 6
    t = (torch.arange(6, dtype=torch.float64) + 0.5) / steps

    def predict_noise(z, gamma):
        return vdm.denoise(z, gamma).noise

    gammas = uniform_in_time(vdm.schedule, steps)
    loss = objective.diffusion_discrete(predict_noise, gammas, x, t, noise)
    for i in range(steps):
        gamma_s, gamma_t = (
            vdm.schedule(torch.tensor(j / steps, dtype=torch.float64)) for j in (i, i + 1)
        )
        q = process.q_t(x[i : i + 1], gamma_t)
        z_t = q.mean + q.std * noise[i : i + 1]
        posterior = process.q_s_given_t(z_t, x[i : i + 1], gamma_s, gamma_t)
        kl = posterior.kl(vdm.reverse(z_t, gamma_t, gamma_s)).sum()
        torch.testing.assert_close(loss[i] / steps, kl, rtol=1e-8, atol=1e-12)


def test_the_bound_does_not_change_under_another_schedule_with_the_same_end_points(x, generator):
    bent = Monotone(-6.0, 4.0, hidden=16).double()
    with torch.no_grad():
        bent.raw_weight_3 += 3 * torch.rand(16, dtype=torch.float64, generator=generator)
    straight = FixedLinear(-6.0, 4.0).double()
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert (bent(t) - straight(t)).abs().max() > 0.5
    for schedule in (straight, bent):
        vdm = exact_vdm(mean=MEAN, std=STD, dimensions=DIMENSIONS, schedule=schedule)
        assert_mean(
            vdm.vlb(x, generator=generator).diffusion.detach(),
            DIMENSIONS * diffusion(-6.0, 4.0, STD),
        )


def test_the_gradient_of_the_end_points_is_that_of_the_bound(x, generator):
    """∂/∂γ_1 = ½ E‖ε − ε̂‖² at γ_1 + ∂prior, ∂/∂γ_0 = −½ E‖ε − ε̂‖² at γ_0 + ½ per dimension."""
    schedule = FixedLinear(-6.0, 4.0).double()
    schedule.log_stretch.requires_grad_(True)
    vdm = exact_vdm(mean=MEAN, std=STD, dimensions=DIMENSIONS, schedule=schedule)
    vdm.eval()  # measured at every call, so that batches are independent
    gradients = []
    for part in x.split(400):
        end_points = schedule.end_points
        total = vdm.vlb(part, generator=generator).total.mean() / DIMENSIONS
        gradients.append(
            torch.autograd.grad(total, schedule.log_stretch)[0] / (end_points + 1).abs()
        )
    # the stretch moves each end point by its distance from the middle, −1, per unit
    by_0, by_1 = torch.stack(gradients).unbind(1)
    step = 1e-5
    by_prior = (prior(4 + step, MEAN, STD) - prior(4 - step, MEAN, STD)) / (2 * step)
    assert_mean(by_1, 0.5 * error(4.0, STD) + by_prior)
    assert_mean(-by_0, -0.5 * error(-6.0, STD) + 0.5)


def test_low_discrepancy_times_are_uniform_one_by_one_and_even_together(generator):
    k, repeats = 8, 4000
    times = torch.stack([objective.low_discrepancy_times(k, generator) for _ in range(repeats)])
    assert ((times >= 0) & (times < 1)).all()
    strata = (times * k).floor().long().sort(1).values
    assert torch.equal(strata, torch.arange(k).expand(repeats, k))
    for i in range(k):
        empirical = torch.arange(1, repeats + 1) / repeats
        distance = (times[:, i].sort().values - empirical).abs().max()
        # Kolmogorov–Smirnov: P(distance > 2.3/√n) = 2 exp(−2 · 2.3²) = 5e-5 for each of eight
        assert distance < 2.3 / math.sqrt(repeats)


def test_terms_add_up_and_detach():
    term = torch.ones(3, requires_grad=True)
    bound = objective.Bound(term, 2 * term, 3 * term)
    assert torch.equal(bound.total, torch.full((3,), 6.0))
    assert not bound.detach().total.requires_grad


def test_the_measurement_at_the_ends_asks_for_no_gradient(generator):
    """Hooks of torch, such as those of its counters, fail on inputs that ask for one in vain."""
    schedule = Adaptive(-5.0, 5.0)
    schedule.train()
    asked = []

    def predict_noise(z, gamma):
        asked.append((z.requires_grad, gamma.requires_grad, torch.is_grad_enabled()))
        return torch.zeros_like(z)

    x = torch.rand(4, 3, generator=generator) - 0.5
    noise = torch.randn(4, 3, generator=generator)
    t = torch.rand(4, generator=generator)
    objective.diffusion(predict_noise, schedule, x, t, noise)
    assert asked[1:] == [(False, False, False)] * 2
