"""Samplers, on Gaussian data, where every moment of the chain is known."""

import math

import pytest
import torch

from known_answers import ancestral_moments, exact_vdm
from variational_diffusion.errors import InputError
from variational_diffusion.sampling import SAMPLERS

MEAN, STD = 0.3, 0.5


MOMENTS = {"ancestral": ancestral_moments}
"""Mean and variance of the last z of each sampler, given its grid and the data's."""


@pytest.mark.parametrize("prediction", ["noise", "velocity"])
@pytest.mark.parametrize("steps", [1, 3, 20])
@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_have_the_moments_of_their_chain(name, steps, prediction, generator):
    n = 100_000
    vdm = exact_vdm(mean=MEAN, std=STD, dimensions=1, prediction=prediction)
    *_, (gamma_0, z_0) = vdm.trajectory(n, steps=steps, sampler=name, generator=generator)
    assert torch.equal(gamma_0, vdm.schedule.gamma_0)
    gammas = torch.linspace(4.0, -6.0, steps + 1).double().tolist()
    mean, variance = MOMENTS[name](gammas, MEAN, STD)
    # Two-sided at 5 standard errors: false alarm 1e-6 for each of the six cases
    assert abs(z_0.mean() - mean) < 5 * math.sqrt(variance / n)
    assert abs(z_0.var() / variance - 1) < 5 * math.sqrt(2 / n)


def test_many_steps_give_the_data_distribution(generator):
    n = 50_000
    vdm = exact_vdm(mean=MEAN, std=STD, dimensions=1, gamma_min=-10.0, gamma_max=8.0)
    x = vdm.sample(n, steps=400, generator=generator)
    _, variance = ancestral_moments(torch.linspace(8, -10, 401).double().tolist(), MEAN, STD)
    assert variance == pytest.approx(STD**2, rel=0.03)
    assert abs(x.mean() - MEAN) < 5 * STD / math.sqrt(n) + 0.002
    assert abs(x.var() / variance - 1) < 5 * math.sqrt(2 / n) + 0.001


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_last_z_is_divided_by_alpha_and_decoded_by_a_draw(name, generator):
    """Ending at γ_0 = −1, where alpha_0² = 0.73 and p(x|z_0) has the variance e^γ_0 = 0.37."""
    n = 100_000
    vdm = exact_vdm(mean=MEAN, std=STD, dimensions=1, gamma_min=-1.0)
    x = vdm.sample(n, steps=3, sampler=name, generator=generator)
    gammas = torch.linspace(4.0, -1.0, 4).double().tolist()
    mean, variance = MOMENTS[name](gammas, MEAN, STD)
    alpha_2 = 1 / (1 + math.exp(-1))
    mean, variance = mean / math.sqrt(alpha_2), variance / alpha_2 + math.exp(-1)
    # Two-sided at 5 standard errors: false alarm 1e-6
    assert abs(x.mean() - mean) < 5 * math.sqrt(variance / n)
    assert abs(x.var() / variance - 1) < 5 * math.sqrt(2 / n)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_same_generator_gives_the_same_samples(name):
    vdm = exact_vdm()
    before = torch.random.get_rng_state()
    first, second, other = (
        vdm.sample(3, steps=5, sampler=name, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_trajectory_starts_at_the_prior_and_yields_every_step(name, generator):
    vdm = exact_vdm()
    path = list(vdm.trajectory(2, steps=7, sampler=name, generator=generator))
    assert len(path) == 8
    gammas = torch.stack([gamma for gamma, _ in path])
    assert torch.equal(gammas[[0, -1]], vdm.schedule.end_points.flip(0))
    assert (gammas.diff() < 0).all()
    start = torch.Generator().manual_seed(20210701)
    assert torch.equal(path[0][1], torch.randn(2, 4, dtype=torch.float64, generator=start))


def test_what_cannot_be_sampled_is_said():
    vdm = exact_vdm()
    with pytest.raises(InputError, match="steps = 0"):
        vdm.sample(1, steps=0)
    with pytest.raises(InputError, match=r"sampler = 'euler': known are ancestral"):
        vdm.sample(1, steps=1, sampler="euler")
