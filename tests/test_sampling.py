"""Samplers: their moments on Gaussian data in closed form, their orders on a mixture."""

import dataclasses
import importlib
import itertools
import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from torch import nn

from known_answers import ancestral_moments, exact_vdm
from test_flow import mixture_vdm
from variational_diffusion import flow, grids, process
from variational_diffusion.decoders import UNSEEN, Discretized, Gaussian
from variational_diffusion.errors import InputError
from variational_diffusion.grids import NoiseErrors
from variational_diffusion.model import VDM
from variational_diffusion.numerics import expand
from variational_diffusion.presets import noise_range
from variational_diffusion.sampling import SAMPLERS, Clipped, Multistep
from variational_diffusion.sampling.multistep import weights
from variational_diffusion.schedules import FixedLinear

MEAN, STD = 0.3, 0.5


class Affine:
    """The published updates on Gaussian data, where all that happens to z is affine.

    A z is the vector of its coefficients: of one, of z_1, and of the noise of every step, all
    N(0, 1) and independent. So its mean is the first, and its variance the sum of the others'
    squares.
    """

    def __init__(self, gammas):
        self.gammas = gammas
        self.one, self.start, *self.fresh = np.eye(len(gammas) + 1)
        self.alphas = [1 / math.sqrt(1 + math.exp(g)) for g in gammas]
        self.sigmas = [1 / math.sqrt(1 + math.exp(-g)) for g in gammas]
        self.h = [0.5 * (t - s) for t, s in itertools.pairwise(gammas)]

    def data(self, z, i):
        """Return x̂, as a vector too."""
        alpha, sigma = self.alphas[i], self.sigmas[i]
        shrink = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        return MEAN * self.one + shrink * (z - alpha * MEAN * self.one)

    def noise(self, z, i):
        return (z - self.alphas[i] * self.data(z, i)) / self.sigmas[i]

    def moments(self, z):
        return z[0], float(np.square(z[1:]).sum())

    def exponential(self, z, i, x, eta=0.0):
        """DPM-Solver++ (2022), with the polynomial x = x_0 + x_1 r + x_2 r² in r = τ/h."""
        kept = math.sqrt(1 - eta**2 * (1 - math.exp(-2 * self.h[i])))
        h = self.h[i] - math.log(kept)
        phi_1 = 1 - math.exp(-h)
        phi_2 = 1 - phi_1 / h
        phi_3 = 1 - 2 * phi_2 / h
        moved = sum(phi * part for phi, part in zip((phi_1, phi_2, phi_3), x, strict=False))
        ratio = self.sigmas[i + 1] / self.sigmas[i]
        spread = eta * self.sigmas[i + 1] * math.sqrt(1 - math.exp(-2 * self.h[i]))
        return ratio * kept * z + self.alphas[i + 1] * moved + spread * self.fresh[i]

    def multistep(self, order, eta=0.0):
        z, seen = self.start, []
        for i, h in enumerate(self.h):
            seen.insert(0, self.data(z, i))
            if order == 1 or i == 0:
                x = seen[:1]
            elif order == 2 or i == 1:
                x = [seen[0], (seen[0] - seen[1]) * h / self.h[i - 1]]
            else:
                r_0, r_1 = self.h[i - 1] / h, self.h[i - 2] / h
                first, second = (seen[0] - seen[1]) / r_0, (seen[1] - seen[2]) / r_1
                curve = (first - second) / (r_0 + r_1)
                x = [seen[0], first + r_0 * curve, curve]
            z = self.exponential(z, i, x, eta)
        return z

    def ddim(self, eta):
        """DDIM (2021), eq. 12 and 16."""
        z = self.start
        for i, h in enumerate(self.h):
            spread = eta * self.sigmas[i + 1] * math.sqrt(1 - math.exp(-2 * h))
            direction = math.sqrt(self.sigmas[i + 1] ** 2 - spread**2) * self.noise(z, i)
            z = self.alphas[i + 1] * self.data(z, i) + direction + spread * self.fresh[i]
        return z

    def heun(self):
        z = self.start
        for i in range(len(self.h)):
            y, k = z / self.alphas[i], self.sigmas[i] / self.alphas[i]
            k_s = self.sigmas[i + 1] / self.alphas[i + 1]
            slope = self.noise(z, i)
            ahead = self.noise(self.alphas[i + 1] * (y + (k_s - k) * slope), i + 1)
            z = self.alphas[i + 1] * (y + (k_s - k) * (slope + ahead) / 2)
        return z

    def unipc(self, order=3):
        """UniPC (2023), algorithms 5 and 6, its linear system solved at every step."""
        z, seen, places, before = self.start, [], [], None
        for i in range(len(self.h)):
            x = self.data(z, i)
            if before is not None:
                z = self.solved(before, i - 1, [x, *seen], [self.h[i - 1], *places])
            seen = [x, *seen][:order]
            places = [0.0, *(place - self.h[i - 1] for place in places)][:order]
            before = z
            z = self.solved(z, i, seen, places)
        return z

    def solved(self, z, i, x, places):
        """Fit the polynomial through x̂ at λ_t + places and integrate it."""
        degree = np.arange(len(places))
        powers = (np.array(places)[:, None] / self.h[i]) ** degree
        return self.exponential_of_any(z, i, np.linalg.solve(powers, np.stack(x)))

    def exponential_of_any(self, z, i, coefficients):
        r = (np.arange(20_000) + 0.5) / 20_000
        decay = self.h[i] * np.exp(self.h[i] * (r - 1))
        integrals = [(decay * r**k).mean() for k in range(len(coefficients))]
        ratio = self.sigmas[i + 1] / self.sigmas[i]
        return ratio * z + self.alphas[i + 1] * (np.array(integrals) @ coefficients)


