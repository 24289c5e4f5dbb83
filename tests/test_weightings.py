"""Weighted losses: what the table stands for, its gradients, and the bound that is reported."""

import math

import pytest
import torch

from known_answers import diffusion, exact_vdm
from test_schedule_gradient import (
    DIMENSIONS,
    MEAN,
    STD,
    SmallDenoiser,
    bent,
    shape_parameters,
    squared_error,
)
from variational_diffusion import objective
from variational_diffusion.config import TrainingConfig
from variational_diffusion.errors import InputError
from variational_diffusion.model import VDM
from variational_diffusion.schedules import SCHEDULES, Adaptive, Cosine, FixedLinear
from variational_diffusion.training import TrainingState, fit
from variational_diffusion.weightings import WEIGHTINGS, weighting_named

GAMMA = torch.linspace(-14, 8, 2201, dtype=torch.float64)
WEIGHTED = {name: weighting for name, weighting in WEIGHTINGS.items() if weighting is not None}
MONOTONE = {"sigmoid", "velocity", "edm-monotone"}


def proportional(a, b):
    ratio = a / b
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-9, atol=0)


def test_noise_and_velocity_are_the_squared_errors_under_the_cosine_schedule():
    """ε-MSE at uniform t has the density of γ as its weight; v-MSE is that over alpha²."""
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    gamma, rate = Cosine(-13.3, 5.0).double().gamma_and_rate(t)
    proportional(WEIGHTED["noise"](gamma), 1 / rate)
    proportional(WEIGHTED["velocity"](gamma), 1 / (rate * torch.sigmoid(-gamma)))


def test_edm_is_the_loss_of_its_paper():
    """log σ ~ N(−1.2, 1.2²) and (σ² + ½²)/(½ σ)² ‖x − x̂‖², where ‖x − x̂‖ = σ ‖ε − ε̂‖."""
    log_sigma = GAMMA / 2
    density = torch.exp(-0.5 * ((log_sigma + 1.2) / 1.2).square())
    sigma2 = (2 * log_sigma).exp()
    proportional(WEIGHTED["edm"](GAMMA), density * (sigma2 + 0.25) / (0.25 * sigma2) * sigma2)


def test_edm_monotone_is_edm_up_to_its_highest_value():
    edm, monotone = WEIGHTED["edm"](GAMMA), WEIGHTED["edm-monotone"](GAMMA)
    highest = int(edm.argmax())
    assert torch.equal(monotone[:highest], edm[:highest])
    torch.testing.assert_close(
        monotone[highest + 1 :],
        edm.max().expand_as(monotone[highest + 1 :]),
        rtol=1e-5,  # the highest of a grid is a little below the highest
        atol=0,
    )
    assert (monotone >= edm).all()


