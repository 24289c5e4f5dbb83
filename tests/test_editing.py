"""Editing Gaussian data: posteriors have a closed form, and so has the chain of inpainting."""

import itertools
import math

import numpy as np
import pytest
import torch

from known_answers import ExactDenoiser, correlated_vdm, exact_vdm
from variational_diffusion import editing, grids, process
from variational_diffusion.decoders import Discretized
from variational_diffusion.editing import tasks
from variational_diffusion.editing.operators import Measurement
from variational_diffusion.errors import InputError
from variational_diffusion.model import VDM
from variational_diffusion.networks import MLP
from variational_diffusion.schedules import FixedLinear

MEAN = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
COVARIANCE = torch.tensor(
    [[0.5, 0.3, -0.2], [0.3, 0.4, 0.1], [-0.2, 0.1, 0.6]], dtype=torch.float64
)
X = torch.tensor([1.2, -0.9, 0.1], dtype=torch.float64)
HOLE = torch.tensor([False, True, True])


def last(path):
    *_, z = path
    return z


def assert_moments(samples, mean, covariance, bias=0.0):
    """Two-sided at 5 standard errors, false alarm 1e-6 an entry; `bias`: what steps may add."""
    n = len(samples)
    spread = covariance.diagonal().sqrt()
    assert ((samples.mean(0) - mean).abs() < (5 / math.sqrt(n) + bias) * spread).all()
    both = spread[:, None] * spread
    assert ((samples.T.cov() - covariance).abs() < (5 * math.sqrt(2 / n) + bias) * both).all()


def conditional(known, hole):
    """Mean and covariance of x[hole] given the rest."""
    cross = COVARIANCE[hole][:, ~hole] @ torch.linalg.inv(COVARIANCE[~hole][:, ~hole])
    mean = MEAN[hole] + cross @ (known - MEAN)[~hole]
    return mean, COVARIANCE[hole][:, hole] - cross @ COVARIANCE[~hole][:, hole]


def inpainting_moments(gammas, repeats, jump):
    """Mean and covariance of the last z of the chain that `inpaint` is, exactly."""
    identity = np.eye(3)
    m, cov, x, hole = (values.numpy() for values in (MEAN, COVARIANCE, X, HOLE))
    keep = np.diag(hole.astype(float))
    mean, spread = np.zeros(3), identity
    for start in range(0, len(gammas) - 1, jump):
        block = gammas[start : start + jump + 1]
        for repeat in range(repeats):
            if repeat:
                ratio = math.sqrt((1 + math.exp(block[-1])) / (1 + math.exp(block[0])))
                mean, spread = ratio * mean, ratio**2 * spread + (1 - ratio**2) * identity
            for t, s in itertools.pairwise(block):
                (a_t, a_s), (v_t, v_s) = (
                    [1 / math.sqrt(1 + math.exp(g)) for g in (t, s)],
                    [1 / (1 + math.exp(-g)) for g in (t, s)],
                )
                c = 1 - math.exp(s - t)
                gain = a_t * cov @ np.linalg.inv(a_t**2 * cov + v_t * identity)
                slope = keep @ (a_s * ((1 - c) / a_t * identity + c * gain))
                offset = keep @ (a_s * c * (m - gain @ (a_t * m))) + (identity - keep) @ (a_s * x)
                mean = slope @ mean + offset
                noise = v_s * c * keep + v_s * (identity - keep)
                spread = slope @ spread @ slope.T + noise
    return mean, spread


@pytest.mark.parametrize(("repeats", "jump"), [(1, 1), (3, 1), (2, 3)])
def test_inpainting_has_the_moments_of_its_chain(repeats, jump, generator):
    vdm = correlated_vdm(MEAN, COVARIANCE, -2.0, 4.0)
    gammas = grids.uniform_in_time(vdm.schedule, 7).detach()
    x = X.expand(20_000, -1)
    path = list(
        editing.inpaint(vdm, x, HOLE, gammas, repeats=repeats, jump=jump, generator=generator)
    )
    assert len(path) == 7
    mean, covariance = map(
        torch.from_numpy, inpainting_moments(gammas.tolist(), repeats=repeats, jump=jump)
    )
    assert_moments(path[-1][:, HOLE], mean[HOLE], covariance[HOLE][:, HOLE])


def test_inpainting_tends_to_the_posterior_with_repeats_and_falls_short_without():
    """The chain's own moments, so no chance in it; distances in standard deviations of x."""
    gammas = torch.linspace(8, -8, 151).double().tolist()
    exact_mean, exact_covariance = conditional(X, HOLE)
    distances = []
    for repeats in (1, 10, 40):
        mean, covariance = inpainting_moments(gammas, repeats=repeats, jump=1)
        off = np.abs(mean[1:] / math.sqrt(1 / (1 + math.exp(-8))) - exact_mean.numpy()).max()
        distances.append((off, np.abs(covariance[1:, 1:] - exact_covariance.numpy()).max()))
    assert distances[0][0] > 0.1
    assert distances[1][0] < 0.03
    assert distances[2][0] < 0.01
    assert all(spread < 0.04 for _, spread in distances)  # of the steps, not of the repeats


