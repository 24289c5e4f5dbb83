"""Likelihoods of examples under a run or a model: what `vdm evaluate` does."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from variational_diffusion.data import Split
from variational_diffusion.data.loader import ordered_batches
from variational_diffusion.data.originals import file_column
from variational_diffusion.errors import InputError, whole
from variational_diffusion.images.pictures import save_sheet
from variational_diffusion.likelihood import (
    ContinuousBound,
    DiscreteBound,
    Estimator,
    Likelihood,
    Rounds,
    bits_of_entries,
    estimator_named,
    evaluate_rounds,
    example_columns,
    name_of,
    summarize,
)
from variational_diffusion.machine.distributed import here
from variational_diffusion.machine.execution import Execution, execution_of
from variational_diffusion.machine.progress import Listener, telling
from variational_diffusion.model import VDM
from variational_diffusion.run.directory import Run
from variational_diffusion.run.examples import (
    Data,
    check_free,
    examples_for,
    has_conditions,
    without_conditions,
)
from variational_diffusion.run.noise_errors import reverse_chain
from variational_diffusion.run.trained import Trained
from variational_diffusion.schedules import floor_note

_MAPS = 64


def evaluate(
    subject: Run | VDM | str | Path,
    data: Data | None = None,
    *,
    estimator: str | Estimator = "vlb",
    draws: int | None = None,
    split: str | None = None,
    limit: int | None = None,
    condition: str = "own",
    rounds: int | None = None,
    target_se: float | None = None,
    weights: str = "ema",
    batch_size: int = 250,
    seed: int = 0,
    progress: bool | Listener = False,
    stopped: Callable[[], bool] = lambda: False,
    **options: Any,
) -> Likelihood:
    """Estimate −log p(x) of examples under a run or a model, in bits per dimension.

    `vdm evaluate` gives the same figures.

    Args:
        subject: A run, its directory, or a model.
        data: What the command line calls DATA, an array or a tensor of shape (n, *shape), a `Split`
            or a `Dataset`. None: the run's own test examples.
        estimator: A name of `ESTIMATORS`, or an estimator such as `ODELikelihood()`.
        draws: Evaluations of the network for each example in a round, of the two bounds; of other
            estimators, the number of rounds.
        split: "train", "validation" or "test"; None: the test split, or all examples of `data`.
        limit: Number of examples, drawn at random with seed 0; None: all.
        condition: "own": a model with conditions gets those of the examples; "none": −log p(x)
            without them.
        rounds: Of independent draws; None: two, then more until their error is known and at most a
            quarter of the standard error, within 128 evaluations of the network an example.
        target_se: Go on until the error of the draws is at most this, in bits/dim.
        weights: Of a run: "ema", "raw", "best" or another name.
        batch_size: Examples at once.
        seed: Of the draws; one seed gives one figure.
        progress: True for a bar, or a callable that is given a `Progress`.
        stopped: Asked between two batches; where it is true, what was estimated so far is returned.
        **options: Those of the estimator, such as steps=50, and those of `Execution`: device,
            threads, precision, compile, channels_last.

    Returns:
        The figure with its errors, its terms, and a row for each example.

    Raises:
        InputError: For examples that are not of the model's kind, and options that do not go
            together.

    Examples:
        >>> r = vd.evaluate(run, limit=50, rounds=2)
        >>> len(r.table["bits_per_dim"]), r.standard_error < 0.2
        (50, True)
        >>> r.bits_per_dim == vd.evaluate("runs/digits", limit=50, rounds=2).bits_per_dim
        True
    """
    whole("seed", seed, 0)
    execution, options = execution_of(options)
    if isinstance(subject, str | Path):
        subject = Run.open(subject)
    with execution.begun():
        trained = Trained.open(subject, weights, execution) if isinstance(subject, Run) else None
        vdm = trained.vdm if trained else subject
        assert isinstance(vdm, VDM)
        if trained is None and execution != Execution(threads=execution.threads):
            raise InputError(
                f"device = {execution.device!r}, precision = {execution.precision!r}: a model "
                "computes as it was set up; call vdm.prepare before, or give its run"
            )
        estimator = asked_estimator(estimator, vdm.dimensions, draws, options)
        has_draws = isinstance(estimator, ContinuousBound | DiscreteBound)
        if draws is not None and not has_draws and rounds is None and target_se is None:
            rounds = draws
        if condition == "none" and trained:
            check_free(trained.run)
        examples = examples_for(subject, data, split, limit, condition=condition)
        if vdm.condition is None:
            examples = without_conditions(examples)
        if trained and data is not None:
            trained = replace(trained, stand_in=lambda: examples)
        model, chosen = estimator_for(trained or vdm, estimator, progress=progress)
        place = here()
        with telling(progress if place.leads else False, "evaluating", "examples") as tell:
            done = evaluate_rounds(
                model,
                examples,
                chosen,
                rounds=rounds,
                target_error=target_se,
                batch_size=batch_size,
                seed=seed,
                place=place,
                progress=tell,
                stopped=stopped,
            )
    about = {**examples.as_json(), "shape": list(vdm.shape), "levels": vdm.levels}
    about["condition"] = None
    if trained:
        about["weights"] = weights
        if has_conditions(examples):
            about["condition"] = trained.run.config.data.condition
    gammas = chosen.gammas if isinstance(chosen, DiscreteBound) else None
    about["steps"] = None if gammas is None else len(gammas) - 1
    return _likelihood(vdm, examples, name_of(chosen), done, about)


def asked_estimator(
    estimator: str | Estimator, dimensions: int, draws: int | None, options: dict[str, Any]
) -> Estimator:
    """Return an estimator by its name and options, or one with the draws that are asked for.

    Raises InputError for options beside an estimator that is given as a value.
    """
    if isinstance(estimator, str):
        return estimator_named(estimator, dimensions, draws=draws, **options)
    for name, value in options.items():
        raise InputError(f"{name} = {value!r}: give it to the estimator")
    if draws is not None and isinstance(estimator, ContinuousBound | DiscreteBound):
        return replace(estimator, draws=draws)
    return estimator


def estimator_for(
    subject: Trained | VDM, estimator: Estimator, *, progress: bool | Listener = False
) -> tuple[VDM, Estimator]:
    """Return an estimator with its grid, and the model with its variance to call it with."""
    vdm = subject.vdm if isinstance(subject, Trained) else subject
    if not isinstance(estimator, DiscreteBound) or estimator.gammas is not None:
        return vdm, estimator
    assert estimator.steps is not None
    if not isinstance(subject, Trained):
        return vdm, replace(estimator, gammas=estimator.own_grid(vdm), steps=None)
    model, gammas = reverse_chain(
        subject, estimator.steps, estimator.grid, estimator.variance, progress=progress
    )
    return model, replace(estimator, gammas=gammas, steps=None)


def _likelihood(
    vdm: VDM, examples: Split, estimator: str, done: Rounds, about: dict[str, Any]
) -> Likelihood:
    columns = example_columns(*done.rounds, dimensions=vdm.dimensions)
    table = {name: column.numpy() for name, column in columns.items()}
    count = len(table.pop("example"))  # fewer than examples where it was stopped
    if count == 0:
        raise KeyboardInterrupt
    own = {"example": examples.positions, **file_column(examples)}
    table = {**{name: column[:count] for name, column in own.items()}, **table}
    partial = done.stopped and len(done.rounds) == 1
    summary = summarize(*done.rounds, dimensions=vdm.dimensions) if partial else done.summary
    described = examples.description
    if done.stopped:
        described = f"{count:,} of {described}, where it was stopped"
    limited = floor_note(float(vdm.schedule.gamma_0), vdm.schedule.floor)
    return Likelihood(
        summary=summary,
        table=table,
        nats_per_example=table["bits_per_dim"] * vdm.dimensions * math.log(2),
        estimator=estimator,
        examples=described,
        rounds=len(done.rounds),
        notes=(*([] if partial else done.notes), *([limited] if limited else [])),
        stopped=done.stopped,
        about=about | {"floor": vdm.schedule.floor if limited else None},
    )


def save_maps(
    run: Run,
    data: Data | None,
    path: str | Path,
    *,
    split: str | None = None,
    limit: int | None = None,
    condition: str = "own",
    weights: str = "ema",
    seed: int = 0,
    **options: Any,
) -> None:
    """Write a sheet of 64 of the examples that `evaluate` takes, each beside a map of its bits.

    Maps are dark where bits are few and light where they are many.
    """
    execution, _ = execution_of(options)
    with execution.begun():
        vdm = Trained.open(run, weights, execution).vdm
        examples = examples_for(run, data, split, limit, condition=condition).sample(_MAPS)
        model, x = vdm.given_in(next(ordered_batches(examples, len(examples))))
        generator = torch.Generator(vdm.device).manual_seed(seed)
        bits = bits_of_entries(model, x, generator=generator).cpu().double().numpy()
    bits = bits.mean(1, keepdims=True)  # over the channels
    low, high = np.quantile(bits, [0.01, 0.99])
    shown = np.clip((bits - low) / max(high - low, 1e-9), 0, 1).repeat(x.shape[1], axis=1)
    images = x.cpu().double().numpy()
    least, most = (0.0, vdm.levels - 1.0) if vdm.levels else (images.min(), images.max())
    images = (images - least) / max(most - least, 1e-9)
    pairs = np.stack([images, shown], axis=1).reshape(-1, *x.shape[1:])
    save_sheet(pairs, None, path, columns=16, value_range=(0.0, 1.0))