def flow_moments(gammas):
    """Mean and variance at the end of the exact flow from N(0, 1): the marginal is scaled."""
    (a_1, s_1), (a_0, s_0) = (
        (1 / math.sqrt(1 + math.exp(g)), 1 / math.sqrt(1 + math.exp(-g)))
        for g in (gammas[0], gammas[-1])
    )
    scale = math.sqrt((a_0**2 * STD**2 + s_0**2) / (a_1**2 * STD**2 + s_1**2))
    return a_0 * MEAN - scale * a_1 * MEAN, scale**2


def of(method, *arguments, **options):
    """Return mean and variance of the last z as a function of the grid."""

    def moments(gammas):
        affine = Affine(gammas)
        return affine.moments(method(affine, *arguments, **options))

    return moments


MOMENTS = {
    "ancestral": lambda gammas: ancestral_moments(gammas, MEAN, STD),
    "ddim": of(Affine.ddim, eta=0.0),
    "dpmpp-2m": of(Affine.multistep, 2),
    "dpmpp-3m": of(Affine.multistep, 3),
    "sde-dpmpp-2m": of(Affine.multistep, 2, eta=1.0),
    "unipc": of(Affine.unipc),
    "heun": of(Affine.heun),
    "adaptive": flow_moments,
}
"""Mean and variance of the last z of each sampler, given its grid."""

ERROR = {"adaptive": 1e-3, "unipc": 1e-8}
"""What a sampler's result differs from its closed form by, where that is not rounding."""

DETERMINISTIC = ["ddim", "dpmpp-2m", "dpmpp-3m", "unipc", "heun", "adaptive"]

GRID = torch.linspace(4.0, -6.0, 8, dtype=torch.float64) + 0.2 * torch.tensor(
    [0, 1, -1, 1, 1, -1, 1, 0], dtype=torch.float64
)
"""Steps of several lengths, none of them twice that of the one before."""


def last(vdm, sampler, z, gammas, generator=None):
    *_, z_0 = sampler(vdm, z, gammas, generator=generator)
    return z_0


@pytest.mark.parametrize("prediction", ["noise", "velocity"])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_deterministic_sampler_is_its_closed_form(name, prediction):
    """From z_1 = 0 the mean comes out, from z_1 = 1 the standard deviation more."""
    vdm = exact_vdm(mean=MEAN, std=STD, dimensions=1, prediction=prediction)
    z = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    at_0, at_1 = last(vdm, SAMPLERS[name], z, GRID).flatten().tolist()
    mean, variance = MOMENTS[name](GRID.tolist())
    assert at_0 == pytest.approx(mean, abs=ERROR.get(name, 1e-10))
    assert abs(at_1 - at_0) == pytest.approx(math.sqrt(variance), abs=ERROR.get(name, 1e-10))


