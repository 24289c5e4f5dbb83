"""One model, three likelihoods: the bound, the probability-flow ODE, and importance weights over K.

    vdm train fashion-mnist --run runs/fashion --minutes 20
    python benchmarks/likelihoods.py runs/fashion --limit 1000 --importance-limit 250

The differences are means over the same images with their standard errors over images: those of two
estimates of one image go together, so the errors are far below those of the estimates. Every K of
an image uses the same 16 draws, all of them: K = 4 is the mean over four groups. Weighted are they
by three of four probes and summed by the fourth, each in turn, so that every K is an upper bound.
"""

from __future__ import annotations

import math
import time

import click
import torch
from common import device_of, log_option, markdown, report, threads_option

from variational_diffusion.data.loader import ordered_batches
from variational_diffusion.likelihood import (
    ContinuousBound,
    Estimator,
    ODELikelihood,
    default_probes,
    evaluate_rounds,
    log_mean,
)
from variational_diffusion.numerics import bits_per_dim
from variational_diffusion.run.directory import Run
from variational_diffusion.run.examples import chosen_examples


@click.command()
@click.argument("run")
@click.option("--limit", type=click.IntRange(2), default=1000, show_default=True)
@click.option("--draws", type=click.IntRange(1), default=256, show_default=True)
@click.option("--importance-limit", type=click.IntRange(2), default=250, show_default=True)
@click.option("--samples", type=click.IntRange(1), default=16, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=250, show_default=True)
@threads_option
@log_option
def main(
    run: str,
    limit: int,
    draws: int,
    importance_limit: int,
    samples: int,
    batch_size: int,
    threads: int,
    log: bool,
) -> None:
    """Compare the likelihoods of a RUN's test images."""
    device = device_of(threads)
    opened = Run.open(run)
    vdm = opened.load().to(device)
    examples = chosen_examples(opened, None, "test", limit)
    rows: list[list[object]] = []

    def bits(estimator: Estimator, name: str) -> torch.Tensor:
        begin = time.monotonic()
        done = evaluate_rounds(vdm, examples, estimator, rounds=1, batch_size=batch_size)
        (estimates,) = done.rounds
        found = bits_per_dim(torch.cat([e.total for e in estimates]), vdm.dimensions).cpu()
        evaluations = sum(e.evaluations for e in estimates) / len(estimates)
        seconds = time.monotonic() - begin
        rows.append([name, len(found), mean_and_error(found), f"{evaluations:.0f}", seconds])
        return found

    bound = bits(ContinuousBound(draws), "bound, T → ∞")
    ode = bits(ODELikelihood(), "ODE")
    rows.append(["ODE − bound", len(ode), mean_and_error(ode - bound), "", 0.0])
    begin = time.monotonic()
    few = examples.sample(importance_limit)
    flow = ODELikelihood(probes=default_probes(vdm.dimensions))
    parts = []
    for number, x in enumerate(ordered_batches(few, batch_size)):
        generator = torch.Generator(device).manual_seed(number)
        with torch.no_grad():
            weights, evaluations, _ = flow.log_weights(vdm, x.to(device), samples, generator)
        parts.append(weights.cpu().double())
    log_weights = torch.cat(parts, dim=2)
    seconds = time.monotonic() - begin
    before = None
    for k in (2**n for n in range(int(math.log2(samples)) + 1)):
        nats = -torch.stack([log_mean(group) for group in log_weights.split(k, dim=1)]).mean(0)
        found = bits_per_dim(nats, vdm.dimensions)
        cost = evaluations * k // samples, seconds * k / samples
        rows.append([f"importance, K = {k}", len(found), mean_and_error(found), *cost])
        if before is not None:
            rows.append(
                [f"K = {k} − K = {k // 2}", len(found), mean_and_error(found - before), "", 0.0]
            )
        before = found
    table = [[*row[:-1], f"{row[-1]:.0f}" if row[-1] else ""] for row in rows]
    header = ["", "images", "bits/dim", "evaluations an image", "seconds"]
    report(f"{opened.config.data.source}\n\n{markdown(header, table)}", log=log)


def mean_and_error(values: torch.Tensor) -> str:
    """Return the mean with its standard error over images."""
    return f"{float(values.mean()):.4f} ± {float(values.std()) / math.sqrt(len(values)):.4f}"


if __name__ == "__main__":
    main()
