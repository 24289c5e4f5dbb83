"""The forward process: marginals, composition, Bayes' rule, and digits at the extremes."""

import itertools

import numpy as np
import pytest
import torch

from variational_diffusion import process
from variational_diffusion.numerics import Normal

GAMMAS = torch.tensor([-30.0, -13.3, -13.2, -2.0, 0.0, 1.5, 5.0, 30.0], dtype=torch.float64)


def test_alpha_and_sigma_preserve_variance_and_give_the_snr():
    gamma = torch.linspace(-40, 40, 161, dtype=torch.float64)
    alpha, sigma = process.alpha(gamma), process.sigma(gamma)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(gamma))
    torch.testing.assert_close((alpha / sigma) ** 2, process.snr(gamma), rtol=1e-12, atol=0)
    torch.testing.assert_close(process.snr(gamma), torch.exp(-gamma))


def test_sigma_keeps_its_digits_in_float32():
    single = process.sigma(torch.tensor(-13.3)).double()
    double = process.sigma(torch.tensor(-13.3, dtype=torch.float32).double())
    assert abs(single / double - 1) < 1e-6


def test_alpha_and_sigma_are_those_of_the_paper_in_plain_numpy():
    gamma = np.linspace(-13.3, 5, 50)
    got = torch.from_numpy(gamma)
    np.testing.assert_allclose(process.alpha(got), np.sqrt(1 / (1 + np.exp(gamma))), rtol=1e-12)
    np.testing.assert_allclose(process.sigma(got), np.sqrt(1 / (1 + np.exp(-gamma))), rtol=1e-12)


def test_a_chain_of_steps_is_the_marginal():
    x = torch.tensor([[0.7, -1.2]], dtype=torch.float64)
    q = process.q_t(x, GAMMAS[:1])
    for gamma_s, gamma_t in itertools.pairwise(GAMMAS):
        step = process.q_t_given_s(torch.ones_like(x), gamma_s, gamma_t)
        q = Normal(step.mean * q.mean, (step.mean**2 * q.std**2 + step.std**2).sqrt())
        marginal = process.q_t(x, gamma_t)
        torch.testing.assert_close(q.mean, marginal.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(q.std.expand_as(x), marginal.std.expand_as(x))


@pytest.mark.parametrize("s", range(7))
def test_the_posterior_is_bayes_rule(s, generator):
    """q(z_s|z_t, x) ∝ q(z_t|z_s) q(z_s|x): precisions add, and so do precision-weighted means."""
    x, z_t = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator)
    gamma_s, gamma_t = GAMMAS[s], GAMMAS[s + 1]
    given_x = process.q_t(x, gamma_s)
    forward = process.q_t_given_s(torch.ones_like(x), gamma_s, gamma_t)
    precision = 1 / given_x.std**2 + forward.mean**2 / forward.std**2
    mean = (given_x.mean / given_x.std**2 + forward.mean * z_t / forward.std**2) / precision
    posterior = process.q_s_given_t(z_t, x, gamma_s, gamma_t)
    torch.testing.assert_close(posterior.mean, mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        posterior.std.expand_as(x), precision.rsqrt().expand_as(x), rtol=1e-9, atol=0
    )


def test_everything_is_finite_at_the_extremes():
    x = torch.tensor([[1.0, -1.0]])
    for gamma_s, gamma_t in ((-40.0, -39.9), (-40.0, 40.0), (39.9, 40.0)):
        s, t = torch.tensor(gamma_s), torch.tensor(gamma_t)
        for normal in (
            process.q_t(x, t),
            process.q_t_given_s(x, s, t),
            process.q_s_given_t(x, x, s, t),
        ):
            assert torch.isfinite(normal.mean).all()
            assert (normal.std > 0).all()


def test_a_gamma_for_each_example_is_a_gamma_for_each_example():
    x = torch.ones(3, 2, 2)
    gammas = torch.tensor([-3.0, 0.0, 2.0])
    together = process.q_t(x, gammas)
    for i, gamma in enumerate(gammas):
        alone = process.q_t(x[i : i + 1], gamma)
        torch.testing.assert_close(together.mean[i], alone.mean[0])
    assert together.std.shape == (3, 1, 1)
