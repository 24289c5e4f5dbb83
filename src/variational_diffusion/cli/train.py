"""`vdm train`: train a model, or go on with a run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import click

from variational_diffusion.cli.devices import training_speed_options, use_device
from variational_diffusion.cli.overfit import report_overfit
from variational_diffusion.cli.session import Session
from variational_diffusion.cli.shared.console import print_json, print_table
from variational_diffusion.cli.shared.options import data_config, data_options, device_options
from variational_diffusion.data import open_dataset
from variational_diffusion.errors import InputError
from variational_diffusion.likelihood import summary_rows
from variational_diffusion.machine.distributed import processes
from variational_diffusion.presets import configure
from variational_diffusion.run.tracking import Tracking
from variational_diffusion.schedules import floor_note

_DEFAULT_MINUTES = 10


@click.command()
@click.argument("data")
@click.option("--run", "directory", help="Directory of the run.")
@click.option("--preset", help="Complete configuration to start from; default: by the data.")
@click.option("--steps", type=click.IntRange(1), help="Budget in steps.")
@click.option("--minutes", type=float, help="Budget in minutes of training (default 10).")
@click.option("--seed", type=click.IntRange(0), help="Seed of weights, order, times and noise.")
@click.option(
    "--schedule", help="Noise schedule: adaptive, monotone, learned-linear, fixed-linear, cosine."
)
@click.option(
    "--end-points",
    type=click.Choice(["fixed", "learned"]),
    help="Whether γ_0 and γ_1 are learned, for the schedules adaptive and monotone.",
)
@click.option(
    "--weighting",
    help="Weigh the loss for looks: bound (default, not at all), sigmoid, velocity, noise, edm, "
    "edm-monotone.",
)
@click.option("--network", help="Network: unet, transformer, paper-unet, mlp.")
@click.option("--batch-size", type=click.IntRange(1), help="Examples in one step.")
@click.option("--learning-rate", type=float, help="Of the network.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="SECTION.FIELD=VALUE",
    help="Any other setting of config.json; sections: training, model, network, schedule.",
)
@click.option(
    "--every", type=click.FloatRange(1), default=60.0, help="Seconds between two validations."
)
@click.option(
    "--track", multiple=True, metavar="NAME", help="Show figures in tensorboard, wandb, trackio, …."
)
@click.option(
    "--sheets-every",
    type=click.FloatRange(0),
    default=30.0,
    help="Minutes between two sheets of samples in the run, of images (default 30).",
)
@click.option(
    "--overfit-check",
    is_flag=True,
    help="See for at most a minute whether the model can learn 8 examples; write nothing.",
)
@click.option(
    "--keep", type=click.IntRange(1), default=2, help="States of training that stay (default 2)."
)
@click.option(
    "--accumulate",
    type=click.IntRange(1),
    default=1,
    help="Parts a batch goes through the network in, to take less memory (default 1).",
)
@click.option(
    "--checkpointing",
    is_flag=True,
    help="Compute activations again in the backward pass: less memory, a third more time.",
)
@click.option(
    "--sharding",
    type=click.Choice(["replicated", "sharded"]),
    default="replicated",
    help="With several processes (torchrun): each has the whole model, or a share of its weights.",
)
@click.option(
    "--workers", type=click.IntRange(0), default=1, help="Threads that read ahead (default 1)."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@data_options
@training_speed_options
@device_options
def command(
    data: str,
    directory: str | None,
    every: float,
    track: tuple[str, ...],
    sheets_every: float,
    overfit_check: bool,
    keep: int,
    accumulate: int,
    checkpointing: bool,
    sharding: str,
    workers: int,
    as_json: bool,
    compile_mode: str,
    precision: str,
    channels_last: bool,
    device: str,
    threads: int | None,
    **options: Any,
) -> None:
    """Train a model on DATA, or go on with the run in --run if its configuration is the same.

    Started by torchrun or accelerate launch, the processes share every batch: --batch-size is that
    of all of them together, and the figures are those of one process.

    DATA is digits, fashion-mnist, hf:NAME, a folder of images, of IDX files, of parquet or of tar
    files, or an .npy, .npz, .parquet or .tar file.
    """
    target = use_device(device, threads)
    dataset_config = data_config(data, options)
    dataset = open_dataset(dataset_config)
    config = configure(
        dataset_config,
        dataset,
        preset=options["preset"],
        schedule=options["schedule"],
        network=options["network"],
        settings=_settings(options),
    )
    if overfit_check:
        report_overfit(config, dataset, target, as_json=as_json)
        return
    if directory is None:
        raise InputError("run = none: name the directory of the run, for example --run runs/first")
    with processes(target) as place, Tracking(track if place.leads else ()) as tracking:
        for remark in dataset.remarks if place.leads else ():
            click.echo(remark, err=True)
        session = Session(
            directory,
            config,
            dataset,
            target,
            place=place,
            tracking=tracking,
            every=every,
            sheets_every=sheets_every,
            keep=keep,
            compile_mode=compile_mode,
            precision=precision,
            channels_last=channels_last,
            parts=accumulate,
            checkpointing=checkpointing,
            sharding=sharding,
            workers=workers,
        )
        summary = session.train()
        state = session.state
        if not place.leads:
            return
    schedule = state.average.module.schedule
    limited = floor_note(float(schedule.gamma_0), schedule.floor)
    if as_json:
        print_json(
            {
                "run": directory,
                "steps": state.step,
                "seconds": state.seconds,
                "validation": summary.as_json(),
                "floor": schedule.floor if limited else None,
            }
        )
        return
    print_table(
        f"{directory}: {state.step} steps in {state.seconds / 60:.1f} minutes",
        ["validation", "bits/dim"],
        summary_rows(summary),
    )
    if limited:
        click.echo(limited)
    click.echo(f"next: vdm evaluate {directory}   or: vdm sample {directory}", err=True)


def parsed_settings(assignments: Iterable[str]) -> dict[str, Any]:
    """Return "section.field" → value from the arguments of --set."""
    settings: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or "." not in key:
            raise InputError(
                f"set = {assignment!r}: give SECTION.FIELD=VALUE, "
                "for example --set training.weight_decay=0.05"
            )
        try:
            settings[key] = json.loads(text)
        except json.JSONDecodeError:
            settings[key] = text
    return settings


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """Return "section.field" → value from --set and the options that are shorthands for it."""
    settings = parsed_settings(options["settings"])
    if options["end_points"] is not None:
        settings["schedule.learn_end_points"] = options["end_points"] == "learned"
    for name in ("steps", "minutes", "seed", "batch_size", "learning_rate", "weighting"):
        if options[name] is not None:
            settings[f"training.{name}"] = options[name]
    if settings.keys().isdisjoint({"training.steps", "training.minutes"}):
        settings["training.minutes"] = _DEFAULT_MINUTES
    return settings
