"""The three gradients of one backward pass: network, end points, and the shape of the schedule."""

import copy
import math

import pytest
import torch
from torch import nn

from known_answers import diffusion, error, exact_vdm
from variational_diffusion import objective
from variational_diffusion.numerics import expand
from variational_diffusion.schedules import SCHEDULES, Adaptive, FixedLinear, Monotone

MEAN, STD, DIMENSIONS = 0.3, 0.5, 4
N = 40_000


class SmallDenoiser(nn.Module):
    """A smooth function of (z, γ) with parameters, far from exact."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(DIMENSIONS + 1, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, z, gamma):
        return z + self.layers(torch.cat([z, gamma[:, None]], 1))


def bent(seed: int = 0, learn_end_points: bool = True) -> Monotone:
    """A monotone schedule away from where it starts, without its sharp bends."""
    schedule = Monotone(-6.0, 4.0, hidden=8, learn_end_points=learn_end_points).double()
    with torch.no_grad():
        schedule.bias_2 *= 20.0 / schedule.raw_weight_2
        schedule.raw_weight_2.fill_(20.0)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in schedule.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator).double()
    return schedule


def shape_parameters(schedule):
    return [p for name, p in schedule.named_parameters() if name != "log_stretch"]


@pytest.fixture
def problem(generator):
    """A network, a batch, times and noise in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SmallDenoiser().double()
    x, noise = torch.randn(2, 32, DIMENSIONS, dtype=torch.float64, generator=generator)
    t = torch.rand(32, dtype=torch.float64, generator=generator)
    return network, x, t, noise


def squared_error(network, x, gamma, noise):
    gamma_ = expand(gamma, x)
    z = torch.sigmoid(-gamma_).sqrt() * x + torch.sigmoid(gamma_).sqrt() * noise
    return (noise - network(z, gamma)).square().sum(1)


def test_one_pass_gives_the_shape_the_gradient_of_the_second_moment(problem):
    """The naive way needs a second backward pass, through L²."""
    network, x, t, noise = problem
    schedule = bent()
    objective.diffusion(network, schedule, x, t, noise).mean().backward()
    gamma, rate = schedule.gamma_and_rate(t)
    loss = 0.5 * rate * squared_error(network, x, gamma, noise)
    naive = torch.autograd.grad(loss.square().mean(), shape_parameters(schedule))
    for parameter, expected in zip(shape_parameters(schedule), naive, strict=True):
        assert expected.abs().max() > 1e-6
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-10, atol=1e-12)


def test_the_mean_of_earlier_losses_takes_noise_out_of_the_gradient_and_nothing_else(generator):
    """2 (L − b) and 2 L have the same mean, as the shape does not change E[L]."""
    schedule = bent(learn_end_points=False)
    vdm = exact_vdm(mean=MEAN, std=STD, dimensions=32, schedule=schedule)
    x = MEAN + STD * torch.randn(8000, 32, dtype=torch.float64, generator=generator)
    slopes = {}
    for kept in (False, True):
        vdm.train(kept)
        slopes[kept] = []
        for part in x.split(40):
            schedule.zero_grad()
            vdm.vlb(part, generator=generator).total.mean().backward()
            slopes[kept].append(schedule.raw_weight_3.grad.clone())
    plain, quiet = torch.stack(slopes[False]), torch.stack(slopes[True][20:])
    difference = plain.mean(0) - quiet.mean(0)
    error = (plain.var(0) / len(plain) + quiet.var(0) / len(quiet)).sqrt()
    # Two-sided at 5 standard errors: false alarm 6e-7 for each of eight
    assert (difference.abs() < 5 * error).all()
    assert (quiet.var(0) < 0.7 * plain.var(0)).all()


def test_one_pass_gives_the_network_the_gradient_of_the_bound(problem):
    network, x, t, noise = problem
    schedule = bent()
    objective.diffusion(network, schedule, x, t, noise).mean().backward()
    gamma, rate = (values.detach() for values in schedule.gamma_and_rate(t))
    loss = (0.5 * rate * squared_error(network, x, gamma, noise)).mean()
    naive = torch.autograd.grad(loss, list(network.parameters()))
    for parameter, expected in zip(network.parameters(), naive, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-10, atol=1e-12)


