"""Likelihoods of exact models, where −log p(x) is known: what the estimators and their errors do.

    python benchmarks/exact_likelihoods.py

1. The error of the ODE's solver by its tolerance, for a Gaussian and for a mixture of patterns.
2. `importance` above −log p(x), by K and probes: a bound is never below by three standard errors.
3. The same for weights that are normal, where it is quick: K to 64 and noise to 2 nats a probe.
4. Coverage of 95 % intervals where like examples stand together, and for both errors of a summary.
"""

from __future__ import annotations

import math

import click
import torch
from common import log_option, markdown, report, threads_option
from exact import Mixture
from torch import Tensor

from variational_diffusion import VDM, Discretized, FixedLinear, flow
from variational_diffusion.likelihood import (
    DEQUANTISATIONS,
    Estimate,
    ODELikelihood,
    log_mean,
    stratified_times,
    summarize,
)

_N = torch.distributions.Normal(0.0, 1.0)


def mixture(n: int, shape: int, levels: int, std: float = 0.0, last: float = 14.0) -> VDM:
    """Return the exact model of n random patterns with random probabilities."""
    generator = torch.Generator().manual_seed(0)
    decoder = Discretized(levels)
    points = decoder.encode(torch.randint(0, levels, (n, shape), generator=generator)).double()
    shares = torch.rand(n, generator=generator, dtype=torch.float64) + 0.2
    network = Mixture(shares / shares.sum(), points, std)
    return VDM(network, FixedLinear(-4.0, last), decoder, (shape,), "noise").double()


def minus_log_p(vdm: VDM) -> Tensor:
    """Return −log P of every pattern: what the marginal at γ_0 puts into its bin."""
    network, levels = vdm.network, vdm.decoder.levels
    alpha, sigma = ((sign * vdm.schedule.gamma_0).sigmoid().sqrt() for sign in (-1, 1))
    off = alpha * (network.centres[:, None] - network.centres)
    high, low = ((off + side * alpha / levels) / sigma for side in (1, -1))
    mass = (_N.cdf(high) - _N.cdf(low)).clamp(min=1e-300).log().sum(2)
    return -(mass + network.log_weights).logsumexp(1)


