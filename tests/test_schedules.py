"""Schedules: exact end points, monotone, and a rate that is the derivative."""

import pytest
import torch

from variational_diffusion.errors import InputError
from variational_diffusion.schedules import SCHEDULES, Monotone, Schedule


def perturbed(name: str, seed: int = 0) -> Schedule:
    """A schedule as training may leave it: every learned parameter moved at random."""
    schedule = SCHEDULES[name](gamma_min=-13.3, gamma_max=5.0).double()
    generator = torch.Generator().manual_seed(seed)
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
    torch.testing.assert_close(rate.mean(), schedule.gamma_1 - schedule.gamma_0, rtol=1e-6, atol=0)


def test_which_end_points_are_learned():
    learned = {
        name: any(p.requires_grad for p in SCHEDULES[name]().parameters()) for name in SCHEDULES
    }
    assert learned == {"fixed-linear": False, "learned-linear": True, "monotone": True}
    t = torch.linspace(0, 1, 5)
    assert not SCHEDULES["fixed-linear"]()(t).requires_grad
    bent = Monotone(learn_end_points=False)
    bent(t)[2].backward()
    assert bent.log_stretch.grad is None
    assert bent.bias_2.grad is not None
    assert bent.bias_2.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["learned-linear", "monotone"])
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
