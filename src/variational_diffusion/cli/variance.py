"""`vdm variance`: train the head that predicts the reverse variance of a run."""

from __future__ import annotations

from statistics import fmean as mean

import click
import torch

from variational_diffusion.cli.console import Meter, shown
from variational_diffusion.cli.devices import use_device
from variational_diffusion.cli.options import device_options, weights_option
from variational_diffusion.data import open_dataset
from variational_diffusion.data.loader import training_batches
from variational_diffusion.networks import VarianceHead
from variational_diffusion.run.directory import Run
from variational_diffusion.run.noise_errors import measured_errors, predicted_errors
from variational_diffusion.run.trained import Trained
from variational_diffusion.training.variance_head import fit_head

_BATCH = 32


@click.command()
@click.argument("run")
@click.option("--steps", type=click.IntRange(1), default=1000, help="Of training (default 1000).")
@click.option("--seed", type=click.IntRange(0), default=0, help="Of weights, order and noise.")
@weights_option
@device_options
def command(
    run: str, steps: int, seed: int, weights: str, device: str, threads: int | None
) -> None:
    """Train a small network that predicts where the model in RUN is wrong.

    `vdm evaluate RUN --estimator discrete --variance predicted` then takes it for the variance of
    its reverse steps. The model itself stays as it is.
    """
    target = use_device(device, threads)
    opened = Run.open(run)
    trained = Trained(opened, weights, opened.load(weights).to(target))
    vdm = trained.vdm
    errors = measured_errors(trained, progress=shown)
    gamma_min, gamma_max = vdm.schedule.end_points.tolist()
    levels = opened.config.data.levels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = VarianceHead(vdm.shape, gamma_min=gamma_min, gamma_max=gamma_max, levels=levels)
    head.to(target)
    split = open_dataset(opened.config.data).splits["train"]
    stream = training_batches(split, min(_BATCH, len(split)), seed)
    losses: list[float] = []
    with Meter("training the head", "steps") as meter:
        for loss in fit_head(vdm, head, errors, stream, steps=steps, seed=seed):
            losses.append(loss)
            meter.update(len(losses) / steps, len(losses), lambda: f"{mean(losses[-50:]):.4f} nats")
    opened.save_head(head, weights)
    predicted_errors(trained, progress=shown)
    begin, end = mean(losses[:50]), mean(losses[-50:])
    click.echo(f"the head's loss fell from {begin:.4f} to {end:.4f} nats an entry")
    click.echo(
        f"next: vdm evaluate {run} --estimator discrete --steps 20 --grid optimal "
        "--variance predicted --exact",
        err=True,
    )
