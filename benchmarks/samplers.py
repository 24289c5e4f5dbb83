"""Samplers, numbers of steps and grids: how good the samples are, and what sampling costs.

    vdm train fashion-mnist --run runs/fashion --minutes 20
    python benchmarks/samplers.py runs/fashion

Four tables. *Distance*: KID and others between samples and as many test images, in the features of
the run's classifier, beside the same of the ancestral sampler in 1,000 steps (which takes an hour
on two cores; `--ancestral FILE` reads its samples instead). *Flow*: how far a deterministic sampler
ends from where the flow does, from the same noise, in levels of the data; cheap, and without the
noise of a distance between sets. *Bound*: the chains of few steps. *Overhead*: a sampler's loop
over the bare evaluations of the network that it makes, interleaved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise, product

import click
import numpy as np
import torch
from chains import bounds
from common import device_of, log_option, markdown, median_ratio, report, threads_option
from torch import Tensor

from variational_diffusion import process
from variational_diffusion.data import open_dataset
from variational_diffusion.decoders import UNSEEN, Discretized
from variational_diffusion.grids import (
    GRIDS,
    Gammas,
    NoiseErrors,
    step_grid,
    uniform_in_gamma,
    uniform_in_time,
)
from variational_diffusion.model import VDM
from variational_diffusion.quality import Estimate, Reference, combined
from variational_diffusion.run.directory import Run
from variational_diffusion.run.noise_errors import measured_errors
from variational_diffusion.run.sample_quality import features_for
from variational_diffusion.run.samples import Sampling, draw
from variational_diffusion.run.trained import Trained
from variational_diffusion.sampling import SAMPLERS, Multistep, Sampler, named

_DRAWS_NOTHING = ["ddim", "dpmpp-2m", "dpmpp-3m", "unipc", "heun"]
_EXACT = Multistep(3, corrected=True)
_EXACT_STEPS = 200
_PARTS = ["distance", "flow", "bound", "overhead"]


@click.command()
@click.argument("run")
@click.option("--part", "parts", multiple=True, type=click.Choice(_PARTS), default=_PARTS)
@click.option("--sampler", "names", multiple=True, default=["ancestral", *_DRAWS_NOTHING])
@click.option("--steps", "counts", multiple=True, type=click.IntRange(2), default=[10, 20])
@click.option("--grid", "laid", multiple=True, type=click.Choice(list(GRIDS)), default=["gamma"])
@click.option(
    "--stop",
    "stops",
    multiple=True,
    type=float,
    default=[UNSEEN],
    help="Of the range; 0: all the way; default: the model's own.",
)
@click.option("--n", "count", type=click.IntRange(40), default=1000, show_default=True)
@click.option("--flow-n", "flow_count", type=click.IntRange(1), default=32, show_default=True)
@click.option("--limit", type=click.IntRange(2), default=100, help="Examples of the bounds.")
@click.option("--repeats", type=click.IntRange(1), default=11, help="Of the overhead.")
@click.option("--ancestral", help="An .npy file of samples in 1,000 ancestral steps.")
@click.option("--ancestral-steps", type=click.IntRange(1), default=1000, show_default=True)
@threads_option
@log_option
def main(
    run: str,
    parts: tuple[str, ...],
    names: tuple[str, ...],
    counts: tuple[int, ...],
    laid: tuple[str, ...],
    stops: tuple[float, ...],
    count: int,
    flow_count: int,
    limit: int,
    repeats: int,
    ancestral: str | None,
    ancestral_steps: int,
    threads: int,
    log: bool,
) -> None:
    """Compare the samplers on the model of RUN, whose data have levels."""
    device = device_of(threads)
    opened = Run.open(run)
    vdm = opened.load().to(device)
    errors = measured_errors(Trained(opened, "ema", vdm))

    def grid(name: str, steps: int, share: float) -> Gammas:
        assert isinstance(vdm.decoder, Discretized)
        stop = vdm.decoder.gamma_at(share) if share else None
        if share == UNSEEN:
            stop = vdm.stop_early(steps)  # of few levels: all the way
        return step_grid(name, vdm.schedule, steps, errors, stop=stop)

    tables = [f"{opened.config.data.source}, {opened.config.model.network.name}"]
    chosen = list(product(names, counts, laid, stops))
    if "distance" in parts:
        tables.append(distances(opened, vdm, chosen, grid, count, ancestral, ancestral_steps))
    if "flow" in parts:
        still = [each for each in chosen if each[0] in _DRAWS_NOTHING]
        tables.append(along_the_flow(vdm, still, grid, errors, flow_count))
    if "bound" in parts:
        steps = sorted({*counts, 50, 100}) if limit > 20 else list(counts)
        laid = ("time", "gamma", "optimal")
        tables.append(bounds(opened, vdm, steps, laid, ["posterior"], limit))
    if "overhead" in parts:
        tables.append(overhead(vdm, repeats))
    report("\n\n".join(tables), log=log)


Choice = tuple[str, int, str, float]
"""Sampler, steps, grid, and the noise at which the last step begins, over the range of data."""


def distances(
    opened: Run,
    vdm: VDM,
    chosen: Sequence[Choice],
    grid: Callable[[str, int, float], Gammas],
    count: int,
    ancestral: str | None,
    ancestral_steps: int,
) -> str:
    """Return the table of distances to test images, and of their ratios to the long chain's."""
    test = open_dataset(opened.config.data).splits["test"]
    order = np.random.default_rng(0).permutation(len(test))[:count]
    with torch.enable_grad():  # it may train a classifier
        features = features_for(opened, None, vdm.schedule.gamma_0.device)
    reference = Reference(test.read(order), features, levels=opened.config.data.levels)
    if ancestral is None:
        gammas = uniform_in_time(vdm.schedule, ancestral_steps)
        long, _ = draw(Sampling(vdm, named("ancestral"), gammas, "ancestral"), count, seed=7)
    else:
        long = np.load(ancestral)[:count]
    standard = reference.distances(long)
    rows = [row(("ancestral", ancestral_steps, "time", 0.0), standard, standard)]
    for choice in chosen:
        name, steps, laid, share = choice
        by = Sampling(vdm, named(name), grid(laid, steps, share), name)
        samples, _ = draw(by, count, seed=11)
        rows.append(row(choice, reference.distances(samples), standard))
        print(rows[-1], flush=True)
    header = ["sampler", "steps", "grid", "from noise", *standard, "KID over the long chain's"]
    return f"{count} samples, as many test images\n\n{markdown(header, rows)}"


