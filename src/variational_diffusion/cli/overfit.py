"""`vdm train --overfit-check`: whether a model can learn eight examples by heart."""

from __future__ import annotations

import click
import torch

from variational_diffusion.cli.shared.console import Meter, print_json, print_table
from variational_diffusion.conditions import parted
from variational_diffusion.config import RunConfig
from variational_diffusion.data import Dataset
from variational_diffusion.data.loader import ordered_batches
from variational_diffusion.model import build
from variational_diffusion.training.overfit import SHARE, overfit

_EXAMPLES = 8


def report_overfit(
    config: RunConfig, dataset: Dataset, device: torch.device, *, as_json: bool
) -> None:
    """Try it on the first examples, and print what came of it; exit with 1 if it failed."""
    batch = next(ordered_batches(dataset.splits["train"].sample(_EXAMPLES), _EXAMPLES))
    vdm = build(config.model, seed=config.training.seed).to(device)
    with Meter("learning by heart", "steps") as meter:
        found = overfit(
            vdm, batch, config.training, lambda done, step: meter.update(done, step, lambda: "")
        )
    if as_json:
        print_json(
            {
                "passed": found.passed,
                "first": found.first.bits_per_dim,
                "last": found.last.bits_per_dim,
                "fallen": found.fallen,
                "steps": found.steps,
                "seconds": found.seconds,
                "causes": found.causes,
            }
        )
    else:
        first, last = found.first.bits_per_dim, found.last.bits_per_dim
        enough = first - SHARE * found.first.terms["diffusion"]
        rows = {"first": first, "last": last, f"to pass: {SHARE:.0%} of diffusion less": enough}
        print_table(
            f"{'passed' if found.passed else 'FAILED'}: {len(parted(batch)[0])} examples, "
            f"{found.steps} steps in {found.seconds:.0f} seconds",
            ["bound of the examples", "bits/dim"],
            [(name, f"{value:.3f}") for name, value in rows.items()],
        )
        for cause in found.causes:
            click.echo(f"perhaps: {cause}")
    if not found.passed:
        click.get_current_context().exit(1)