def test_the_shape_follows_the_variance_of_the_estimator_by_finite_differences(generator):
    """On Gaussian data, E[L²] = ∫ γ'(t)² E[m²] dt with E[m²] = ¼ (d² + 2d) error(γ)².

    The mean of L does not depend on the shape, so differences of E[L²] are those of the variance.
    """

    def second_moment(schedule) -> float:
        t = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
        with torch.no_grad():
            gamma, rate = schedule.gamma_and_rate(t)
        errors = STD**2 / (STD**2 + gamma.exp())
        moment = 0.25 * (DIMENSIONS**2 + 2 * DIMENSIONS) * errors.square()
        return float((rate.square() * moment).mean())

    schedule = bent(learn_end_points=False)
    vdm = exact_vdm(mean=MEAN, std=STD, dimensions=DIMENSIONS, schedule=schedule)
    x = MEAN + STD * torch.randn(N, DIMENSIONS, dtype=torch.float64, generator=generator)
    parameters = shape_parameters(schedule)
    direction = [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in parameters]
    slopes = []
    for part in x.split(400):
        schedule.zero_grad()
        vdm.vlb(part, generator=generator).total.mean().backward()
        slopes.append(sum((p.grad * d).sum() for p, d in zip(parameters, direction, strict=True)))
    slopes = torch.stack(slopes)

    moments = []
    for step in (1e-4, -1e-4):
        moved = copy.deepcopy(schedule)
        with torch.no_grad():
            for p, d in zip(shape_parameters(moved), direction, strict=True):
                p += step * d
        moments.append(second_moment(moved))
    expected = (moments[0] - moments[1]) / 2e-4
    standard_error = float(slopes.std() / math.sqrt(len(slopes)))
    assert abs(expected) > 10 * standard_error  # the test can tell it from its negative, and from 0
    # Two-sided at 5 standard errors: false alarm 6e-7
    assert abs(float(slopes.mean()) - expected) < 5 * standard_error


@pytest.mark.parametrize("name", SCHEDULES)
def test_end_points_follow_the_bound(name, generator):
    """d/dγ_1 = ½ E‖ε − ε̂‖² at γ_1, d/dγ_0 = −½ E‖ε − ε̂‖² at γ_0, whatever the shape."""
    schedule = bent() if name == "monotone" else SCHEDULES[name](-6.0, 4.0).double()
    schedule.log_stretch.requires_grad_(True)
    u = torch.rand(1000, dtype=torch.float64, generator=generator)
    schedule.observe(u, torch.exp(-3 * u))
    vdm = exact_vdm(mean=MEAN, std=STD, dimensions=DIMENSIONS, schedule=schedule).eval()
    x = MEAN + STD * torch.randn(N, DIMENSIONS, dtype=torch.float64, generator=generator)
    gammas = schedule.end_points.detach()
    by_stretch = gammas - schedule.initial_end_points.mean()
    gradients = []
    for part in x.split(100):
        schedule.zero_grad()
        bound = vdm.vlb(part, generator=generator)
        bound.diffusion.mean().backward()
        gradients.append(schedule.log_stretch.grad.clone() / by_stretch)
    means = torch.stack(gradients).mean(0)
    errors = torch.stack(gradients).std(0) / math.sqrt(len(gradients))
    for i, sign in ((0, -0.5), (1, 0.5)):
        expected = sign * DIMENSIONS * error(float(gammas[i]), STD)
        # Two-sided at 5 standard errors: false alarm 6e-7 for each of ten
        assert abs(float(means[i]) - expected) < 5 * float(errors[i])
        assert abs(expected) > 10 * float(errors[i])


def test_end_points_have_less_variance_than_by_stretching_the_whole_schedule(generator):
    schedule = FixedLinear(-6.0, 4.0).double()
    schedule.log_stretch.requires_grad_(True)
    vdm = exact_vdm(mean=MEAN, std=STD, dimensions=DIMENSIONS, schedule=schedule)
    x = MEAN + STD * torch.randn(4000, DIMENSIONS, dtype=torch.float64, generator=generator)
    ours, stretched = [], []
    for part in x.split(20):
        t = objective.low_discrepancy_times(20, generator, like=part)
        noise = torch.randn(part.shape, dtype=part.dtype, generator=generator)

        def predict(z, gamma):
            return vdm.denoise(z, gamma).noise

        loss = objective.diffusion(predict, schedule, part, t, noise).mean()
        ours.append(torch.autograd.grad(loss, schedule.log_stretch)[0])
        gamma, rate = schedule.gamma_and_rate(t)
        naive = (0.5 * rate * squared_error(predict, part, gamma, noise)).mean()
        assert float(naive.detach()) == pytest.approx(float(loss.detach()), rel=1e-12)
        stretched.append(torch.autograd.grad(naive, schedule.log_stretch)[0])
    ours, stretched = torch.stack(ours), torch.stack(stretched)
    difference = ours - stretched
    # the same mean, two-sided at 5 standard errors: false alarm 6e-7 for each of two
    assert (difference.mean(0).abs() < 5 * difference.std(0) / math.sqrt(len(ours))).all()
    assert (ours.var(0) < 0.7 * stretched.var(0)).all()


