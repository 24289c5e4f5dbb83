"""`vdm train`: train a model, or go on with a run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any

import click
import torch

from variational_diffusion.checkpoint import Run
from variational_diffusion.cli.console import Meter, print_json, print_table
from variational_diffusion.cli.devices import speed_options, speed_up, use_device
from variational_diffusion.cli.options import data_config, data_options, device_options
from variational_diffusion.cli.signals import stop_requested
from variational_diffusion.config import RunConfig
from variational_diffusion.data import Dataset, open_dataset
from variational_diffusion.data.loader import ordered_batches, training_batches
from variational_diffusion.errors import DivergedError, InputError
from variational_diffusion.likelihood import Infinite, Summary, evaluate, summarize, summary_rows
from variational_diffusion.model import VDM, build
from variational_diffusion.numerics import bits_per_dim
from variational_diffusion.presets import configure
from variational_diffusion.training import StepRecord, TrainingState, fit

_DEFAULT_MINUTES = 10
_LOG_STEPS = 50
_VALIDATION_EXAMPLES = 512  # enough to follow the run; `vdm evaluate` takes them all


@click.command()
@click.argument("data")
@click.option("--run", "directory", required=True, help="Directory of the run.")
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
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@data_options
@speed_options
@device_options
def command(
    data: str,
    directory: str,
    every: float,
    as_json: bool,
    compile_mode: str,
    precision: str,
    device: str,
    threads: int | None,
    **options: Any,
) -> None:
    """Train a model on DATA, or go on with the run in --run if its configuration is the same.

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
    state, summary = train(
        directory,
        config,
        dataset,
        target,
        every=every,
        compile_mode=compile_mode,
        precision=precision,
    )
    if as_json:
        print_json(
            {
                "run": directory,
                "steps": state.step,
                "seconds": state.seconds,
                "validation": summary.as_json(),
            }
        )
        return
    print_table(
        f"{directory}: {state.step} steps in {state.seconds / 60:.1f} minutes",
        ["validation", "bits/dim"],
        summary_rows(summary),
    )
    click.echo(f"next: vdm evaluate {directory}   or: vdm sample {directory}", err=True)


def train(
    directory: str,
    config: RunConfig,
    dataset: Dataset,
    device: torch.device,
    *,
    every: float,
    compile_mode: str = "off",
    precision: str = "float32",
) -> tuple[TrainingState, Summary]:
    """Train until the budget is spent; validate and save every `every` seconds and at the end.

    SIGINT and SIGTERM end it after the step that is being done; leaving the loop for whatever
    reason saves the state. The directory is made once the model and the batches are known to be
    possible.
    """
    training = config.training
    vdm = build(config.model, seed=training.seed).to(device)
    training_batches(dataset, training.batch_size, training.seed)
    run = Run.start(directory, config)
    state = run.resume(device) or TrainingState.start(vdm, training)
    run.forget_metrics_after(state.step)
    speed_up(state.vdm, compile_mode=compile_mode, precision=precision)
    stream = training_batches(dataset, training.batch_size, training.seed, start=state.step)
    recent: list[StepRecord] = []
    saved_step, saved_at = state.step, time.monotonic()
    try:
        with Meter("training", "steps") as meter, stop_requested() as stopped:
            for record in fit(state, stream, training):
                recent.append(record)
                meter.update(record.progress, record.step, lambda: _short(state.vdm, recent))
                if len(recent) == _LOG_STEPS:
                    run.log(**_metrics(state.vdm, recent))
                    recent.clear()
                if stopped():
                    break
                if time.monotonic() - saved_at > every:
                    summary = _validate(run, state, dataset)
                    meter.message(
                        f"step {state.step}: validation {summary.bits_per_dim:.3f} bits/dim"
                    )
                    run.save(state)
                    saved_step, saved_at = state.step, time.monotonic()
    except DivergedError as error:
        kept = f"keeps its state of step {saved_step}" if saved_step else "has no state yet"
        saved_step = state.step  # what comes before a number that is not finite is no good either
        raise InputError(f"{error} and another --run; '{directory}' {kept}") from error
    finally:
        if state.step > saved_step:
            run.save(state)
    if stopped():
        click.echo(
            f"stopped after step {state.step}; the same command goes on from there", err=True
        )
        raise KeyboardInterrupt
    return state, _validate(run, state, dataset)


def _validate(run: Run, state: TrainingState, dataset: Dataset) -> Summary:
    """Evaluate the averaged weights on the validation split, and log it."""
    average = state.average.module
    split = dataset.splits["validation"].limit(_VALIDATION_EXAMPLES)
    device = next(average.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    bounds = evaluate(average, ordered_batches(split, 256), Infinite(2), generator=generator)
    summary = summarize(bounds, dimensions=average.dimensions)
    run.log(step=state.step, seconds=state.seconds, validation=summary.as_json())
    return summary


def _metrics(vdm: VDM, records: list[StepRecord]) -> dict[str, Any]:
    """Return the means over some steps, and the end points of the schedule after the last."""
    last = records[-1]
    gamma_0, gamma_1 = vdm.schedule.end_points.tolist()

    def bits(name: str) -> float:
        nats = torch.stack([getattr(record.bound, name).mean() for record in records])
        return float(bits_per_dim(nats, vdm.dimensions).mean())

    return {
        "step": last.step,
        "seconds": last.seconds,
        "train": {name: bits(name) for name in ("prior", "reconstruction", "diffusion")},
        "variance": _variance(vdm, records),
        "gradient_norm": float(torch.stack([r.gradient_norm for r in records]).mean()),
        "learning_rate": last.learning_rate,
        "gamma_0": gamma_0,
        "gamma_1": gamma_1,
    }


def _variance(vdm: VDM, records: list[StepRecord]) -> float:
    """Return the variance of the diffusion term of one example at one time, in (bits/dim)²."""
    nats = torch.cat([record.bound.diffusion for record in records])
    return float(bits_per_dim(nats, vdm.dimensions).var())


def _short(vdm: VDM, records: list[StepRecord]) -> str:
    """Return the mean bound of the steps since the last line of metrics, or of none yet."""
    if not records:
        return ""
    nats = torch.stack([record.bound.total.mean() for record in records]).mean()
    return f"{float(bits_per_dim(nats, vdm.dimensions)):.2f} bits/dim"


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
    for name in ("steps", "minutes", "seed", "batch_size", "learning_rate"):
        if options[name] is not None:
            settings[f"training.{name}"] = options[name]
    if settings.keys().isdisjoint({"training.steps", "training.minutes"}):
        settings["training.minutes"] = _DEFAULT_MINUTES
    return settings
