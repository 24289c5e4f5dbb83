"""The probability-flow ODE: densities against closed forms, round trips, and the divergence."""

import math

import pytest
import torch
from exact import Mixture

from known_answers import exact_vdm
from variational_diffusion import flow, process
from variational_diffusion.decoders import Gaussian
from variational_diffusion.model import VDM
from variational_diffusion.networks import MLP
from variational_diffusion.numerics import Normal
from variational_diffusion.schedules import FixedLinear

MEAN, STD, DIMENSIONS = 0.3, 0.5, 4


def mixture_vdm(gamma_max=24.0):
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    means = torch.tensor([[-1.0, 0.5], [0.6, 0.9], [0.2, -1.1]], dtype=torch.float64)
    network = Mixture(weights, means, 0.3)
    return VDM(network, FixedLinear(-6.0, gamma_max), Gaussian(), (2,), "noise").double()


def gaussian(n, generator):
    return MEAN + STD * torch.randn(n, DIMENSIONS, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("prediction", ["noise", "velocity"])
def test_gaussian_data_have_their_exact_density(prediction, generator):
    """Along the flow the marginal is scaled, so z_1 and its density are known."""
    vdm = exact_vdm(mean=MEAN, std=STD, dimensions=DIMENSIONS, prediction=prediction)
    ends = vdm.schedule.end_points
    alpha, sigma = process.alpha(ends), process.sigma(ends)
    spread = (alpha**2 * STD**2 + sigma**2).sqrt()
    z_0 = alpha[0] * gaussian(6, generator)
    (log_p,), solution = flow.log_prob(vdm, z_0, *ends, flow.ExactDivergence(), tolerance=1e-7)
    z_1 = alpha[1] * MEAN + (z_0 - alpha[0] * MEAN) * spread[1] / spread[0]
    torch.testing.assert_close(solution.z, z_1, rtol=0, atol=1e-5)
    known = Normal(torch.zeros(()), torch.ones(())).log_prob(z_1).sum(1)
    known = known + DIMENSIONS * (spread[1] / spread[0]).log()
    assert (log_p - known).abs().max() < 1e-4 * DIMENSIONS
    assert not solution.gave_up


def test_a_mixture_has_its_exact_density(generator):
    vdm = mixture_vdm()
    ends = vdm.schedule.end_points
    network = vdm.network
    which = torch.multinomial(network.log_weights.exp(), 200, replacement=True, generator=generator)
    x = network.centres[which]
    x = x + 0.3 * torch.randn(x.shape, dtype=torch.float64, generator=generator)
    z_0 = process.q_t(x, ends[0]).sample(generator)
    (log_p,), _ = flow.log_prob(vdm, z_0, *ends, flow.ExactDivergence(), tolerance=1e-6)
    # at γ_1 = 24 the marginal's mean is within alpha_1 = 6e-6 of that of N(0, I)
    assert (log_p - network.log_prob(z_0, ends[0])).abs().max() < 1e-4 * 2


def test_the_flow_takes_the_marginals_along(generator):
    """Exact samples at γ_0 come to unit normal ones: an error in the drift would show here."""
    vdm = mixture_vdm()
    ends = vdm.schedule.end_points
    which = torch.multinomial(
        vdm.network.log_weights.exp(), 4000, replacement=True, generator=generator
    )
    noise = 0.3 * torch.randn(4000, 2, dtype=torch.float64, generator=generator)
    z_0 = process.q_t(vdm.network.centres[which] + noise, ends[0]).sample(generator)
    z_1 = flow.solve(vdm, z_0, *ends).z
    # Two-sided at 4.5 standard errors: false alarm 7e-6 for each of four
    assert (z_1.mean(0).abs() < 4.5 / math.sqrt(4000)).all()
    assert ((z_1.var(0) - 1).abs() < 4.5 * math.sqrt(2 / 4000)).all()


def test_there_and_back_again(generator):
    vdm = mixture_vdm()
    ends = vdm.schedule.end_points
    z_0 = torch.randn(50, 2, dtype=torch.float64, generator=generator)
    there = flow.solve(vdm, z_0, *ends, divergence=flow.ExactDivergence(), tolerance=1e-7)
    back = flow.solve(
        vdm, there.z, *ends.flip(0), divergence=flow.ExactDivergence(), tolerance=1e-7
    )
    assert (back.z - z_0).abs().max() < 1e-4
    assert (there.divergence + back.divergence).abs().max() < 1e-4


def test_the_density_on_a_plane_integrates_to_one():
    """Whatever the network: the ODE makes a density out of any drift."""
    torch.manual_seed(0)
    network = MLP((2,), width=16, blocks=1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    vdm = VDM(network, FixedLinear(-4.0, 4.0), Gaussian(), (2,)).double()
    axis = torch.linspace(-7, 7, 81, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    (log_p,), _ = flow.log_prob(
        vdm, grid, *vdm.schedule.end_points, flow.ExactDivergence(), tolerance=1e-4
    )
    mass = float(log_p.exp().sum()) * float(axis[1] - axis[0]) ** 2
    assert mass == pytest.approx(1, abs=0.01)
    unit = Normal(torch.zeros(()), torch.ones(())).log_prob(grid).sum(1)
    assert (log_p - unit)[unit > -3].std() > 0.05  # the network has been seen


def test_the_exact_divergence_is_the_trace_of_the_jacobian(generator):
    matrix = torch.randn(6, 6, dtype=torch.float64, generator=generator)
    z = torch.randn(5, 2, 3, dtype=torch.float64, generator=generator)

    def drift(z):
        return (z.flatten(1) @ matrix.T).reshape(z.shape).sin()

    moved, (divergence,) = flow.ExactDivergence()(drift, z)
    torch.testing.assert_close(moved, drift(z))
    jacobian = torch.stack(
        [torch.func.jacrev(lambda x: drift(x[None])[0])(x).reshape(6, 6) for x in z]
    )
    torch.testing.assert_close(divergence, jacobian.diagonal(dim1=1, dim2=2).sum(1))
    assert not divergence.requires_grad


def test_hutchinson_is_unbiased_with_a_variance_that_falls_as_one_over_n(generator):
    matrix = torch.randn(6, 6, dtype=torch.float64, generator=generator)
    z = torch.zeros(20_000, 6, dtype=torch.float64)
    symmetric = (matrix + matrix.T) / 2
    # of one probe: 2 Σ_{i≠j} s_ij²
    known = 2 * float(symmetric.square().sum() - symmetric.diagonal().square().sum())
    for probes in (1, 4):
        drawn = flow.rademacher(probes, z, generator)
        assert set(drawn.unique().tolist()) == {-1.0, 1.0}
        _, rows = flow.Hutchinson(drawn)(lambda z: z @ matrix.T, z)
        assert rows.shape == (probes, len(z))
        divergence = rows.mean(0)
        variance = known / probes
        # Two-sided at 4.5 standard errors: false alarm 7e-6 for each of four; the fourth moment of
        # these sums is below that of a normal distribution by at most a factor of 5
        assert abs(float(divergence.mean() - matrix.trace())) < 4.5 * math.sqrt(variance / 20_000)
        assert abs(float(divergence.var()) / variance - 1) < 4.5 * math.sqrt(5 * 2 / 20_000)


def test_where_the_adaptive_solver_gives_up_equal_steps_are_taken(monkeypatch, generator):
    vdm = exact_vdm(mean=MEAN, std=STD, dimensions=DIMENSIONS)
    ends = vdm.schedule.end_points
    z_0 = gaussian(6, generator)
    (best,), _ = flow.log_prob(vdm, z_0, *ends, flow.ExactDivergence(), tolerance=1e-8)
    monkeypatch.setattr(flow, "_MAX_STEPS", 2)
    (log_p,), solution = flow.log_prob(vdm, z_0, *ends, flow.ExactDivergence())
    assert solution.gave_up
    assert solution.evaluations > 4 * 256
    torch.testing.assert_close(log_p, best, rtol=0, atol=1e-6)


def test_evaluations_are_counted_and_a_smaller_tolerance_takes_more(generator):
    vdm = mixture_vdm()
    calls = []
    vdm.network.register_forward_hook(lambda *_: calls.append(1))
    z_0 = torch.randn(5, 2, dtype=torch.float64, generator=generator)
    counts = [
        flow.solve(vdm, z_0, *vdm.schedule.end_points, tolerance=tolerance).evaluations
        for tolerance in (1e-3, 1e-7)
    ]
    assert sum(counts) == len(calls)
    assert counts[0] < counts[1]
