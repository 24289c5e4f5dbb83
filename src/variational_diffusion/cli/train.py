"""`vdm train`: train a model, or go on with a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from variational_diffusion.cli.shared.console import print_json, print_table, say, shown
from variational_diffusion.cli.shared.options import (
    accumulate_option,
    checkpointing_option,
    data_options,
    device_options,
    json_option,
    parsed_settings,
    settings_option,
    training_speed_options,
    typed_options,
)
from variational_diffusion.cli.shared.types import Duration, Number, OneOf

if TYPE_CHECKING:
    from variational_diffusion.run.training import End
    from variational_diffusion.training.overfit import OverfitCheck

_HOW = (
    "every",
    "sheets_every",
    "keep",
    "accumulate",
    "checkpointing",
    "sharding",
    "workers",
    "track",
    "device",
    "threads",
    "precision",
    "compile",
    "channels_last",
)
"""Options that change nothing of what a run comes to."""


@click.command()
@click.argument("data", type=click.Path(), required=False)
@click.option(
    "--run", "directory", type=click.Path(), help="Directory of the run, new or to go on with."
)
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False),
    help="File of a whole configuration: TOML, or JSON as config.json of a run.",
)
@click.option("--dry-run", is_flag=True, help="Print the configuration; write nothing.")
@click.option("--preset", help="Complete configuration to start from; default: by the data.")
@click.option("--steps", type=click.IntRange(1), help="Steps of training, as a budget.")
@click.option(
    "--minutes",
    type=Duration("minutes"),
    help="Minutes of training, as a budget: 10, or 90s, 10m, 1.5h (new runs: 10).",
)
@click.option("--seed", type=click.IntRange(0), help="Seed of weights, order, times and noise.")
@click.option(
    "--schedule", help="Noise schedule: adaptive, monotone, learned-linear, fixed-linear, cosine."
)
@click.option(
    "--end-points",
    type=OneOf(["fixed", "learned"]),
    help="Whether γ_0 and γ_1 are learned, for the schedules adaptive and monotone.",
)
@click.option(
    "--weighting",
    help="Weigh the loss for looks: bound (default, not at all), sigmoid, velocity, noise, edm, "
    "edm-monotone.",
)
@click.option(
    "--network",
    help="Network: unet, transformer, paper-unet, mlp, or one's own as MODULE:NAME.",
)
@click.option("--batch-size", type=click.IntRange(1), help="Examples in one step.")
@click.option("--learning-rate", type=Number(), help="Of the network.")
@settings_option
@click.option(
    "--every",
    type=Duration("seconds", least=1.0),
    default=60.0,
    help="Seconds between two validations: 60, or 60s, 5m (default 60).",
)
@click.option(
    "--track", multiple=True, metavar="NAME", help="Show figures in tensorboard, wandb, trackio, …."
)
@click.option(
    "--sheets-every",
    type=Duration("minutes"),
    default=30.0,
    help="Minutes between two sheets of samples in the run, of images: 30, or 90s, 1.5h (default "
    "30).",
)
@click.option(
    "--changed-data",
    is_flag=True,
    help="Go on with a run although its data have changed since.",
)
@click.option(
    "--overfit-check",
    "overfit",
    is_flag=True,
    help="See for at most a minute whether the model can learn 8 examples; write nothing.",
)
@click.option(
    "--keep", type=click.IntRange(1), default=2, help="States of training that stay (default 2)."
)
@accumulate_option
@checkpointing_option
@click.option(
    "--sharding",
    type=OneOf(["replicated", "sharded"]),
    default="replicated",
    help="With several processes (torchrun): each has the whole model, or a share of its weights.",
)
@click.option(
    "--workers", type=click.IntRange(0), default=1, help="Threads that read ahead (default 1)."
)
@json_option
@data_options
@training_speed_options
@device_options
def command(
    data: str | None,
    directory: str | None,
    dry_run: bool,
    overfit: bool,
    as_json: bool,
    end_points: str | None,
    settings: tuple[str, ...],
    **options: Any,
) -> None:
    """Train a model on DATA, or go on with the run in --run if its configuration is the same.

    A run that is done goes on with a larger budget; without DATA it goes on with what it was
    trained on. Started by torchrun or accelerate launch, the processes share every batch:
    --batch-size is that of all of them together, and the figures are those of one process.

    DATA is digits, fashion-mnist, hf:NAME, a folder of images, of IDX files, of parquet or of tar
    files, or an .npy, .npz, .parquet or .tar file.

    Example: vdm train photos --resize 32x32 --minutes 60 --run runs/photos
    """
    from variational_diffusion.machine.distributed import leads
    from variational_diffusion.run import training

    chosen = parsed_settings(settings)
    if end_points is not None:
        chosen["schedule.learn_end_points"] = end_points == "learned"
    for name in ("batch_size", "learning_rate", "weighting"):
        if (value := options.pop(name)) is not None:
            chosen[f"training.{name}"] = value
    how = {name: options.pop(name) for name in _HOW}
    choices = {"settings": chosen, **typed_options(options)}
    if dry_run:
        asked = training.configuration(data, directory, **choices)
        for line in asked.config.to_json().splitlines():
            say(line)
    elif overfit:
        where = {name: how[name] for name in ("device", "threads")}
        found = training.overfit_check(data, progress=shown, **where, **choices)
        _report_overfit(found, as_json=as_json)
    else:
        events = training.training_events(data, directory, **how, **choices)
        end = training.finished(events, shown)
        if leads():
            _report(end, str(directory), as_json)


def _report(end: End, directory: str, as_json: bool) -> None:
    """Print what a training came to."""
    from variational_diffusion.escaping import typed
    from variational_diffusion.likelihood import summary_rows
    from variational_diffusion.schedules import floor_note

    summary, schedule = end.validation, end.run.load().schedule
    limited = floor_note(float(schedule.gamma_0), schedule.floor)
    if as_json:
        print_json(
            {
                "run": directory,
                "steps": end.step,
                "seconds": end.seconds,
                "validation": summary.as_json(),
                "floor": schedule.floor if limited else None,
            }
        )
        return
    print_table(
        f"{directory}: {end.step} steps in {end.seconds / 60:.1f} minutes",
        ["validation", "bits/dim"],
        summary_rows(summary),
    )
    if limited:
        say(limited)
    name = typed(directory)
    say(f"next: vdm evaluate {name}   or: vdm sample {name}", err=True)


def _report_overfit(found: OverfitCheck, *, as_json: bool) -> None:
    """Print what came of the check; exit with 1 if it failed."""
    from variational_diffusion.training.overfit import SHARE

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
            f"{'passed' if found.passed else 'FAILED'}: {found.first.examples} examples, "
            f"{found.steps} steps in {found.seconds:.0f} seconds",
            ["bound of the examples", "bits/dim"],
            [(name, f"{value:.3f}") for name, value in rows.items()],
        )
        for cause in found.causes:
            say(f"perhaps: {cause}")
    if not found.passed:
        click.get_current_context().exit(1)