@pytest.mark.parametrize("prediction", ["noise", "velocity"])
@pytest.mark.parametrize("steps", [1, 3, 20])
@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_have_the_moments_of_their_chain(name, steps, prediction, generator):
    n = 10_000 if name == "adaptive" else 100_000
    vdm = exact_vdm(mean=MEAN, std=STD, dimensions=1, prediction=prediction)
    *_, (gamma_0, z_0) = vdm.trajectory(n, steps=steps, sampler=name, generator=generator)
    assert torch.equal(gamma_0, vdm.schedule.gamma_0)
    gammas = torch.linspace(4.0, -6.0, steps + 1).double().tolist()
    mean, variance = MOMENTS[name](gammas)
    # Two-sided at 5 standard errors: false alarm 1e-6 for each of 96
    more = ERROR.get(name, 0.0)
    assert abs(z_0.mean() - mean) < 5 * math.sqrt(variance / n) + more
    assert abs(z_0.var() / variance - 1) < 5 * math.sqrt(2 / n) + more


@pytest.mark.parametrize("eta", [0.3, 0.8, 1.0])
def test_ddim_renews_as_much_noise_as_it_is_told(eta, generator):
    vdm = exact_vdm(mean=MEAN, std=STD, dimensions=1)
    z = torch.randn(100_000, 1, dtype=torch.float64, generator=generator)
    z_0 = last(vdm, Multistep(1, eta), z, GRID, generator)
    mean, variance = of(Affine.ddim, eta=eta)(GRID.tolist())
    if eta == 1:
        assert (mean, variance) == pytest.approx(MOMENTS["ancestral"](GRID.tolist()))
    # Two-sided at 5 standard errors: false alarm 1e-6 for each of six
    assert abs(z_0.mean() - mean) < 5 * math.sqrt(variance / 100_000)
    assert abs(z_0.var() / variance - 1) < 5 * math.sqrt(2 / 100_000)


ORDERS = {
    "ddim": (SAMPLERS["ddim"], 1),
    "dpmpp-2m": (SAMPLERS["dpmpp-2m"], 2),
    "dpmpp-3m": (SAMPLERS["dpmpp-3m"], 3),
    "unipc-1": (Multistep(1, corrected=True), 2),
    "unipc-2": (Multistep(2, corrected=True), 3),
    "unipc": (SAMPLERS["unipc"], 4),
    "heun": (SAMPLERS["heun"], 2),
}


@pytest.fixture(scope="module")
def solved():
    """A mixture's model, draws of the prior, and where the flow takes them."""
    vdm = mixture_vdm(gamma_max=14.0)
    start = torch.Generator().manual_seed(20210701)
    z = torch.randn(20, 2, dtype=torch.float64, generator=start)
    gamma_0, gamma_1 = vdm.schedule.end_points
    return vdm, z, flow.solve(vdm, z, gamma_1, gamma_0, tolerance=1e-10).z


@pytest.mark.parametrize("name", ORDERS)
def test_the_order_of_a_sampler_is_what_is_claimed(name, solved):
    """The slope of log error over log step, on a grid whose steps change in length."""
    sampler, order = ORDERS[name]
    vdm, z, exact = solved
    counts = np.array([32, 45, 64, 90, 128])
    errors = []
    for steps in counts.tolist():
        u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        gammas = torch.lerp(*vdm.schedule.end_points.flip(0), u + 0.1 * torch.sin(math.pi * u))
        errors.append(float((last(vdm, sampler, z, gammas) - exact).square().mean().sqrt()))
    slope, _ = np.polyfit(np.log(1 / counts), np.log(errors), 1)
    assert order - 0.25 < slope < order + 0.6


