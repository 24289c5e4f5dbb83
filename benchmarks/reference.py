"""The row of docs/benchmarks.md for a trained model: its likelihoods and its file.

    vdm train fashion-mnist --run runs/fashion --steps 5000
    python benchmarks/reference.py runs/fashion

The bound for infinitely many steps and the bound for T steps are of all test examples. The ODE and
the importance-weighted estimate take hundreds of network evaluations an example, so they are
measured on a random part of the examples, less a bound of the same examples. The figure for all
examples is the bound of all plus the mean difference, and its error the root of the sum of their
squares (the difference estimator of survey sampling: Cochran, "Sampling Techniques" (1977), section
7.3). The file is by `vdm compress --fast`, whose bytes are as many as those of a portable file and
which takes a seventh of the time.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import torch
from common import device_of, log_option, markdown, report, threads_option

from variational_diffusion.compression.baselines import code_lengths
from variational_diffusion.data import Split
from variational_diffusion.likelihood import (
    ContinuousBound,
    DiscreteBound,
    Estimator,
    ImportanceWeighted,
    ODELikelihood,
    evaluate_rounds,
    example_columns,
)
from variational_diffusion.model import VDM
from variational_diffusion.run.directory import Run
from variational_diffusion.run.examples import chosen_examples
from variational_diffusion.run.noise_errors import reverse_chain
from variational_diffusion.run.trained import Trained

PARTS = ("bound", "chain", "ode", "importance", "file")

DRAWS_BESIDE = 64
"""Evaluations of the bound that a difference is taken from, for each example."""


@click.command()
@click.argument("run")
@click.option("--steps", type=click.IntRange(1), default=50, show_default=True, help="T.")
@click.option("--flow-limit", type=click.IntRange(2), default=500, show_default=True)
@click.option("--file-limit", type=click.IntRange(1), default=2000, show_default=True)
@click.option(
    "--only", type=click.Choice(PARTS), multiple=True, help="What to measure; default: everything."
)
@click.option("--importance-limit", type=click.IntRange(2), default=100, show_default=True)
@click.option("--samples", type=click.IntRange(1), default=8, show_default=True, help="K.")
@click.option("--batch-size", type=click.IntRange(1), default=100, show_default=True)
@threads_option
@log_option
def main(
    run: str,
    steps: int,
    flow_limit: int,
    file_limit: int,
    only: tuple[str, ...],
    importance_limit: int,
    samples: int,
    batch_size: int,
    threads: int,
    log: bool,
) -> None:
    """Measure the model in RUN on its test examples."""
    device = device_of(threads)
    opened = Run.open(run)
    vdm = opened.load().to(device)
    test = chosen_examples(opened, None, "test", None)
    rows: list[list[object]] = []

    def bits(
        estimator: Estimator, examples: Split, rounds: int | None = None, model: VDM = vdm
    ) -> tuple[torch.Tensor, float]:
        done = evaluate_rounds(model, examples, estimator, rounds=rounds, batch_size=batch_size)
        columns = example_columns(*done.rounds, dimensions=vdm.dimensions)
        return columns["bits_per_dim"], done.summary.standard_error

    def row(name: str, examples: Split, value: float, error: float, begin: float) -> None:
        seconds = f"{time.monotonic() - begin:.0f}"
        rows.append([name, examples.description, f"{value:.4f} ± {error:.4f}", seconds])
        print(rows[-1], flush=True)

    def difference(name: str, estimator: Estimator, limit: int) -> None:
        begin, part = time.monotonic(), test.sample(limit)
        beside, _ = bits(ContinuousBound(DRAWS_BESIDE), part, 1)
        found = bits(estimator, part, 1)[0] - beside
        row(name, part, float(found.mean()), float(found.std()) / math.sqrt(len(found)), begin)

    chosen = only or PARTS
    if "bound" in chosen:
        begin = time.monotonic()
        found, error = bits(ContinuousBound(2), test)
        row("bound, T → ∞", test, float(found.mean()), error, begin)
    if "chain" in chosen:
        begin = time.monotonic()
        model, gammas = reverse_chain(Trained(opened, "ema", vdm), steps, "optimal", "position")
        found, error = bits(DiscreteBound(gammas=gammas, draws=2), test, model=model)
        row(f"bound, T = {steps}", test, float(found.mean()), error, begin)
    if "ode" in chosen:
        difference("ODE − bound, T → ∞", ODELikelihood(), flow_limit)
    if "importance" in chosen:
        name = f"importance, K = {samples} − bound, T → ∞"
        difference(name, ImportanceWeighted(samples), importance_limit)
    if "file" in chosen:
        rows.append(file_row(run, test.sample(file_limit), steps, threads))
    levels = opened.config.data.levels
    assert levels is not None
    for name, value in code_lengths(test.read(), levels).items():
        rows.append([name, test.description, f"{value:.4f}", ""])
    parameters = sum(parameter.numel() for parameter in vdm.network.parameters())
    training = opened.config.training
    title = f"{opened.config.data.source}, {parameters:,} parameters, {training.steps} steps"
    header = ["", "examples", "bits/dim", "seconds"]
    report(f"{title}\n\n{markdown(header, rows)}", log=log)


def file_row(run: str, part: Split, steps: int, threads: int) -> list[object]:
    """Return the row of a compressed file."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).with_name("vdm")), "compress", run]
        command += ["--out", str(Path(folder) / "test.vdmz"), "--steps", str(steps), "--fast"]
        command += ["--no-verify", "--threads", str(threads), "--limit", str(len(part)), "--json"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    file = json.loads(done.stdout)
    size = f"{file['bits_per_dim']:.4f} ({file['bytes']:,} bytes)"
    seconds = f"{time.monotonic() - begin:.0f}"
    return [f"file of vdm compress, T = {steps}", part.description, size, seconds]


if __name__ == "__main__":
    main()
