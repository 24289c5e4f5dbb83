"""--steps, --grid and --variance: the chain of T steps that a command uses."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, TypeVar

import click
import torch

from variational_diffusion.checkpoint import Run
from variational_diffusion.cli.console import Meter
from variational_diffusion.data import open_dataset
from variational_diffusion.data.loader import training_batches
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
from variational_diffusion.model import VDM
from variational_diffusion.profile import noise_errors

Command = TypeVar("Command", bound=Callable[..., Any])

_EVALUATIONS = 20_000
_BATCH = 200


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
    measured = grid in MEASURED or variance != "posterior"
    errors = measured_errors(run, vdm, weights) if measured else None
    assumed = assumed_errors(variance, errors)
    widen(run, vdm, weights, variance)
    return step_grid(grid, vdm.schedule, steps, errors, assumed, stop=stop)


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


def measured_errors(run: Run, vdm: VDM, weights: str) -> NoiseErrors:
    """Return the model's errors E(ε − ε̂)²: those kept in the run, or measured now and kept."""
    errors = run.errors(weights)
    if errors is not None:
        return errors
    split = open_dataset(run.config.data).splits["validation"]
    size = min(_BATCH, len(split))
    count = -(-_EVALUATIONS // size)
    generator = torch.Generator(vdm.schedule.gamma_0.device).manual_seed(0)
    with Meter("measuring the model's errors", "evaluations") as meter:
        examples = itertools.islice(training_batches(split, size, 0), count)
        for i, so_far in enumerate(noise_errors(vdm, examples, generator=generator), 1):
            meter.update(i / count, i * size, lambda: "")
            errors = so_far
    assert errors is not None
    errors = errors.smoothed()
    run.save_errors(errors, weights)
    return errors