@pytest.mark.parametrize("order", [1, 2])
def test_the_weak_order_with_fresh_noise_is_what_is_claimed(order):
    """The variance at the end, of Gaussian data: exactly, by the coefficients of every draw.

    The exact chain draws from q(z_0|z_1), and z_1 from N(0, 1) instead of from the marginal.
    """
    sampler, counts, errors = Multistep(order, eta=1.0), np.array([32, 45, 64, 90, 128]), []
    for steps in counts.tolist():
        u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        gammas = 4 - 10 * (u + 0.1 * torch.sin(math.pi * u))
        affine = Affine(gammas.tolist())
        z, seen = affine.start, []
        for i, step in enumerate(sampler.steps(gammas)):
            seen = [affine.data(z, i), *seen][:order]
            moved = sum(weight * x for weight, x in zip(step.predict, seen, strict=True))
            z = step.keep * z + step.fresh * affine.fresh[i] + moved
        alpha, sigma = np.array(affine.alphas), np.array(affine.sigmas)
        total = alpha**2 * STD**2 + sigma**2
        carried = alpha[0] / alpha[-1] * total[-1] / total[0]  # Cov(z_0, z_1) / Var(z_1)
        exact = total[-1] + carried**2 * (1 - total[0])
        errors.append(abs(affine.moments(z)[1] - exact))
    slope, _ = np.polyfit(np.log(1 / counts), np.log(errors), 1)
    assert order - 0.25 < slope < order + 0.25


def test_many_steps_give_the_data_distribution(generator):
    n = 50_000
    vdm = exact_vdm(mean=MEAN, std=STD, dimensions=1, gamma_min=-10.0, gamma_max=8.0)
    x = vdm.sample(n, steps=400, generator=generator)
    _, variance = ancestral_moments(torch.linspace(8, -10, 401).double().tolist(), MEAN, STD)
    assert variance == pytest.approx(STD**2, rel=0.03)
    assert abs(x.mean() - MEAN) < 5 * STD / math.sqrt(n) + 0.002
    assert abs(x.var() / variance - 1) < 5 * math.sqrt(2 / n) + 0.001


class Scaled(nn.Module):
    def forward(self, z, gamma, conditioning=None):
        return 0.3 * z


@pytest.mark.parametrize(
    ("shape", "levels", "stop", "name"),
    [
        ((1, 4, 4), 256, 2 * math.log(2 * 3 / 256), "sde-dpmpp-2m"),
        ((1, 4, 4), 65_536, 2 * math.log(2 * 3 / 256), "sde-dpmpp-2m"),
        ((3, 2, 2), 86, 2 * math.log(2 * 3 / 256), "sde-dpmpp-2m"),
        ((3, 2, 2), 85, None, "sde-dpmpp-2m"),
        ((1, 4, 4), 17, None, "sde-dpmpp-2m"),
        ((1, 4, 4), 2, None, "sde-dpmpp-2m"),
        ((6,), 256, None, "unipc"),
        ((2, 3), 17, None, "unipc"),
    ],
)
def test_images_and_vectors_have_their_defaults(shape, levels, stop, name):
    """The last step begins at three levels of 256, wherever a level is finer than that."""
    vdm = VDM(Scaled(), FixedLinear(*noise_range(levels)), Discretized(levels), shape)
    assert vdm.stop_early(20) == stop
    seeds = [torch.Generator().manual_seed(1) for _ in range(3)]
    chosen = vdm.sample(2, generator=seeds[0])
    gammas = grids.step_grid("gamma", vdm.schedule, 20, stop=stop)
    assert torch.equal(vdm.sample(2, gammas=gammas, sampler=name, generator=seeds[1]), chosen)
    other = {"sde-dpmpp-2m": "unipc", "unipc": "sde-dpmpp-2m"}[name]
    assert not torch.equal(vdm.sample(2, sampler=other, generator=seeds[2]), chosen)


def test_noise_is_a_share_of_the_range_whatever_the_levels():
    """The range of the bins is (−1, 1), so noise of std e^{γ/2} is half of that of it."""
    for levels in (2, 256):
        decoder = Discretized(levels)
        edges = decoder.encode(torch.tensor([[0, levels - 1]])) + torch.tensor([-1, 1]) / levels
        width = float(edges.diff())
        for share in (0.001, UNSEEN, 0.5):
            gamma = decoder.gamma_at(share)
            assert math.exp(0.5 * gamma) / width == pytest.approx(share)
            assert decoder.noise_at(gamma) == pytest.approx(share)


