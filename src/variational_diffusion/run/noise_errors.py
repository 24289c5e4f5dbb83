"""The errors of a run's model, measured once and kept in the run, and the steps made of them.

What a model's errors are is measured on validation examples: on training examples they would be too
small. Where the run's data are gone, they are measured on the examples that a command is given.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import torch

from variational_diffusion.conditions import Batch
from variational_diffusion.data import Split
from variational_diffusion.data.loader import measuring_batches
from variational_diffusion.errors import DamagedFileError, GoneError, InputError
from variational_diffusion.escaping import typed
from variational_diffusion.grids import (
    MEASURED,
    Gammas,
    NoiseErrors,
    PredictedErrors,
    assumed_errors,
    step_grid,
    variance_named,
)
from variational_diffusion.likelihood.loss_profile import noise_errors, predictions
from variational_diffusion.machine.progress import Listener, nothing, telling
from variational_diffusion.model import VDM
from variational_diffusion.run.examples import own_data
from variational_diffusion.run.trained import Trained
from variational_diffusion.storage.files import cached

Kept = TypeVar("Kept")

LOG = logging.getLogger(__name__)

_EVALUATIONS = 20_000
_BATCH = 200
_FEW = 100  # examples, below which errors are said to be rough
_PREDICTIONS = 10  # examples for every bin of γ


class ReverseChain(NamedTuple):
    """A model with a reverse variance, and the grid of its steps."""

    model: VDM
    gammas: Gammas


def reverse_chain(
    trained: Trained,
    steps: int,
    grid: str = "time",
    variance: str = "posterior",
    *,
    stop: float | None = None,
    progress: bool | Listener = False,
) -> ReverseChain:
    """Return the run's model with a reverse variance of `VARIANCES`, and a grid of `GRIDS` for it.

    Where they need the model's errors, these are measured the first time and kept in the run.
    stop: see `grids.step_grid`.
    """
    model = widened(trained, variance, progress=progress)
    measured: tuple[NoiseErrors | None, NoiseErrors | None] = (None, None)
    if grid == "optimal":
        measured = expected_errors(trained, variance, progress=progress)
    elif grid in MEASURED:
        measured = measured_errors(trained, progress=progress), None
    return ReverseChain(model, step_grid(grid, model.schedule, steps, *measured, stop=stop))


def widened(
    trained: Trained,
    variance: str,
    *,
    measure: bool = True,
    progress: bool | Listener = False,
) -> VDM:
    """Return the run's model with the reverse variance of a name of `VARIANCES`.

    measure: whether errors that the run does not hold are measured and kept in it. Otherwise they
    are an `InputError`.
    """
    kind = variance_named(variance)
    if kind.assumed is None:
        return trained.vdm.widened(None)
    errors = measured_errors(trained, measure=measure, progress=progress)
    if kind.predicted:
        return trained.vdm.widened(_predicted(trained, errors))
    return trained.vdm.widened(assumed_errors(variance, errors))


def expected_errors(
    trained: Trained, variance: str, *, progress: bool | Listener = False
) -> tuple[NoiseErrors, NoiseErrors | None]:
    """Return the model's errors and what a name of `VARIANCES` takes them to be, for a grid."""
    if variance_named(variance).predicted:
        return predicted_errors(trained, progress=progress)
    errors = measured_errors(trained, progress=progress)
    return errors, assumed_errors(variance, errors)


def predicted_errors(
    trained: Trained, *, progress: bool | Listener = False
) -> tuple[NoiseErrors, NoiseErrors]:
    """Return errors sorted by what the run's head predicts: kept in the run, or measured now."""
    run, weights = trained.run, trained.weights
    kept = trained.measured.get("predictions") or _kept(run.predictions, weights)
    if kept is not None:
        return kept
    head = _predicted(trained, measured_errors(trained, progress=progress))
    bins = len(head.mean.gamma)
    title = "measuring the head's errors"
    examples, own = _validation(trained)
    batches = to_measure(examples, _PREDICTIONS, bins, title, progress=progress)
    generator = torch.Generator(trained.device).manual_seed(0)
    found = predictions(trained.vdm, head, batches, generator=generator)
    if own:
        with cached("the predicted errors of the model"):
            run.save_predictions(*found, weights)
    trained.measured["predictions"] = found
    return found


def measured_errors(
    trained: Trained, *, measure: bool = True, progress: bool | Listener = False
) -> NoiseErrors:
    """Return the model's errors E(ε − ε̂)²: those kept in the run, or measured now and kept.

    measure: whether they may be measured; otherwise `InputError` where there are none.
    """
    run, weights = trained.run, trained.weights
    errors = trained.measured.get("errors")
    if errors is None:
        errors = _kept(run.errors, weights) if measure else run.errors(weights)
    if errors is not None and bool(errors.error.isfinite().all()):  # once, few examples left gaps
        return errors
    if not measure:
        path = run.errors_path(weights)
        if path.exists():
            raise InputError(
                f"'{path}' holds errors of other weights than '{weights}' are now: the run was "
                "trained on since"
            )
        raise InputError(
            f"'{path}' is missing, the measured errors of the {weights} weights; bring it back"
        )
    title = "measuring the model's errors"
    examples, own = _validation(trained)
    batches = to_measure(examples, _BATCH, _EVALUATIONS // _BATCH, title, progress=progress)
    generator = torch.Generator(trained.device).manual_seed(0)
    *_, errors = noise_errors(trained.vdm, batches, generator=generator)
    errors = errors.smoothed()
    if own:
        with cached("the measured errors of the model"):
            run.save_errors(errors, weights)
    trained.measured["errors"] = errors
    return errors


def _kept(read: Callable[[str], Kept | None], weights: str) -> Kept | None:
    """Return what was measured before; None where that is damaged, since it can be done again."""
    try:
        return read(weights)
    except DamagedFileError as error:
        LOG.warning("%s; it is measured again", error)
        return None


def to_measure(
    split: Split,
    size: int,
    count: int,
    title: str,
    seed: int = 0,
    parts: int = 1,
    *,
    progress: bool | Listener = False,
) -> Iterator[Batch]:
    """Yield `measuring_batches`, so many, and tell how many evaluations they make."""
    if len(split) < _FEW:
        LOG.info(
            "%s: with fewer than %d examples, here %d, the estimate is rough; "
            "vdm train --validation SHARE sets how many are kept for it",
            title,
            _FEW,
            len(split),
        )
    with telling(progress, title, "evaluations") as tell:
        batches = measuring_batches(split, size, seed, parts=parts)
        for i, batch in enumerate(itertools.islice(batches, count), 1):
            yield batch
            tell(i / count, i * size, nothing)


def _predicted(trained: Trained, errors: NoiseErrors) -> PredictedErrors:
    """Return the errors that the run's head predicts."""
    head = trained.run.head(trained.weights)
    if head is None:
        raise InputError(
            f"variance = 'predicted': '{trained.run.path}' has no head for its {trained.weights} "
            f"weights; train one: vdm variance {typed(trained.run.path)}"
        )
    return PredictedErrors(errors, head.to(trained.device))


def _validation(trained: Trained) -> tuple[Split, bool]:
    """Return what errors are measured on, and whether it is the run's own validation split.

    What is measured on other examples, because its own are gone, is not kept in the run.
    """
    try:
        return own_data(trained.run).splits["validation"], True
    except GoneError as error:
        if trained.stand_in is None:
            raise
        try:
            examples = trained.stand_in()
        except InputError:
            raise error from None
        LOG.info("%s; until then the model's errors are measured on the examples given", error)
        return examples, False