def test_descent_reaches_the_best_schedule(generator):
    """Monotone by its gradient and Adaptive by its bins come within 5 % and 2 % of the optimum.

    The optimum of E[L²] is (∫ √E[m²] dγ)², from p* ∝ √E[m²] (Cauchy and Schwarz).
    """
    factor = (DIMENSIONS**2 + 2 * DIMENSIONS) / DIMENSIONS**2
    optimum = factor * (DIMENSIONS * diffusion(-6.0, 4.0, STD)) ** 2

    def second_moment(schedule) -> float:
        t = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
        with torch.no_grad():
            gamma, rate = schedule.gamma_and_rate(t)
        errors = 0.5 * DIMENSIONS * STD**2 / (STD**2 + gamma.exp())
        return float((rate * errors).square().mean()) * factor

    assert second_moment(FixedLinear(-6.0, 4.0).double()) > 1.6 * optimum
    for schedule, steps, tolerance in (
        (Monotone(-6.0, 4.0, hidden=64, learn_end_points=False), 1500, 0.05),
        (Adaptive(-6.0, 4.0), 300, 0.02),
    ):
        vdm = exact_vdm(mean=MEAN, std=STD, dimensions=DIMENSIONS, schedule=schedule).train()
        parameters = shape_parameters(schedule)  # the ends stay where they are
        optimizer = torch.optim.Adam(parameters, 1e-2) if parameters else None
        for step in range(steps):
            noise = torch.randn(64, DIMENSIONS, dtype=torch.float64, generator=generator)
            vdm.vlb(MEAN + STD * noise, generator=generator).total.mean().backward()
            if optimizer is not None:
                optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
                optimizer.step()
                optimizer.zero_grad()
        assert second_moment(schedule) < (1 + tolerance) * optimum
        assert second_moment(schedule) > 0.9999 * optimum


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_learns_from_backward_passes_in_training_mode_and_from_nothing_else(name):
    schedule = SCHEDULES[name](-6.0, 4.0).double()
    schedule.log_stretch.requires_grad_(True)
    vdm = exact_vdm(schedule=schedule)
    x = torch.ones(20, 4, dtype=torch.float64)

    def memory():
        return [*(buffer.clone() for buffer in schedule.buffers()), schedule.calls]

    before = memory()
    for training in (False, True):
        vdm.train(training)
        vdm.vlb(x)  # test data, say
        with torch.no_grad():
            vdm.vlb(x)
    vdm.eval().vlb(x).total.mean().backward()
    vdm.train().vlb(x, steps=5).total.mean().backward()
    for value, known in zip(memory(), before, strict=True):
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(known))
    vdm.vlb(x).total.mean().backward()
    assert schedule.calls == 1
    assert float(schedule.mean_loss) > 0
    assert (schedule.end_errors > 0).all()
    if isinstance(schedule, Adaptive):
        assert schedule.count.sum() == 20


@pytest.mark.parametrize("name", SCHEDULES)
def test_what_the_parts_of_a_step_saw_enters_at_its_end_as_if_seen_at_once(name, problem):
    network, x, t, noise = problem
    whole, parted = (SCHEDULES[name](-6.0, 4.0).double() for _ in range(2))
    for schedule, parts in ((whole, 1), (parted, 4)):
        schedule.log_stretch.requires_grad_(True)
        network.zero_grad()
        losses = []
        for step in range(2):
            with schedule.one_step():
                before = copy.deepcopy(schedule.state_dict())
                for rows in zip(*(v.chunk(parts) for v in (x, t, noise)), strict=True):
                    loss = objective.diffusion(network, schedule, *rows)
                    for key, value in schedule.state_dict().items():
                        assert torch.equal(value, before[key]), key
                    (loss.mean() / parts).backward()
                    losses.append(loss.detach())
            assert schedule.calls == step + 1
        first, second = torch.cat(losses).chunk(2)
        running = torch.lerp(first.mean(), second.mean(), 0.02)
        torch.testing.assert_close(schedule.mean_loss, running, rtol=1e-8, atol=0.0)
        expected = {key: value.clone() for key, value in whole.state_dict().items()}
        gradients = [p.grad.clone() for p in schedule.parameters()]
        if parts == 1:
            alone = gradients
    for key, value in parted.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-12, atol=1e-14, msg=key)
    torch.testing.assert_close(gradients, alone, rtol=1e-11, atol=1e-13)


def test_a_step_that_fails_teaches_nothing(problem):
    network, x, t, noise = problem
    schedule = Adaptive(-6.0, 4.0).double()

    def interrupted():
        with schedule.one_step():
            objective.diffusion(network, schedule, x, t, noise).mean().backward()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (schedule.calls, float(schedule.mean_loss)) == (0, 0.0)
    objective.diffusion(network, schedule, x, t, noise).mean().backward()
    assert schedule.count.sum() == len(x)


def test_the_ends_are_measured_at_one_call_in_64_of_training_and_at_every_other(problem):
    network, x, t, noise = problem
    schedule = bent()
    seen = []

    def predict(z, gamma):
        if not torch.is_grad_enabled():
            seen.append(float(gamma[0]))
        return network(z, gamma)

    for _ in range(65):
        objective.diffusion(predict, schedule, x, t, noise).mean().backward()
    assert seen == schedule.end_points.tolist() * 2
    measured = squared_error(network, x, schedule.gamma_0.expand(32), noise).mean() / 2
    torch.testing.assert_close(schedule.end_errors[0], measured.detach())
    schedule.eval()
    for _ in range(3):
        objective.diffusion(predict, schedule, x, t, noise)
    assert len(seen) == 2 * 2 + 3 * 2
    fixed = bent(learn_end_points=False)
    objective.diffusion(predict, fixed, x, t, noise)
    assert len(seen) == 2 * 2 + 3 * 2