def test_the_last_step_begins_inside_the_range_of_the_noise():
    shape, decoder = (1, 2, 2), Discretized(256)
    for low, high in ((-7.0, 5.0), (-13.3, -8.0)):
        assert VDM(Scaled(), FixedLinear(low, high), decoder, shape).stop_early(20) is None
    vdm = VDM(Scaled(), FixedLinear(), decoder, shape)
    assert vdm.stop_early(1) is None
    assert vdm.stop_early(2) == decoder.gamma_at(UNSEEN)
    assert VDM(Scaled(), FixedLinear(), Gaussian(), shape).stop_early(20) is None


@pytest.fixture(scope="module")
def known_patterns():
    """The benchmark of samples of known patterns, by their exact denoiser."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
        yield importlib.import_module("patterns")


@pytest.mark.parametrize("levels", [2, 3, 4, 8, 17, 64, 86, 256, 65_536, None])
@pytest.mark.parametrize("kind", ["dot", "smooth"])
def test_default_steps_find_known_patterns_as_well_as_steps_to_the_end(
    kind, levels, known_patterns
):
    """At least 0.97 of the share of samples that are a pattern (benchmarks/patterns.py).

    The two shares have a standard error of 0.01, so at a ratio of one a false alarm has a chance of
    0.02 where the grids differ, for each of six; where they do not, the shares are the same. Three
    levels of noise whatever the levels fall to 0.00 to 0.15 below 8 levels.
    """
    images = known_patterns.patterns(kind, levels)[:40, None]
    vdm = known_patterns.known(images, levels)
    whole = grids.uniform_in_gamma(vdm.schedule, 20)
    end = known_patterns.share(vdm, images, whole, 1000)
    default = known_patterns.share(vdm, images, vdm.sampling_grid(20), 1000)
    assert end > 0.7
    assert default >= 0.97 * end


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_last_z_is_divided_by_alpha_and_decoded_by_a_draw(name, generator):
    """Ending at γ_0 = −1, where alpha_0² = 0.73 and p(x|z_0) has the variance e^γ_0 = 0.37."""
    n = 100_000
    vdm = exact_vdm(mean=MEAN, std=STD, dimensions=1, gamma_min=-1.0)
    x = vdm.sample(n, steps=3, sampler=name, generator=generator)
    gammas = torch.linspace(4.0, -1.0, 4).double().tolist()
    mean, variance = MOMENTS[name](gammas)
    alpha_2 = 1 / (1 + math.exp(-1))
    mean, variance = mean / math.sqrt(alpha_2), variance / alpha_2 + math.exp(-1)
    # Two-sided at 5 standard errors: false alarm 1e-6
    assert abs(x.mean() - mean) < 5 * math.sqrt(variance / n)
    assert abs(x.var() / variance - 1) < 5 * math.sqrt(2 / n)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_same_generator_gives_the_same_samples(name):
    vdm = exact_vdm(dimensions=2)
    before = torch.random.get_rng_state()
    first, second, other = (
        vdm.sample(3, steps=5, sampler=name, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_batch_is_what_its_examples_are_alone(name, solved):
    vdm, z, _ = solved
    z = z[:4]
    gammas = grids.uniform_in_gamma(vdm.schedule, 4)
    together = last(vdm, SAMPLERS[name], z, gammas)
    alone = torch.cat([last(vdm, SAMPLERS[name], part, gammas) for part in z.split(1)])
    limit = 1e-2 if name == "adaptive" else 1e-13
    torch.testing.assert_close(together, alone, rtol=0, atol=limit)
    others = torch.Generator().manual_seed(3)
    assert torch.equal(last(vdm, SAMPLERS[name], z, gammas, others), together)


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


@pytest.mark.parametrize("sampler", [Multistep(2), Multistep(3, corrected=True)])
def test_a_step_much_longer_than_the_last_is_not_extrapolated(sampler):
    gammas = torch.tensor([4.0, 3.0, 2.0, 1.0, -1.5, -3.5], dtype=torch.float64)
    assert [len(step.predict) for step in sampler.steps(gammas)] == (
        [1, 2, 2, 1, 2] if sampler.order == 2 else [1, 2, 3, 1, 3]
    )


def test_weights_integrate_polynomials_exactly():
    """Of degree two, against a fine sum; and the published weights of DPM-Solver++."""
    r = (np.arange(100_000) + 0.5) / 100_000
    for span in (0.01, 0.7, 9.0):
        found = np.array(weights([1.0, 0.0, -0.4], span))
        decay = span * np.exp(span * (r - 1))
        for k in range(3):
            exact = (decay * r**k).mean()
            assert found @ np.array([1.0, 0.0, -0.4]) ** k == pytest.approx(exact, rel=1e-8)
        first, second = weights([0.0, -0.5], span)
        phi_1, phi_2 = -math.expm1(-span), 1 + math.expm1(-span) / span
        assert (first, second) == pytest.approx((phi_1 + phi_2 / 0.5, -phi_2 / 0.5))


def exact_step(lambdas, i, order, eta, corrected):
    """The coefficients of a step by their definition, in 120 digits."""
    mp = mpmath.mp
    here, there = lambdas[i], lambdas[i + 1]
    h = there - here

    def alpha(x):
        return mp.sqrt(1 / (1 + mp.exp(-2 * x)))

    def sigma(x):
        return alpha(-x)

    kept = mp.sqrt(1 - eta**2 * (1 - mp.exp(-2 * h)))
    span = h - mp.log(kept)
    moments = [span / (k + 1) * mp.hyp1f1(1, k + 2, -span) for k in range(order + 1)]

    def weighted(places):
        """Lagrange's polynomials, integrated."""
        found = []
        for j, place in enumerate(places):
            polynomial, scale = [mp.mpf(1)], mp.mpf(1)
            for m, other in enumerate(places):
                if m != j:
                    up = [mp.mpf(0), *polynomial]
                    polynomial = [a - other * b for a, b in zip(up, [*polynomial, 0], strict=True)]
                    scale *= place - other
            total = sum(c * m for c, m in zip(polynomial, moments, strict=False))
            found.append(alpha(there) * total / scale)
        return found

    places = [(lambdas[i - j] - here) / h for j in range(order)]
    fresh = eta * sigma(there) * mp.sqrt(1 - mp.exp(-2 * h))
    correct = weighted([mp.mpf(1), *places]) if corrected else None
    return sigma(there) / sigma(here) * kept, fresh, weighted(places), correct