def drawn(vdm: VDM, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return n examples of the model's own data, and the numbers of their patterns."""
    rows = torch.multinomial(
        vdm.network.log_weights.exp(), n, replacement=True, generator=generator
    )
    return vdm.decoder.decode(vdm.network.centres[rows]), rows


@torch.no_grad()
def tolerances(n: int, generator: torch.Generator) -> str:
    """Return the table of the solver's errors."""
    rows: list[list[object]] = []
    for name, vdm in (
        ("Gaussian, d = 4", mixture(1, 4, 4, std=0.5, last=24.0)),
        ("24 patterns, d = 16", mixture(24, 16, 4, last=24.0)),
    ):
        x, _ = drawn(vdm, n, generator)
        gamma_0, gamma_1 = vdm.schedule.end_points
        z_0 = DEQUANTISATIONS["truncated-normal"](vdm, x, generator).z_0
        known = vdm.network.log_prob(z_0, gamma_0)
        for tolerance in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
            (found,), solution = flow.log_prob(
                vdm, z_0, gamma_0, gamma_1, flow.ExactDivergence(), tolerance=tolerance
            )
            off = (known - found) / (vdm.dimensions * math.log(2))
            figures = [f"{float(v):.1e}" for v in (off.mean(), off.square().mean().sqrt())]
            rows.append([name, f"{tolerance:g}", solution.evaluations, *figures])
    return markdown(["model", "tolerance", "evaluations", "bits/dim off, mean", "rms"], rows)


@torch.no_grad()
def bounds(n: int, samples: int, generator: torch.Generator) -> str:
    """Return the table of importance bounds above −log P."""
    vdm = mixture(24, 16, 4)
    x, numbers = drawn(vdm, n, generator)
    known = minus_log_p(vdm)[numbers]
    rows: list[list[object]] = []
    for dequantisation in ("truncated-normal", "uniform", "variational"):
        for probes in (None, 3, 4, 8):
            estimator = ODELikelihood(dequantisation, probes, tolerance=1e-4)
            weights, _, _ = estimator.log_weights(vdm, x, samples, generator)
            row: list[object] = [dequantisation, probes or "exact"]
            for k in (1, 8, samples):
                row.append(_figure(-log_mean(weights[:, :k]) - known))
            summed = weights[0].logsumexp(0) - math.log(samples)
            rows.append([*row, _figure(-summed - known)])
            click.echo(rows[-1], err=True)
    header = ["dequantisation", "probes", *(f"K = {k}" for k in (1, 8, samples))]
    return markdown([*header, f"K = {samples}, one probe, summed as it is"], rows)


def normal_weights(n: int, generator: torch.Generator) -> str:
    """Return the table of log 1/K Σ e^ℓ for ℓ ~ N(0, 1), by K, probes and their noise."""
    rows: list[list[object]] = []
    for samples in (2, 8, 64):
        exact = torch.randn(1, samples, n, generator=generator)
        for noise in (0.3, 1.0, 2.0):
            row: list[object] = [samples, noise, f"{float(log_mean(exact).mean()):.3f}"]
            for probes in (3, 4, 8):
                noisy = exact + noise * torch.randn(probes, samples, n, generator=generator)
                row.append(f"{float(log_mean(noisy).mean()):.3f}")
            summed = noisy[0].logsumexp(0) - math.log(samples)
            rows.append([*row, f"{float(summed.mean()):.3f}"])
    return markdown(["K", "noise", "exact", "3 probes", "4", "8", "one, summed as it is"], rows)


def coverage(repeats: int, generator: torch.Generator) -> str:
    """Return the table of coverages of 95 % intervals."""
    within = {"in the order of the batch": 0, "permuted": 0}
    for _ in range(repeats):
        (times,) = stratified_times(250, 1, generator)
        for name, t in zip(within, (times.sort().values, times), strict=True):
            loss = torch.zeros(250, dtype=torch.float64)
            loss[:25] = torch.sin(2 * math.pi * t[:25])
            low, high = summarize([Estimate({"a": loss})], dimensions=1).interval
            within[name] += low < 0 < high
    rows: list[list[object]] = [
        [f"25 of another kind first among 250, times {name}", f"{count / repeats:.1%}"]
        for name, count in within.items()
    ]
    for n, batches, rounds, noise, even in (
        (20, 1, 9, 2.0, 0.1),
        (100, 10, 2, 0.3, 0.1),
        (100, 10, 2, 2.0, 0.1),
        (300, 2, 5, 6.0, 1.0),
        (300, 2, 2, 2.0, 0.1),
    ):
        count = 0
        for _ in range(repeats):
            e = noise * torch.randn(rounds, batches, n // batches, generator=generator)
            e = (e + (math.sqrt(even) - 1) * e.mean(2, keepdim=True)).flatten(1)
            nats = (torch.randn(n, generator=generator) + e) * math.log(2)
            table = [[Estimate({"a": x}) for x in row.split(n // batches)] for row in nats]
            low, high = summarize(*table, dimensions=1).interval
            count += low < 0 < high
        what = f"{n} examples in {batches} batches, {rounds} rounds, draws {noise:g} times as wide"
        rows.append([f"{what}, of a batch {even:g} of the variance", f"{count / repeats:.1%}"])
    return markdown(["95 % interval", "coverage"], rows)


def _figure(above: Tensor) -> str:
    return f"{float(above.mean()):+.3f} ± {float(above.std()) / math.sqrt(len(above)):.3f}"


@click.command()
@click.option("--examples", type=click.IntRange(2), default=400, show_default=True)
@click.option("--samples", type=click.IntRange(8), default=64, show_default=True)
@click.option("--repeats", type=click.IntRange(2), default=2000, show_default=True)
@threads_option
@log_option
def main(examples: int, samples: int, repeats: int, threads: int, log: bool) -> None:
    """Compare estimates with what is known."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(1)
    tables = {
        "Error of the solver": tolerances(min(examples, 30), generator),
        "Normal weights": normal_weights(4000, generator),
        "Coverage": coverage(repeats, generator),
        "Importance above −log P, in nats": bounds(examples, samples, generator),
    }
    report("\n\n".join(f"{name}\n\n{table}" for name, table in tables.items()), log=log)


if __name__ == "__main__":
    main()
