"""Comparison of runs: which examples are common to them, and who was trained on what.

Two figures are comparable only where they are of the same examples, and fair only where no model
was trained on them. Both are decided by the examples themselves and not by the configuration:
another seed of the splits makes test examples of one run training examples of the other.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from variational_diffusion.data import Split
from variational_diffusion.errors import InputError, whole
from variational_diffusion.escaping import typed
from variational_diffusion.likelihood import (
    Comparison,
    Estimator,
    check_comparable,
    compare_models,
)
from variational_diffusion.machine.distributed import here
from variational_diffusion.machine.execution import execution_of
from variational_diffusion.machine.progress import Listener, telling
from variational_diffusion.model import VDM
from variational_diffusion.run.directory import Run
from variational_diffusion.run.evaluation import asked_estimator, estimator_for
from variational_diffusion.run.examples import (
    Data,
    check_free,
    chosen_examples,
    has_conditions,
    in_memory,
    own_data,
    without_conditions,
)
from variational_diffusion.run.trained import Trained

_TOGETHER = 1024
"""Examples that are read together."""

_LOOKED_AT = 100_000
"""Training examples that are searched for copies: as many more would take minutes to read."""


def compare(
    *models: Run | VDM | Data,
    split: str | None = None,
    limit: int | None = None,
    estimator: str | Estimator | Sequence[Estimator] = "vlb",
    draws: int | None = None,
    condition: str = "own",
    weights: str = "ema",
    names: Sequence[str] | None = None,
    rounds: int | None = None,
    target_se: float | None = None,
    batch_size: int = 250,
    seed: int = 0,
    progress: bool | Listener = False,
    stopped: Callable[[], bool] = lambda: False,
    **options: Any,
) -> Comparison:
    """Compare two or more runs or models in pairs: the same examples, the same times and noise.

    compare(a, b) takes the test examples of run a, which have to be those of b; compare(a, b, data)
    takes others. `vdm compare` gives the same figures.

    Args:
        *models: Runs and models, and after them data, if they are given: as at `evaluate`. Models
            without a run among them need them.
        split: As at `evaluate`.
        limit: As at `evaluate`.
        estimator: As at `evaluate`, or one for each model.
        draws: As at `evaluate`.
        condition: As at `evaluate`.
        weights: Of the runs, as at `evaluate`.
        names: Of the models; None: those of the runs' directories.
        rounds: As at `evaluate`, for the errors of the differences.
        target_se: As at `evaluate`, for the errors of the differences.
        batch_size: As at `evaluate`.
        seed: As at `evaluate`.
        progress: As at `evaluate`.
        stopped: As at `evaluate`.
        **options: As at `evaluate`.

    Returns:
        The difference of every pair, with its error and interval.

    Raises:
        InputError: For models of other shapes or levels, and for runs whose test examples are not
            the same.

    Examples:
        >>> trained, untrained = run.model(), vd.build(run.config.model).eval()
        >>> x = vd.open_dataset("digits").splits["test"].sample(50)
        >>> c = vd.compare(untrained, trained, x, rounds=2, names=["untrained", "trained"])
        >>> c.difference < 0, c.interval[1] < 0  # training helped, beyond doubt
        (True, True)
    """
    whole("seed", seed, 0)
    execution, options = execution_of(options)
    subjects, data = _parted(models)
    runs = [each for each in subjects if isinstance(each, Run)]
    names = tuple(names or names_of(subjects))
    given = next((each for each in subjects if isinstance(each, VDM)), None)
    if given is not None and execution.device == "auto":
        execution = replace(execution, device=str(given.device))
    with execution.begun():
        opened = [
            Trained.open(each, weights, execution) if isinstance(each, Run) else each
            for each in subjects
        ]
        vdms = [each.vdm if isinstance(each, Trained) else each for each in opened]
        check_comparable(vdms, names)
        if condition == "none":
            for run in runs:
                check_free(run)
        splits, notes = _examples(subjects, data, split, limit, condition, vdms)
        asked: Sequence[str | Estimator]
        asked = [estimator] * len(vdms) if isinstance(estimator, str | Estimator) else estimator
        each = [asked_estimator(own, vdms[0].dimensions, draws, options) for own in asked]
        if len(each) != len(vdms):
            raise InputError(f"{len(each)} estimators for {len(vdms)} models: give one for each")
        fitted = [
            estimator_for(subject, one, progress=progress)
            for subject, one in zip(opened, each, strict=True)
        ]
        place = here()
        with telling(progress if place.leads else False, "comparing", "examples") as tell:
            return compare_models(
                [model for model, _ in fitted],
                [
                    each if vdm.condition is not None else without_conditions(each)
                    for vdm, each in zip(vdms, splits, strict=True)
                ],
                [one for _, one in fitted],
                names=names,
                rounds=rounds,
                target_error=target_se,
                batch_size=batch_size,
                seed=seed,
                notes=notes,
                place=place,
                progress=tell,
                stopped=stopped,
            )


def _examples(
    subjects: Sequence[Run | VDM],
    data: Data | None,
    split: str | None,
    limit: int | None,
    condition: str,
    vdms: Sequence[VDM],
) -> tuple[list[Split], list[str]]:
    """Return the examples for each of the models, and notes of one line each."""
    runs = [each for each in subjects if isinstance(each, Run)]
    if isinstance(data, str | Path | None):
        if not runs:
            raise InputError(
                f"data = {data!r}: models without a run need the examples themselves; give an "
                "array, a tensor or a split"
            )
        of_runs, notes = common_examples(
            runs, None if data is None else str(data), split, limit, condition=condition
        )
        left = iter(of_runs)
        splits = [next(left) if isinstance(each, Run) else of_runs[0] for each in subjects]
    else:
        examples = in_memory(data, vdms[0].shape, vdms[0].levels, split)
        examples = examples if limit is None else examples.sample(limit)
        if condition == "none" or not has_conditions(examples):
            for run in runs:
                check_free(run)
        splits, notes = [examples] * len(vdms), list(_seen(runs, _digests(examples)))
    if condition == "none":
        splits = [without_conditions(each) for each in splits]
    return splits, notes


def common_examples(
    runs: Sequence[Run],
    data: str | None,
    split: str | None,
    limit: int | None,
    *,
    condition: str = "own",
) -> tuple[list[Split], list[str]]:
    """Return the examples of a comparison as each run takes them, and notes of one line each.

    The arguments are those of `examples.chosen_examples`. All splits hold the same examples in the
    same order; their conditions are each run's own.
    Raises InputError where they do not, with how many of them the other run was trained on.
    """
    splits = [chosen_examples(run, data, split, limit, condition=condition) for run in runs]
    first, names = _digests(splits[0]), names_of(runs)
    for run, name, each in zip(runs[1:], names[1:], splits[1:], strict=True):
        if _digests(each) == first:
            continue
        if data is not None:
            raise InputError(
                f"'{names[0]}' and '{name}' read '{data}' differently "
                f"({'; '.join(_reading(runs[0], run)) or 'their data have changed'}): a comparison "
                "needs the same examples; train both with the same data options"
            )
        copies = training_copies(run, first)
        seen = (
            "" if not copies else f", and it was trained on {copies} of these {len(first)} examples"
        )
        raise InputError(
            f"'{name}' has other {split or 'test'} examples than '{names[0]}'{seen}: give data "
            "that none of them was trained on, as in: "
            f"vdm compare {typed(runs[0].path, run.path)} DATA"
        )
    notes = list(_seen(runs, first)) if data is not None else []
    return splits, notes


def training_copies(run: Run, digests: Sequence[bytes]) -> int | None:
    """Return how many of some examples are training examples of a run, value for value.

    None where it is not known: the training data are streamed, or gone. Of more than 100,000
    training examples, so many are looked at.
    """
    try:
        dataset = own_data(run)
    except InputError:
        return None
    if dataset.stream is not None:
        return None
    train = set(_digests(dataset.splits["train"].sample(_LOOKED_AT)))
    return sum(digest in train for digest in digests)


def _seen(runs: Sequence[Run], digests: Sequence[bytes]) -> Iterator[str]:
    """Yield a line for each run that was trained on some of the examples, or may have been."""
    known: dict[str, int | None] = {}
    for run, name in zip(runs, names_of(runs), strict=True):
        key = run.config.data.model_dump_json()
        if key not in known:
            known[key] = training_copies(run, digests)
        copies = known[key]
        if copies is None:
            yield f"'{name}': its training data are not here; it may have seen these examples"
        elif copies:
            yield f"'{name}' was trained on {copies} of these {len(digests)} examples"


def _digests(split: Split) -> list[bytes]:
    """Return a digest of the values of each example, whatever type they are kept in."""
    found = []
    for first in range(0, len(split), _TOGETHER):
        rows = split.read(np.arange(first, min(first + _TOGETHER, len(split))))
        rows = np.ascontiguousarray(rows, "<f8" if split.levels is None else "<u2")
        found += [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]
    return found


def _reading(first: Run, second: Run) -> list[str]:
    """Return what differs in how two runs read data."""
    ours, theirs = (
        run.config.data.model_dump(exclude={"source", "splits"}) for run in (first, second)
    )
    return [
        f"{name}: {ours[name]} and {theirs[name]}" for name in ours if ours[name] != theirs[name]
    ]


def _parted(given: Sequence[Run | VDM | Data]) -> tuple[list[Run | VDM], Data | None]:
    """Return the runs and models, and the data that may come after them."""
    subjects: list[Run | VDM] = []
    data: Data | None = None
    for i, each in enumerate(given):
        if isinstance(each, Run | VDM):
            subjects.append(each)
        elif i == len(given) - 1 and len(subjects) > 1:
            data = each
        else:
            raise InputError(
                f"argument {i + 1} is {type(each).__name__}: give two or more runs or models and "
                "then the data, as in compare(Run.open('a'), Run.open('b'), data)"
            )
    return subjects, data


def names_of(subjects: Sequence[Run | VDM]) -> list[str]:
    """Return a name for each: of a run's directory, or its path where two have the same.

    They differ; a model without a run is called by its position, as in "model 2".
    """
    own = [
        each.path.resolve().name if isinstance(each, Run) else f"model {i + 1}"
        for i, each in enumerate(subjects)
    ]
    twice = {name for name, count in Counter(own).items() if count > 1}
    found: list[str] = []
    for each, name in zip(subjects, own, strict=True):
        base = str(each.path) if name in twice and isinstance(each, Run) else name
        number = 1 + sum(other == base or other.startswith(f"{base} (") for other in found)
        found.append(base if number == 1 else f"{base} ({number})")
    return found
