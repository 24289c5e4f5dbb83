"""`vdm variance`: train the head that predicts the reverse variance of a run."""

from __future__ import annotations

from typing import Any

import click

from variational_diffusion.cli.shared.console import print_json, say, shown
from variational_diffusion.cli.shared.options import (
    device_options,
    json_option,
    open_run,
    seed_option,
    weights_option,
)


@click.command()
@click.argument("run", type=click.Path())
@click.option(
    "--steps", type=click.IntRange(1), default=1000, help="Steps of training (default 1000)."
)
@seed_option("weights, order and noise")
@json_option
@weights_option
@device_options
def command(run: str, as_json: bool, **options: Any) -> None:
    """Train a small network that predicts where the model in RUN is wrong.

    `vdm evaluate RUN --estimator discrete --variance predicted` then takes it for the variance of
    its reverse steps. The model itself stays as it is.

    Example: vdm variance runs/first
    """
    from variational_diffusion.escaping import typed
    from variational_diffusion.run.variance import train_variance

    begin, end = train_variance(open_run(run), progress=shown, **options)
    if as_json:
        print_json({"run": run, "steps": options["steps"], "first_loss": begin, "last_loss": end})
        return
    say(f"the head's loss fell from {begin:.4f} to {end:.4f} nats an entry")
    say(
        f"next: vdm evaluate {typed(run)} --estimator discrete --steps 20 --grid optimal "
        "--variance predicted --exact",
        err=True,
    )