def row(choice: Choice, found: dict[str, Estimate], standard: dict[str, Estimate]) -> list[object]:
    ratio = combined(lambda a, b: a / b - 1, found["KID"], standard["KID"])
    values = [f"{each.value:.4f} ± {each.error:.4f}" for each in found.values()]
    return [*choice, *values, f"{ratio.value:+.1%} ± {ratio.error:.1%}"]


def along_the_flow(
    vdm: VDM,
    chosen: Sequence[Choice],
    grid: Callable[[str, int, float], Gammas],
    errors: NoiseErrors,
    count: int,
) -> str:
    """Return the table of root mean squares of x less the flow's x, in levels."""
    assert isinstance(vdm.decoder, Discretized)
    gammas = uniform_in_gamma(vdm.schedule, _EXACT_STEPS)
    generator = torch.Generator(gammas.device).manual_seed(1)
    z = torch.randn(count, *vdm.shape, generator=generator, device=gammas.device)
    alpha_0 = process.alpha(vdm.schedule.gamma_0)

    def end(sampler: Sampler, gammas: Gammas) -> Tensor:
        *_, z_0 = sampler(vdm, z, gammas)
        return z_0 / alpha_0

    every = [(gammas[0], z), *zip(gammas[1:], _EXACT(vdm, z, gammas), strict=True)]
    exact = every[-1][1] / alpha_0
    rows: list[list[object]] = []
    for choice in chosen:
        name, steps, laid, share = choice
        off = (end(SAMPLERS[name], grid(laid, steps, share)) - exact).flatten(1)
        size = 0.5 * vdm.decoder.levels * off.square().mean(1).sqrt()
        error = size.square().mean().sqrt()
        rows.append([*choice, f"{error:.2f}", f"{size.median():.2f}"])
        print(rows[-1], flush=True)
    header = ["sampler", "steps", "grid", "from noise", "levels off (rms)", "median image"]
    table = f"{count} images along the flow\n\n{markdown(header, rows)}"
    return f"{table}\n\n{speeds(vdm, every[:: _EXACT_STEPS // 20], errors)}"


def speeds(vdm: VDM, way: Sequence[tuple[Tensor, Tensor]], errors: NoiseErrors) -> str:
    """Return how fast x̂ moves along the flow, and what measured errors say of Gaussian data."""
    known = [(gamma, vdm.denoise(z, gamma).x) for gamma, z in way]
    rows: list[list[object]] = []
    for (gamma_t, x_t), (gamma_s, x_s) in pairwise(known):
        middle = 0.5 * (gamma_t + gamma_s)
        ratio = torch.exp(0.5 * middle)
        speed = (x_s - x_t).square().mean().sqrt() / (0.5 * (gamma_t - gamma_s)) / ratio
        m = errors.at(middle).clamp(0, 1)
        gaussian = (m.square() * (1 - m)).mean().sqrt()
        rows.append([f"{middle:.2f}", f"{speed:.3f}", f"{gaussian:.3f}"])
    header = ["γ", "measured", "from m(γ), for Gaussian data"]
    return f"root mean square of dx̂/dλ over sigma/alpha\n\n{markdown(header, rows)}"


def overhead(vdm: VDM, repeats: int, count: int = 8, steps: int = 10) -> str:
    """Return the time of each sampler over that of the evaluations it makes."""
    gammas = uniform_in_gamma(vdm.schedule, steps)
    z = torch.randn(count, *vdm.shape, device=gammas.device)
    rows: list[list[object]] = []
    for name in ["ancestral", *_DRAWS_NOTHING, "sde-dpmpp-2m"]:
        evaluations = 2 * steps if name == "heun" else steps

        def bare(evaluations: int = evaluations) -> None:
            for gamma in gammas.repeat(2)[:evaluations]:
                vdm.network(z, gamma.expand(count), None)

        def sampled(name: str = name) -> None:
            for _ in SAMPLERS[name](vdm, z, gammas):
                pass

        times: dict[Callable[[], None], list[float]] = {bare: [], sampled: []}
        for _ in range(repeats + 1):
            for function, taken in times.items():
                start = time.process_time()
                function()
                taken.append(time.process_time() - start)
        ratio = median_ratio(times[sampled][1:], times[bare][1:])
        rows.append([name, evaluations, f"{ratio - 1:+.2%}"])
        print(rows[-1], flush=True)
    header = ["sampler", "evaluations", "over the bare network"]
    return f"{count} images, processor time, median of {repeats}\n\n{markdown(header, rows)}"


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
