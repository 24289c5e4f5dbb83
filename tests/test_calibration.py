"""Intervals hold the truth as often as they say; `benchmarks/calibration.py` repeats it for all."""

import numpy as np
import pytest
import torch
from calibration import bound, population, rows_of

from variational_diffusion import process
from variational_diffusion.likelihood import ContinuousBound, evaluate_rounds
from variational_diffusion.numerics import bits_per_dim, derived_seed, t_quantile

REPEATS = 100


@pytest.fixture(scope="module")
def of():
    return population(near=40)


@pytest.mark.parametrize("in_order", [False, True])
def test_the_interval_of_evaluate_holds_the_population_s_bound_in_95_percent(of, in_order):
    """Of new examples and draws each time; sorted, those of the rare kind stand together.

    90 to 99.5 % of 200: an honest interval fails it in 0.4 % (binomial), seeded. With neighbours
    that share their times, it holds the truth in 86.5 % where the examples are sorted.
    """
    truth = bits_per_dim(bound(of), of.model.dimensions).numpy() @ of.shares
    inside = []
    for repeat in range(REPEATS):
        drawn = of.draw(100, np.random.default_rng([7, repeat]), in_order=in_order)
        seed = derived_seed(7, repeat)
        found = evaluate_rounds(
            of.model, of.split(drawn), ContinuousBound(2), rounds=2, seed=seed
        ).summary
        low, high = found.interval
        inside.append(low <= truth <= high)
        assert found.draws_error <= found.standard_error
    assert 0.90 <= np.mean(inside) <= 0.995


def test_the_truth_is_the_entropy_and_what_the_ends_lose(of):
    """With the exact denoiser: H(x) + KL(q(z_1) ‖ N(0, I)) + E KL(q(x|z_0) ‖ p(x|z_0))."""
    vdm = of.model
    gamma_0, gamma_1 = vdm.schedule.end_points
    shares = torch.from_numpy(of.shares)
    rows, numbers = rows_of(of)
    weights = (shares / numbers.bincount())[numbers]
    generator = torch.Generator().manual_seed(1)
    z_0, z_1 = (
        process.q_t(vdm.encode(rows), gamma).sample(generator) for gamma in (gamma_0, gamma_1)
    )
    # far apart for their noise: q(x|z_0) is certain, so that the second is −log p(x|z_0)
    last = -(weights @ vdm.decoder.log_prob(rows, z_0, gamma_0))
    normal = torch.distributions.Normal(torch.tensor(0.0).double(), 1.0)
    first = weights @ (vdm.network.log_prob(z_1, gamma_1) - normal.log_prob(z_1).sum(1))
    known = -(shares @ shares.log()) + first + last
    # the standard error of the truth is 0.005 nats and of the ends less: four of them
    assert float(shares @ bound(of)) == pytest.approx(float(known), abs=0.02)


def test_few_examples_have_honest_errors(of):
    """The draws' error of two rounds, by Student's t with its degrees, and the whole interval.

    88 % of 100 or more; sound ones of 95 % fail either in 0.3 %, seeded. With the degrees of normal
    draws, n(R − 1), the first holds in 79; without a correction for skewness the second in 82.
    """
    truth = bits_per_dim(bound(of), of.model.dimensions).numpy()
    of_draws, inside = [], []
    for repeat in range(REPEATS):
        drawn = of.draw(12, np.random.default_rng([8, repeat]))
        seed = derived_seed(8, repeat)
        found = evaluate_rounds(
            of.model, of.split(drawn), ContinuousBound(2), rounds=2, seed=seed
        ).summary
        low, high = found.interval
        inside.append(low <= truth @ of.shares <= high)
        far = abs(found.bits_per_dim - truth[drawn].mean())
        of_draws.append(far <= t_quantile(found.degrees) * found.draws_error)
    assert np.mean(of_draws) >= 0.88
    assert np.mean(inside) >= 0.88
