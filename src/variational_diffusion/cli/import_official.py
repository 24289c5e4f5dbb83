"""`vdm import-official`: a run made of a checkpoint of the official VDM release."""

from __future__ import annotations

from pathlib import Path

import click

from variational_diffusion import hub
from variational_diffusion.cli.shared.options import Size
from variational_diffusion.config import DataConfig, RunConfig, TrainingConfig
from variational_diffusion.interchange.official import read_official
from variational_diffusion.model import build
from variational_diffusion.run.directory import Run
from variational_diffusion.training import TrainingState

_TRAINING = {
    "batch_size": 128,
    "optimizer": "adamw",
    "learning_rate": 2e-4,
    "weight_decay": 0.01,
    "decay_from": 1.0,
    "ema_decay": 0.9999,
    "posthoc_ema": False,
}


@click.command()
@click.argument("file")
@click.option("--run", required=True, metavar="DIR", help="A new directory for the run.")
@click.option(
    "--data",
    default="hf:uoft-cs/cifar10",
    help="What it was trained on, for vdm evaluate (default hf:uoft-cs/cifar10).",
)
@click.option("--size", type=Size(), default="32", help="Of the images (default 32).")
def command(file: str, run: str, data: str, size: tuple[int, int]) -> None:
    """Make a run of FILE, a checkpoint of the official VDM release (flax, checkpoints-N.flax).

    The network is that of the preset paper, with the same numbers to the precision of float32.
    """
    folder = Path(run)
    hub.check_new(folder)
    found = read_official(Path(file), size)
    model = found.average.config
    assert model is not None
    config = RunConfig(
        data=DataConfig(source=data, levels=256),
        model=model,
        training=TrainingConfig(steps=max(1, found.step), **_TRAINING),
    )
    state = TrainingState.start(build(model), config.training)
    state.vdm.load_state_dict(found.raw.state_dict())
    state.average.module.load_state_dict(found.average.state_dict())
    state.step = state.average.updates = found.step
    Run.start(folder, config).save(state)
    gamma_0, gamma_1 = found.average.schedule.end_points.tolist()
    parameters = sum(parameter.numel() for parameter in found.average.network.parameters())
    click.echo(
        f"{run}: {parameters:,} parameters after step {found.step:,}, "
        f"schedule {model.schedule.name} from γ = {gamma_0:.2f} to {gamma_1:.2f}"
    )
    click.echo(f"next: vdm evaluate {run}, or vdm sample {run}", err=True)
