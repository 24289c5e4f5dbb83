"""`vdm evaluate`: bits per dimension of data under a trained model."""

from __future__ import annotations

from typing import Any

import click
import torch

from variational_diffusion.checkpoint import Run
from variational_diffusion.cli.console import Meter, print_json, print_table
from variational_diffusion.cli.devices import use_device
from variational_diffusion.cli.examples import chosen_examples, examples_options
from variational_diffusion.cli.options import device_options, weights_option
from variational_diffusion.data import Split
from variational_diffusion.data.loader import ordered_batches
from variational_diffusion.errors import InputError
from variational_diffusion.likelihood import ESTIMATORS, Summary, evaluate, summarize, summary_rows
from variational_diffusion.model import VDM


@click.command()
@examples_options
@click.option(
    "--estimator",
    type=click.Choice(list(ESTIMATORS)),
    default="vlb",
    help="vlb: infinitely many steps; discrete: --steps steps.",
)
@click.option("--steps", type=click.IntRange(1), help="T of the discrete estimator.")
@click.option(
    "--draws", type=click.IntRange(1), default=4, help="Network evaluations for each example."
)
@click.option("--batch-size", type=click.IntRange(1), default=250, help="Examples at once.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of the estimate.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@weights_option
@device_options
def command(
    run: str,
    data: str | None,
    split: str,
    limit: int | None,
    estimator: str,
    steps: int | None,
    draws: int,
    batch_size: int,
    seed: int,
    as_json: bool,
    weights: Any,
    device: str,
    threads: int | None,
) -> None:
    """Estimate the bound on −log p(x) of DATA under the model in RUN, in bits per dimension.

    DATA is read with the options that the run was trained with; without it, the run's own data
    are.
    """
    if (estimator == "discrete") != (steps is not None):
        raise InputError(
            f"estimator = {estimator!r}, steps = {steps}: --steps goes with "
            "--estimator discrete, and is needed there"
        )
    target = use_device(device, threads)
    opened = Run.open(run)
    vdm = opened.load(weights).to(target)
    examples = chosen_examples(opened, data, split, limit)
    summary = evaluate_split(
        vdm, examples, steps=steps, draws=draws, batch_size=batch_size, seed=seed
    )
    if as_json:
        print_json(
            {
                "estimator": estimator,
                "split": split,
                "examples": summary.examples,
                "bits_per_dim": summary.bits_per_dim,
                "standard_error": summary.standard_error,
                "terms": {
                    "prior": summary.prior,
                    "reconstruction": summary.reconstruction,
                    "diffusion": summary.diffusion,
                },
                "levels": opened.config.data.levels,
                "shape": list(vdm.shape),
                "weights": weights,
                "steps": steps,
                "draws": draws,
            }
        )
        return
    chain = "infinitely many steps" if steps is None else f"{steps} steps"
    print_table(
        f"{run}: {split} split, {weights} weights, {chain}",
        ["", "bits/dim"],
        summary_rows(summary),
    )


def evaluate_split(
    vdm: VDM,
    split: Split,
    *,
    steps: int | None = None,
    draws: int = 4,
    batch_size: int = 250,
    seed: int = 0,
) -> Summary:
    """Evaluate a split with a progress bar."""
    generator = torch.Generator(vdm.schedule.gamma_0.device).manual_seed(seed)
    bounds = []
    done = 0
    with Meter("evaluating", "examples") as meter:
        for bound in evaluate(
            vdm,
            ordered_batches(split, batch_size),
            steps=steps,
            draws=draws,
            generator=generator,
        ):
            bounds.append(bound)
            done += len(bound.total)
            meter.update(
                done / len(split),
                done,
                lambda: f"{summarize(bounds, vdm.dimensions).bits_per_dim:.3f} bits/dim",
            )
    return summarize(bounds, vdm.dimensions)
