"""--steps, --grid and --variance: the chain of T steps that a command uses."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click
import torch

from variational_diffusion.cli.console import Meter
from variational_diffusion.conditions import Batch
from variational_diffusion.data import Split, open_dataset
from variational_diffusion.data.loader import measuring_batches
from variational_diffusion.errors import InputError
from variational_diffusion.grids import (
    GRIDS,
    MEASURED,
    VARIANCES,
    Gammas,
    NoiseErrors,
    PredictedErrors,
    assumed_errors,
    step_grid,
)
from variational_diffusion.likelihood.loss_profile import noise_errors, predictions
from variational_diffusion.model import VDM
from variational_diffusion.run.directory import Run

Command = TypeVar("Command", bound=Callable[..., Any])

_EVALUATIONS = 20_000
_BATCH = 200
_FEW = 100  # examples, below which errors are said to be rough
_PREDICTIONS = 10  # examples for every bin of γ


def chain_options(command: Command) -> Command:
    """Add --steps, --grid and --variance; `chain_of` acts on them."""
    for option in (
        click.option(
            "--variance",
            type=click.Choice(VARIANCES),
            help="Of the reverse steps: as in the paper (posterior, default), or widened by the "
            "measured error, one number a step (scalar), for each position, or predicted "
            "from z (after vdm variance).",
        ),
        click.option(
            "--grid",
            type=click.Choice(list(GRIDS)),
            help="Of the steps: uniform in time (default), in gamma, in a power of sigma/alpha "
            "(karras), for equal errors along the flow, or for the least bound (optimal).",
        ),
        click.option("--steps", type=click.IntRange(1), help="Steps T of the chain."),
    ):
        command = option(command)
    return command


def is_chain_option_given(options: dict[str, Any]) -> bool:
    """Tell whether --grid or --variance was given."""
    return options["grid"] is not None or options["variance"] is not None


def chain_of(run: Run, vdm: VDM, weights: str, options: dict[str, Any]) -> Gammas:
    """Give the model the reverse variance that the options ask for; return their grid.

    What the model's errors are is measured on the validation examples where it is needed, once, and
    kept in the run: on training examples they would be too small.
    """
    grid, variance = options["grid"] or "time", options["variance"] or "posterior"
    return grid_of(run, vdm, weights, grid, variance, options["steps"])


def grid_of(
    run: Run,
    vdm: VDM,
    weights: str,
    grid: str,
    variance: str,
    steps: int,
    stop: float | None = None,
) -> Gammas:
    """Give the model a reverse variance of `VARIANCES`; return a grid of `GRIDS` for it."""
    widen(run, vdm, weights, variance)
    measured: tuple[NoiseErrors | None, NoiseErrors | None] = (None, None)
    if grid == "optimal":
        measured = expected_errors(run, vdm, weights, variance)
    elif grid in MEASURED:
        measured = measured_errors(run, vdm, weights), None
    return step_grid(grid, vdm.schedule, steps, *measured, stop=stop)


def expected_errors(
    run: Run, vdm: VDM, weights: str, variance: str
) -> tuple[NoiseErrors, NoiseErrors | None]:
    """Return the model's errors and what a name of `VARIANCES` takes them to be, for a grid."""
    if variance == "predicted":
        return predictions_of(run, vdm, weights)
    errors = measured_errors(run, vdm, weights)
    return errors, assumed_errors(variance, errors)


def widen(run: Run, vdm: VDM, weights: str, variance: str) -> None:
    """Give the model the reverse variance of a name of `VARIANCES`."""
    if variance == "predicted":
        vdm.reverse_errors = predicted_errors(run, vdm, weights)
    else:
        errors = None if variance == "posterior" else measured_errors(run, vdm, weights)
        vdm.reverse_errors = assumed_errors(variance, errors)


def predicted_errors(run: Run, vdm: VDM, weights: str) -> PredictedErrors:
    """Return the errors that the run's head predicts."""
    head = run.head(weights)
    if head is None:
        raise InputError(
            f"variance = 'predicted': '{run.path}' has no head for its {weights} weights; "
            f"train one: vdm variance {run.path}"
        )
    errors = measured_errors(run, vdm, weights)
    return PredictedErrors(errors, head.to(vdm.schedule.gamma_0.device))


def predictions_of(run: Run, vdm: VDM, weights: str) -> tuple[NoiseErrors, NoiseErrors]:
    """Return errors sorted by what the run's head predicts: kept in the run, or measured now."""
    kept = run.predictions(weights)
    if kept is not None:
        return kept
    head = predicted_errors(run, vdm, weights)
    bins = len(head.mean.gamma)
    batches = to_measure(_validation(run), _PREDICTIONS, bins, "measuring the head's errors")
    generator = torch.Generator(vdm.schedule.gamma_0.device).manual_seed(0)
    found = predictions(vdm, head, batches, generator=generator)
    run.save_predictions(*found, weights)
    return found


def measured_errors(run: Run, vdm: VDM, weights: str) -> NoiseErrors:
    """Return the model's errors E(ε − ε̂)²: those kept in the run, or measured now and kept."""
    errors = run.errors(weights)
    if errors is not None and bool(errors.error.isfinite().all()):  # once, few examples left gaps
        return errors
    batches = to_measure(
        _validation(run), _BATCH, _EVALUATIONS // _BATCH, "measuring the model's errors"
    )
    generator = torch.Generator(vdm.schedule.gamma_0.device).manual_seed(0)
    *_, errors = noise_errors(vdm, batches, generator=generator)
    errors = errors.smoothed()
    run.save_errors(errors, weights)
    return errors


def _validation(run: Run) -> Split:
    return open_dataset(run.config.data).splits["validation"]


def to_measure(
    split: Split, size: int, count: int, title: str, seed: int = 0, parts: int = 1
) -> Iterator[Batch]:
    """Yield `measuring_batches`, so many, and show how many evaluations they make."""
    if len(split) < _FEW:
        click.echo(
            f"{title}: with fewer than {_FEW} examples, here {len(split)}, the estimate is rough; "
            "vdm train --validation SHARE sets how many are kept for it",
            err=True,
        )
    with Meter(title, "evaluations") as meter:
        batches = measuring_batches(split, size, seed, parts=parts)
        for i, batch in enumerate(itertools.islice(batches, count), 1):
            yield batch
            meter.update(i / count, i * size, lambda: "")