def test_sigmoid_is_one_for_noise_and_half_at_minus_two():
    at = WEIGHTED["sigmoid"](torch.tensor([-2.0, 30.0, -30.0], dtype=torch.float64))
    expected = torch.tensor([0.5, 1.0, math.exp(-28)], dtype=torch.float64)
    torch.testing.assert_close(at, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", WEIGHTED)
def test_those_that_are_bounds_do_not_fall_and_the_others_do(name):
    steps = WEIGHTED[name](GAMMA).diff()
    assert bool((steps >= 0).all()) == (name in MONOTONE)
    assert (WEIGHTED[name](GAMMA) > 0).all()


@pytest.fixture
def problem(generator):
    """A network, a batch, times and noise in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SmallDenoiser().double()
    x, noise = torch.randn(2, 32, DIMENSIONS, dtype=torch.float64, generator=generator)
    return network, x, torch.rand(32, dtype=torch.float64, generator=generator), noise


@pytest.mark.parametrize("name", WEIGHTED)
def test_the_network_follows_the_weighted_loss_and_the_shape_its_second_moment(name, problem):
    network, x, t, noise = problem
    schedule, weighting = bent(), WEIGHTED[name]
    value = objective.diffusion(network, schedule, x, t, noise, weighting)
    value.mean().backward()
    gamma, rate = schedule.gamma_and_rate(t)
    bound = 0.5 * rate * squared_error(network, x, gamma, noise)
    torch.testing.assert_close(value, bound, rtol=1e-12, atol=0)
    loss = weighting(gamma) * bound
    parameters = list(network.parameters())
    expected = torch.autograd.grad(loss.mean(), parameters, retain_graph=True)
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-14)
    expected = torch.autograd.grad(loss.square().mean(), shape_parameters(schedule))
    for parameter, gradient in zip(shape_parameters(schedule), expected, strict=True):
        assert gradient.abs().max() > 0
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", WEIGHTED)
def test_the_end_points_follow_the_bound_itself(name, problem):
    network, x, t, noise = problem
    gradients = []
    for weighting in (None, WEIGHTED[name]):
        schedule = bent()
        objective.diffusion(network, schedule, x, t, noise, weighting).mean().backward()
        gradients.append(schedule.log_stretch.grad)
    assert gradients[0].abs().min() > 0
    assert torch.equal(*gradients)


def test_the_weighted_loss_does_not_depend_on_the_shape(problem):
    """Its gradient for the network, by midpoints over t for one x and one ε: no chance in it."""
    network, x, _, noise = problem
    cells = 8000
    t = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    x, noise = x[:1].expand(cells, -1), noise[:1].expand(cells, -1)
    gradients = []
    curved = bent(learn_end_points=False)
    for schedule in (FixedLinear(*curved.end_points.tolist()).double(), curved):
        network.zero_grad()
        objective.diffusion(network, schedule, x, t, noise, WEIGHTED["sigmoid"]).mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
    assert gradients[0].abs().max() > 0.1


def test_adaptive_draws_by_the_weighted_loss_and_keeps_the_shape_of_the_bound(generator):
    schedule = Adaptive(-6.0, 4.0, uniform=1e-9).double()
    u = torch.rand(5000, dtype=torch.float64, generator=generator)
    schedule.observe(u, torch.exp(-3 * u))
    middles = torch.linspace(-6, 4, 201, dtype=torch.float64)[1::2]
    weighting = WEIGHTED["sigmoid"]
    torch.testing.assert_close(
        schedule.density(weighting),
        (schedule.density() * weighting(middles))
        / (schedule.density() * weighting(middles)).mean(),
        rtol=1e-6,
        atol=1e-8,
    )
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    of_the_bound = schedule.shape_and_rate(t)
    assert (schedule.weighted_shape_and_rate(t, weighting)[0] - of_the_bound[0]).max() > 0.1
    for ours, plain in zip(schedule.weighted_shape_and_rate(t, None), of_the_bound, strict=True):
        assert torch.equal(ours, plain)


@pytest.mark.parametrize("name", ["adaptive", "monotone"])
def test_the_values_are_the_bound_whatever_the_weighting(name, generator):
    schedule = bent() if name == "monotone" else SCHEDULES[name](-6.0, 4.0).double()
    vdm = exact_vdm(mean=MEAN, std=STD, dimensions=DIMENSIONS, schedule=schedule).train()
    x = MEAN + STD * torch.randn(40_000, DIMENSIONS, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        values = torch.cat(
            [
                vdm.vlb(part, weighting=WEIGHTED["sigmoid"], generator=generator).diffusion
                for part in x.split(1000)
            ]
        )
    # Two-sided at 5 standard errors: false alarm 6e-7 for each of two
    expected = DIMENSIONS * diffusion(*schedule.end_points.tolist(), STD)
    assert abs(values.mean() - expected) < 5 * values.std() / math.sqrt(len(values))


def test_training_is_weighted_and_reports_the_bound(generator):
    """One step from the same weights: the same record, and other weights after it."""
    from variational_diffusion.decoders import Gaussian  # noqa: PLC0415
    from variational_diffusion.networks import MLP  # noqa: PLC0415

    x = torch.randn(16, 4, generator=generator)
    records, after = [], []
    for name in ("bound", "sigmoid"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            vdm = VDM(MLP((4,), width=16), FixedLinear(-6.0, 4.0), Gaussian(), (4,))
            with torch.no_grad():  # a last layer of zeros has no gradient below it
                for p in vdm.network.parameters():
                    p += 0.1 * torch.randn(p.shape)
        config = TrainingConfig(steps=1, batch_size=16, weighting=name, warmup_steps=0)
        state = TrainingState.start(vdm, config)
        (record,) = fit(state, [x], config)
        records.append(record.bound.total)
        after.append(torch.cat([p.detach().flatten() for p in vdm.network.parameters()]))
    assert torch.equal(*records)
    assert not torch.equal(*after)


def test_an_unknown_weighting_is_said():
    with pytest.raises(InputError, match=r"weighting = 'snr': known are bound, sigmoid, velocity"):
        weighting_named("snr")