EXTREME = [
    ([8.0, -30.0], "one step over all there is"),
    ([60.0, -60.0], "further than a float32 can hold"),
    ([40.0, 39.0, -1.0, -41.0, -42.0, -42.5], "long and short ones"),
    ([5.0, 1.0, -13.3], "two"),
    ([4.0, 4.0 - 1e-4, 4.0 - 2e-4, 4.0 - 3e-4, 4.0 - 4e-4], "very short ones"),
    ([2.0, -30.0, -30.0 - 1e-3, -30.0 - 2e-3, -30.0 - 4e-3], "short after long"),
]


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.999, 1.0])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("gammas", [grid for grid, _ in EXTREME], ids=[name for _, name in EXTREME])
def test_coefficients_are_exact_however_long_the_steps(gammas, order, eta):
    sampler = Multistep(order, eta, corrected=True)
    found = sampler.steps(torch.tensor(gammas, dtype=torch.float64))
    with mpmath.workdps(120):
        lambdas = [-mpmath.mpf(gamma) / 2 for gamma in gammas]
        for i, step in enumerate(found):
            expected = exact_step(lambdas, i, len(step.predict), mpmath.mpf(eta), corrected=True)
            for value, exact in zip(
                (step.keep, step.fresh, *step.predict, *step.correct),
                (*expected[:2], *expected[2], *expected[3]),
                strict=True,
            ):
                assert value == pytest.approx(float(exact), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_from_noise_to_data(name, dtype, generator):
    """x̂ of pure noise is the mean of the data, so that is where one long step ends."""
    vdm = exact_vdm(mean=MEAN, std=STD, dimensions=1, gamma_min=-30.0, gamma_max=8.0).to(dtype)
    x = vdm.sample(500, steps=1, sampler=name, generator=generator)
    assert x.isfinite().all()
    if name in {"ddim", "dpmpp-2m", "dpmpp-3m", "sde-dpmpp-2m", "unipc", "ancestral"}:
        alpha_1 = 1 / math.sqrt(1 + math.exp(8.0))
        spread = alpha_1 * STD**2 / (alpha_1**2 * STD**2 + 1)  # of x̂, by z_1
        assert (x - MEAN).abs().max() < 5 * spread


@pytest.mark.parametrize("gammas", [[4.0, 4.0, -6.0], [-6.0, 4.0], [4.0, math.nan, -6.0]])
@pytest.mark.parametrize("name", ["ancestral", "unipc"])
def test_a_grid_falls(name, gammas):
    with pytest.raises(InputError, match=r"they do not fall; give a grid from γ_1 down to γ_0"):
        exact_vdm().sample(2, gammas=torch.tensor(gammas, dtype=torch.float64), sampler=name)


class Beyond(nn.Module):
    """x̂ = z/alpha + 1 whatever γ, as noise or as velocity: values that leave the range."""

    def __init__(self, prediction):
        super().__init__()
        self.prediction = prediction

    def forward(self, z, gamma, conditioning=None):
        alpha, sigma = (expand(of(gamma), z) for of in (process.alpha, process.sigma))
        x = z / alpha + 1
        return (z - alpha * x) / sigma if self.prediction == "noise" else (alpha * z - x) / sigma


@pytest.mark.parametrize("prediction", ["noise", "velocity"])
def test_clipping_keeps_x_in_range_and_its_noise_fits(prediction):
    vdm = VDM(Beyond(prediction), FixedLinear(-6.0, 4.0), Discretized(10), (4,), prediction)
    vdm = vdm.double()
    gamma = torch.tensor(1.0, dtype=torch.float64)
    x = torch.tensor([[-3.0, -0.5, 0.25, 0.5], [-0.5, 0.0, 0.25, 0.75]], dtype=torch.float64)
    z = process.alpha(gamma) * (x - 1)
    torch.testing.assert_close(vdm.denoise(z, gamma).x, x)
    known = {  # the outermost levels of ten are -0.9 and 0.9
        0.0: [[-0.9, -0.5, 0.25, 0.5], [-0.5, 0.0, 0.25, 0.75]],
        0.5: [[-0.9, -0.5, 0.25, 0.5], [-0.5, 0.0, 0.25, 0.75]],
        1.0: [[-0.9, -0.15, 0.075, 0.15], [-0.5, 0.0, 0.25, 0.75]],
    }
    for quantile, expected in known.items():
        noise, found = vdm.clipped(quantile).denoise(z, gamma)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
        torch.testing.assert_close(process.alpha(gamma) * found + process.sigma(gamma) * noise, z)
        unchanged = vdm.denoise(z, gamma).noise[1]
        torch.testing.assert_close(noise[1], unchanged, rtol=0, atol=1e-13)


def test_a_clipped_model_keeps_the_rest():
    vdm = VDM(Beyond("velocity"), FixedLinear(-6.0, 4.0), Discretized(10), (4,)).eval()
    vdm = vdm.widened(NoiseErrors(torch.tensor([-1.0, 1.0]), torch.full((2, 4), 0.5)))
    clipped = vdm.clipped()
    assert not clipped.training
    z, gamma_t, gamma_s = torch.zeros(1, 4), torch.tensor(1.0), torch.tensor(-1.0)
    wide = vdm.reverse(z, gamma_t, gamma_s).std
    torch.testing.assert_close(clipped.reverse(z, gamma_t, gamma_s).std, wide)
    assert clipped.sample(2, steps=3, generator=torch.Generator().manual_seed(0)).max() == 9


def test_what_cannot_be_sampled_is_said():
    vdm = exact_vdm()
    with pytest.raises(InputError, match="steps = 0"):
        vdm.sample(1, steps=0)
    with pytest.raises(InputError, match=r"sampler = 'euler': known are ancestral, ddim, dpmpp-2m"):
        vdm.sample(1, steps=1, sampler="euler")
    with pytest.raises(InputError, match=r"eta = 1.5: give 0"):
        dataclasses.replace(SAMPLERS["ddim"], eta=1.5)
    with pytest.raises(InputError, match="order = 4: give 1, 2 or 3"):
        Multistep(4)
    with pytest.raises(InputError, match=r"clip = 2.0: give 0"):
        Clipped(vdm.network, "velocity", 1.0, 2.0)
    with pytest.raises(InputError, match="clip: real-valued data have no range"):
        vdm.clipped()
