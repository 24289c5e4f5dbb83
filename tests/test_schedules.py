"""Schedules: exact end points, monotone, and a rate that is the derivative."""

import math

import pytest
import torch

from variational_diffusion.errors import InputError
from variational_diffusion.schedules import SCHEDULES, Adaptive, Monotone, Schedule, floor_note

SMALL = {"monotone": {"hidden": 16}, "adaptive": {"bins": 20}}


def perturbed(name: str, seed: int = 0) -> Schedule:
    """A schedule as training may leave it: measurements seen, every learned parameter moved."""
    schedule = SCHEDULES[name](gamma_min=-13.3, gamma_max=5.0).double()
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(1000, generator=generator, dtype=torch.float64)
    noise = torch.randn(1000, generator=generator, dtype=torch.float64)
    schedule.observe(u, torch.exp(5 - 6 * u + 0.5 * noise))
    with torch.no_grad():
        for parameter in schedule.parameters():
            if parameter.requires_grad:
                parameter += 0.5 * torch.randn(
                    parameter.shape, generator=generator, dtype=parameter.dtype
                )
    return schedule


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_end_points_are_those_asked_for(name):
    schedule = SCHEDULES[name](gamma_min=-13.3, gamma_max=5.0)
    assert torch.equal(schedule.end_points, torch.tensor([-13.3, 5.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SCHEDULES)
def test_end_points_are_met_exactly_whatever_the_parameters(name, dtype):
    schedule = perturbed(name).to(dtype)
    gamma = schedule(torch.tensor([0.0, 1.0], dtype=dtype))
    assert torch.equal(gamma, schedule.end_points)
    assert torch.equal(gamma, torch.stack([schedule.gamma_0, schedule.gamma_1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SCHEDULES)
def test_end_points_are_met_exactly_in_a_batch_of_any_size(name, dtype):
    """Sums of another length add up in another order, which must not show at the ends."""
    for seed in range(8):
        schedule = perturbed(name, seed).to(dtype)
        for shape in ((), (1,), (7,), (64,), (1001,)):
            t = torch.zeros(shape, dtype=dtype)
            assert (schedule(t) == schedule.gamma_0).all()
            assert (schedule(t + 1) == schedule.gamma_1).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SCHEDULES)
def test_noise_grows_strictly(name, seed):
    gamma, rate = perturbed(name, seed).gamma_and_rate(
        torch.linspace(0, 1, 10_001, dtype=torch.float64)
    )
    assert (gamma.diff() > 0).all()
    assert (rate > 0).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rate_is_the_derivative(name):
    schedule = perturbed(name)
    t = torch.linspace(0, 1, 257, dtype=torch.float64, requires_grad=True)
    gamma, rate = schedule.gamma_and_rate(t)
    (by_autograd,) = torch.autograd.grad(gamma.sum(), t)
    torch.testing.assert_close(rate.detach(), by_autograd, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(schedule(t), gamma, rtol=0, atol=0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rate_integrates_to_the_range(name):
    schedule = perturbed(name)
    t = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    _, rate = schedule.gamma_and_rate(t)
    # the corners of a piecewise linear γ(t), and the poles of the cosine just beyond its ends
    tolerance = {"adaptive": 1e-3, "cosine": 1e-4}.get(name, 1e-6)
    range_ = schedule.gamma_1 - schedule.gamma_0
    torch.testing.assert_close(rate.mean(), range_, rtol=tolerance, atol=0)


def test_which_end_points_are_learned():
    learned = {
        name: any(p.requires_grad for p in SCHEDULES[name]().parameters()) for name in SCHEDULES
    }
    assert learned == {
        "fixed-linear": False,
        "cosine": False,
        "learned-linear": True,
        "monotone": True,
        "adaptive": True,
    }
    t = torch.linspace(0, 1, 5)
    assert not SCHEDULES["fixed-linear"]()(t).requires_grad
    bent = Monotone(learn_end_points=False)
    bent(t)[2].backward()
    assert bent.log_stretch.grad is None
    assert bent.bias_2.grad is not None
    assert bent.bias_2.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["learned-linear", "monotone", "adaptive"])
def test_end_points_move_apart_and_on_their_own(name):
    schedule = SCHEDULES[name](gamma_min=-13.3, gamma_max=5.0).double()
    for i in (0, 1):
        schedule.zero_grad()
        schedule.end_points[i].backward()
        assert schedule.log_stretch.grad is not None
        assert schedule.log_stretch.grad[i] != 0
        assert schedule.log_stretch.grad[1 - i] == 0
        # each moves by its distance from the middle, −4.15, and away from it
        assert float(schedule.log_stretch.grad[i]) == pytest.approx((-9.15, 9.15)[i])
    schedule.zero_grad()
    schedule(torch.tensor([0.0, 1.0], dtype=torch.float64))[1].backward()
    torch.optim.SGD(schedule.parameters(), lr=0.01).step()
    assert schedule.gamma_1 < 5.0
    assert schedule(torch.ones((), dtype=torch.float64)) == schedule.gamma_1
    assert schedule.gamma_0 == schedule.initial_end_points[0]
    with torch.no_grad():
        schedule.log_stretch.fill_(-1e6)
    assert schedule.gamma_0 < schedule.gamma_1


def test_a_fresh_monotone_schedule_is_nearly_linear():
    t = torch.linspace(0, 1, 101)
    gamma = Monotone(gamma_min=-13.3, gamma_max=5.0)(t)
    assert (gamma - (-13.3 + 18.3 * t)).abs().max() < 0.5


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_falling_schedule_is_refused(name):
    with pytest.raises(InputError, match=r"gamma_min = 5.0 and gamma_max = -13.3.*gamma_min <"):
        SCHEDULES[name](gamma_min=5.0, gamma_max=-13.3)


def test_a_monotone_schedule_has_two_units_or_more():
    with pytest.raises(InputError, match="hidden = 1"):
        Monotone(hidden=1)


def test_the_cosine_schedule_is_a_cosine():
    schedule = SCHEDULES["cosine"](-13.3, 5.0).double()
    gamma = schedule(torch.linspace(0, 1, 11, dtype=torch.float64))
    angle = torch.acos(torch.sigmoid(-gamma).sqrt())
    torch.testing.assert_close(angle.diff(), angle.diff().mean().expand(10), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["learned-linear", "monotone", "adaptive"])
def test_no_update_can_make_noise_fall(name):
    """10,000 steps of AdamW along gradients that are random, huge, tiny, or all of one sign.

    The rate is a hundred times that of the shape, and 300 times that of the end points.
    """
    schedule = SCHEDULES[name](gamma_min=-13.3, gamma_max=5.0, **SMALL.get(name, {}))
    optimizer = torch.optim.AdamW(schedule.parameters(), 1.0, weight_decay=0.0)
    generator = torch.Generator().manual_seed(1)
    t = torch.linspace(0, 1, 101)
    sign = 1.0
    for step in range(10_000):
        if step % 500 == 0:
            sign = 2.0 * float(torch.randint(0, 2, (), generator=generator)) - 1
        for parameter in schedule.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.grad = 10.0 ** float(8 * noise.flatten()[0]) * (noise + 2 * sign)
        optimizer.step()
        u = torch.rand(16, generator=generator)
        schedule.observe(u, 10.0 ** (6 * torch.randn(16, generator=generator)))
        gamma, rate = schedule.gamma_and_rate(t)
        assert (gamma.diff() > 0).all(), step
        assert rate.isfinite().all(), step
        assert gamma[0] == schedule.gamma_0, step
        assert gamma[-1] == schedule.gamma_1, step


def test_an_adaptive_schedule_starts_linear_and_takes_the_best_density_for_what_it_sees(generator):
    """p*(γ) ∝ √E[m²], for m = h(γ) e with E[e²] = 1, so p* ∝ h."""
    schedule = Adaptive(-4.0, 4.0, memory=1e5, uniform=0.01).double()
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(schedule(t), -4 + 8 * t)
    for _ in range(500):
        u = torch.rand(200, generator=generator, dtype=torch.float64)
        e = torch.randn(200, generator=generator, dtype=torch.float64)
        schedule.observe(u, (1.5 + torch.cos(3 * u)) * e)
    middle = (torch.arange(100, dtype=torch.float64) + 0.5) / 100
    height = 1.5 + torch.cos(3 * middle)
    expected = 0.99 * height / height.mean() + 0.01
    # a mean of 4,000 squares of normals has a standard error of 2.2 %, its root of 1.1 %
    torch.testing.assert_close(schedule.density(), expected, rtol=0.05, atol=0)
    _, rate = schedule.gamma_and_rate(t[1:-1])
    u, _ = schedule.shape_and_rate(t[1:-1])
    there = schedule.density()[(u * 100).long()]
    torch.testing.assert_close(rate.detach(), 8 / there)


def test_an_adaptive_schedule_forgets():
    schedule = Adaptive(memory=10.0, bins=2)
    u = torch.tensor([0.2, 0.3, 0.9])
    schedule.observe(u, torch.tensor([3.0, 4.0, 5.0]))
    schedule.observe(u[:2], torch.tensor([1.0, 2.0]))
    fading = math.exp(-0.2)
    torch.testing.assert_close(schedule.count, torch.tensor([2 * fading + 2, fading]))
    torch.testing.assert_close(schedule.moment, torch.tensor([25 * fading + 5, 25 * fading]))


def test_an_adaptive_schedule_takes_no_notice_of_what_is_not_finite():
    schedule = Adaptive(bins=2)
    u = torch.tensor([0.2, 0.3, 0.9, 0.9])
    schedule.observe(u, torch.tensor([math.inf, 2.0, math.nan, 1e30]))
    assert schedule.count.tolist() == [1.0, 0.0]
    assert schedule.moment.tolist() == [4.0, 0.0]


@pytest.mark.parametrize("options", [{"bins": 0}, {"memory": 0.5}, {"uniform": 0.0}])
def test_options_of_an_adaptive_schedule_are_checked(options):
    with pytest.raises(InputError, match="an adaptive schedule takes bins"):
        Adaptive(**options)


LEARNED = [name for name in SCHEDULES if name not in ("fixed-linear", "cosine")]


@pytest.mark.parametrize("floor", [-10.0, -10.5, -24.0, -300.0])
@pytest.mark.parametrize("name", LEARNED)
def test_a_learned_end_point_stays_above_its_floor(name, floor):
    options = {**SMALL.get(name, {}), "gamma_min": -10.0, "gamma_max": 5.0}
    free = SCHEDULES[name](**options).double()
    schedule = SCHEDULES[name](**options, floor=floor).double()
    highest = -math.inf
    for stretch in (-3.0, -0.5, 0.0, 0.02, 0.5, 1.0, 2.0, 5.0, 50.0):
        for each in (free, schedule):
            with torch.no_grad():
                each.log_stretch.fill_(stretch)
        unlimited, limited = free.end_points.detach(), schedule.end_points.detach()
        expected = torch.maximum(unlimited, torch.tensor([floor, -math.inf]).double())
        torch.testing.assert_close(limited, expected, rtol=0, atol=1e-5)
        if expected[0] > floor + 0.01:  # nothing at all changes above it
            assert torch.equal(limited, unlimited)
        highest = max(highest, float(expected[0]))
    assert highest > -10.0


@pytest.mark.parametrize("name", LEARNED)
def test_an_end_point_leaves_its_floor_at_once_when_the_gradient_turns(name):
    options = SMALL.get(name, {})
    schedule = SCHEDULES[name](gamma_min=-10.0, gamma_max=5.0, floor=-11.0, **options).double()
    optimizer = torch.optim.SGD([schedule.log_stretch], lr=0.01)
    for sign, steps in ((1, 100), (-1, 1)):  # down for long, then up
        for _ in range(steps):
            optimizer.zero_grad()
            (sign * schedule.gamma_0).backward()
            optimizer.step()
            schedule.stay_above_floor()
        if sign > 0:
            assert float(schedule.gamma_0.detach()) == pytest.approx(-11, abs=1e-5)
    assert float(schedule.gamma_0.detach()) > -10.8


def test_a_floor_that_is_reached_is_said():
    assert floor_note(-9.9, -10.0) == floor_note(-10.0, -10.0)
    assert "γ_0 has reached its floor of -10," in floor_note(-10.0, -10.0)
    assert "\n" not in floor_note(-10.0, -10.0)
    assert floor_note(-9.0, -10.0) is None
    assert floor_note(-99.0, None) is None