@pytest.mark.parametrize("levels", [2, 17, 256, 65_536])
def test_known_entries_come_back_to_the_level(levels, generator):
    """With so much noise left at γ_0 that a draw of p(x|z_0) would change them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vdm = VDM(MLP((6,), width=16), FixedLinear(-1.0, 5.0), Discretized(levels), (6,))
    x = torch.randint(levels, (50, 6), generator=generator)
    mask = torch.tensor([True, False, False, True, False, False])
    gammas = grids.uniform_in_time(vdm.schedule, 5)
    z = last(editing.inpaint(vdm, x, mask, gammas, repeats=2, jump=2, generator=generator))
    painted = editing.to_data(vdm, z)
    assert torch.equal(painted[:, ~mask], x[:, ~mask])
    assert (painted != x)[:, mask].any()


MATRIX = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.5, -1.0]], dtype=torch.float64)


@pytest.mark.parametrize("rows", [1, 2])
def test_posterior_samples_are_exact_for_gaussian_data(rows, generator):
    """As many iterations as y has entries; 150 steps, whose own bias is below 0.07 spreads."""
    matrix, noise = MATRIX[:rows], 0.3
    vdm = correlated_vdm(MEAN, COVARIANCE)
    y = (matrix @ X).expand(3000, -1)
    measurement = Measurement(lambda x: x @ matrix.T, noise)
    gammas = grids.uniform_in_time(vdm.schedule, 150).detach()
    z = last(
        editing.posterior_samples(vdm, y, measurement, gammas, iterations=rows, generator=generator)
    )
    samples = editing.to_data(vdm, z)
    seen = matrix @ COVARIANCE @ matrix.T + noise**2 * torch.eye(rows, dtype=torch.float64)
    gain = COVARIANCE @ matrix.T @ torch.linalg.inv(seen)
    mean = MEAN + gain @ (y[0] - matrix @ MEAN)
    covariance = COVARIANCE - gain @ matrix @ COVARIANCE
    covariance = covariance + math.exp(-8.0) * torch.eye(3, dtype=torch.float64)
    assert (COVARIANCE.diagonal() > 1.2 * covariance.diagonal()).any()
    assert_moments(samples, mean, covariance, bias=0.07)


@pytest.mark.parametrize("gamma", [-3.0, 2.5])
def test_a_step_is_made_with_the_mean_of_x_given_z_and_y(gamma, generator):
    """Conditioned on (z, y) at once, where `_informed` takes one after the other."""
    vdm = correlated_vdm(MEAN, COVARIANCE)
    z = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    y = torch.randn(4, 2, dtype=torch.float64, generator=generator)
    measurement = Measurement(lambda x: x @ MATRIX.T, 0.3)
    gamma = torch.tensor(gamma, dtype=torch.float64)
    informed = tasks._informed(vdm, z, gamma, y, measurement, 2)
    both = torch.cat([process.alpha(gamma) * torch.eye(3, dtype=torch.float64), MATRIX])
    noise = torch.cat([torch.sigmoid(gamma).expand(3), torch.tensor([0.09, 0.09])]).double()
    seen = both @ COVARIANCE @ both.T + torch.diag(noise)
    off = torch.cat([z, y], 1) - both @ MEAN
    expected = MEAN + torch.linalg.solve(seen, off.T).T @ both @ COVARIANCE
    torch.testing.assert_close(informed, expected, rtol=1e-6, atol=1e-7)


def test_one_iteration_moves_along_the_gradient_of_the_residual(generator):
    vdm = correlated_vdm(MEAN, COVARIANCE)
    z = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    y = torch.randn(4, 2, dtype=torch.float64, generator=generator)
    gamma = torch.tensor(1.0, dtype=torch.float64)
    measurement = Measurement(lambda x: torch.tanh(x @ MATRIX.T), 0.3)
    informed = tasks._informed(vdm, z, gamma, y, measurement, 1)
    z.requires_grad_()
    x = vdm.denoise(z, gamma).x
    (gradient,) = torch.autograd.grad((y - measurement.function(x)).square().sum(), z)
    moved = informed - x.detach()
    cosine = torch.cosine_similarity(moved, -gradient)
    torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=1e-9, atol=0)


def test_conjugate_gradients_solve_and_stop_where_there_is_nothing_to_solve(generator):
    root = torch.randn(5, 4, 4, dtype=torch.float64, generator=generator)
    matrix = root @ root.mT + 0.1 * torch.eye(4, dtype=torch.float64)
    matrix[4] = -matrix[4]  # not positive: no step is taken
    right = torch.randn(5, 4, dtype=torch.float64, generator=generator)
    right[3] = 0
    solved = tasks._conjugate_gradients(lambda u: torch.einsum("bij,bj->bi", matrix, u), right, 12)
    expected = torch.linalg.solve(matrix, right)
    expected[4] = 0
    torch.testing.assert_close(solved, expected, rtol=1e-6, atol=1e-8)


def test_variations_keep_what_z_shows_of_x(generator):
    """x' given z_γ is normal, and so is z_γ given x: mean and variance of x' given x."""
    mean, std, x, gamma, n = 0.3, 0.5, 1.1, -1.0, 20_000
    vdm = exact_vdm(mean=mean, std=std, dimensions=1, gamma_min=-9.0, gamma_max=5.0)
    grid = editing.below(grids.uniform_in_time(vdm.schedule, 200).detach(), gamma)
    assert float(grid[0]) == gamma
    assert float(grid[1]) < gamma
    data = torch.full((n, 1), x, dtype=torch.float64)
    z = last(editing.variations(vdm, data, grid, generator=generator))
    alpha2, sigma2 = 1 / (1 + math.exp(gamma)), 1 / (1 + math.exp(-gamma))
    variance = alpha2 * std**2 + sigma2
    kept = alpha2 * std**2 / variance
    expected = mean + kept * (x - mean)
    from_z = std**2 * sigma2 / variance
    of_z = kept**2 * sigma2 / alpha2
    covariance = torch.tensor([[from_z + of_z]], dtype=torch.float64)
    assert_moments(
        editing.to_data(vdm, z), torch.tensor([expected], dtype=torch.float64), covariance, 0.03
    )


def test_encoding_follows_the_ode_and_decoding_brings_it_back(generator):
    mean, std = 0.3, 0.5
    vdm = exact_vdm(mean=mean, std=std)
    x = mean + std * torch.randn(6, 4, dtype=torch.float64, generator=generator)
    z = editing.encode(vdm, x, tolerance=1e-7)
    (a_0, a_1), (s_0, s_1) = (
        [math.sqrt(1 / (1 + math.exp(g))) for g in (-6.0, 4.0)],
        [1 / (1 + math.exp(-g)) for g in (-6.0, 4.0)],
    )
    stretch = math.sqrt((a_1**2 * std**2 + s_1) / (a_0**2 * std**2 + s_0))
    torch.testing.assert_close(z, a_1 * mean + stretch * a_0 * (x - mean), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(editing.decode(vdm, z, tolerance=1e-7), x, rtol=1e-6, atol=1e-6)


def test_discrete_data_come_back_from_the_round_trip_and_at_both_ends_of_a_way(generator):
    network = ExactDenoiser(0.1, 0.5, "velocity")
    vdm = VDM(network, FixedLinear(-9.0, 5.0), Discretized(17), (6,)).double()
    first, second = torch.randint(17, (2, 6, 6), generator=generator)
    way = list(
        editing.interpolate(
            vdm, first, second, [0.0, 0.5, 1.0], tolerance=1e-6, generator=generator
        )
    )
    for ours, data in ((way[0], first), (way[2], second)):
        assert torch.equal(ours, data)
    assert (way[1] != first).any()
    assert (way[1] != second).any()


def test_the_great_circle():
    a = torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    b = torch.tensor([[0.0, 1.0], [4.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    half = math.sqrt(0.5)
    expected = torch.tensor([[half, half], [3.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(editing.spherical(a, b, 0.5), expected)
    for share, end in ((0.0, a), (1.0, b)):
        torch.testing.assert_close(editing.spherical(a, b, share), end)
    third = editing.spherical(a[:1], b[:1], 1 / 3)
    torch.testing.assert_close(third, torch.tensor([[math.sqrt(0.75), 0.5]]).double())


def test_what_cannot_be_edited_is_said():
    vdm = exact_vdm()
    x = torch.zeros(1, 4, dtype=torch.float64)
    gammas = grids.uniform_in_time(vdm.schedule, 2).detach()
    mask = torch.ones(4, dtype=torch.bool)
    with pytest.raises(InputError, match=r"mask has shape \(3,\): it takes that of the data"):
        next(editing.inpaint(vdm, x, mask[:3], gammas))
    with pytest.raises(InputError, match="repeats = 0 and jump = 1"):
        next(editing.inpaint(vdm, x, mask, gammas, repeats=0))
    seen = Measurement(lambda x: x[:, :2], 0.1)
    with pytest.raises(InputError, match=r"y has shape \(1, 4\): .* \(batch, 2\)"):
        next(editing.posterior_samples(vdm, x, seen, gammas))
    with pytest.raises(InputError, match="iterations = 0"):
        next(editing.posterior_samples(vdm, x[:, :2], seen, gammas, iterations=0))
    with pytest.raises(InputError, match="sampler = 'euler': known are ancestral"):
        next(editing.variations(vdm, x, gammas, sampler="euler"))
    for gamma in (-6.0, 4.5):
        with pytest.raises(InputError, match=rf"gamma = {gamma}: the model's noise"):
            editing.below(gammas, gamma)
