"""Comparison of runs: which examples are common to them, and who was trained on what.

Two figures are comparable only where they are of the same examples, and fair only where no model
was trained on them. Both are decided by the examples themselves and not by the configuration:
another seed of the splits makes test examples of one run training examples of the other.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from variational_diffusion.data import Dataset, Split
from variational_diffusion.data.values import examples_of
from variational_diffusion.errors import InputError
from variational_diffusion.likelihood import (
    Comparison,
    Estimator,
    check_comparable,
    compare_models,
    levels_of,
)
from variational_diffusion.likelihood.rounds import Progress
from variational_diffusion.model import VDM
from variational_diffusion.run.directory import Run
from variational_diffusion.run.examples import check_free, chosen_examples, own_data

Data = str | Path | np.ndarray | Tensor | Split | Dataset
"""What can be compared on: what the command line calls DATA, or examples in memory."""

_TOGETHER = 1024
"""Examples that are read together."""

_LOOKED_AT = 100_000
"""Training examples that are searched for copies: as many more would take minutes to read."""


def compare(
    *models: Run | VDM | Data,
    split: str | None = None,
    limit: int | None = None,
    estimator: Estimator | Sequence[Estimator] | None = None,
    condition: str = "own",
    weights: str = "ema",
    device: torch.device | str | None = None,
    names: Sequence[str] | None = None,
    rounds: int | None = None,
    target_se: float | None = None,
    batch_size: int = 250,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Compare two or more runs or models in pairs: the same examples, the same times and noise.

    compare(a, b) takes the test examples of run a, which have to be those of b; compare(a, b, data)
    takes others. `vdm compare` gives the same figures.

    models: runs and models, and after them DATA, if it is given: a string as on the command line;
        an array or a tensor, shape (n, *shape); a `Split`; a `Dataset`. Models without a run among
        them need it.
    split: "train", "validation" or "test"; None: the test split, or all examples of DATA.
    limit: so many examples, drawn at random with seed 0; None: all.
    condition: "own": a model with conditions gets those of the examples, if they have any; "none":
        −log p(x) without them.
    weights: of the runs. device: of the runs' models; None: that of a model, else the GPU if any.
    names: of the models; None: those of the runs' directories.
    target_se: `target_error` of `compare_models`, to which the other arguments go.

    Returns a `Comparison`: `.difference` of two (bits per dimension of the second minus the first),
    `.standard_error` and `.interval`; `.pairs` of more.
    Raises InputError for what is not comparable: other shapes or levels, and test examples that are
    not the same.
    """
    subjects, data = _parted(models)
    runs = [each for each in subjects if isinstance(each, Run)]
    names = tuple(names or names_of(subjects))
    given = next((each for each in subjects if isinstance(each, VDM)), None)
    if device is None and given is not None:
        device = given.schedule.gamma_0.device
    elif device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    vdms = [each.load(weights).to(device) if isinstance(each, Run) else each for each in subjects]
    check_comparable(vdms, names)
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
        examples = _in_memory(data, vdms[0], split)
        examples = examples if limit is None else examples.sample(limit)
        if condition == "none" or (examples.conditions is None and examples.degradation is None):
            for run in runs:
                check_free(run)
        splits, notes = [examples] * len(vdms), list(_seen(runs, _digests(examples)))
    if condition == "none":
        splits = [_unconditional(each) for each in splits]
    return compare_models(
        vdms,
        [
            each if vdm.condition is not None else _unconditional(each)
            for vdm, each in zip(vdms, splits, strict=True)
        ],
        estimator,
        names=names,
        rounds=rounds,
        target_error=target_se,
        batch_size=batch_size,
        seed=seed,
        notes=notes,
        progress=progress,
    )


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
            f"that none of them was trained on, as in: vdm compare {runs[0].path} {run.path} DATA"
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
    ours, theirs = (run.config.data.model_dump(exclude={"source"}) for run in (first, second))
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


def _in_memory(data: np.ndarray | Tensor | Split | Dataset, vdm: VDM, split: str | None) -> Split:
    """Return examples in memory as a split, of the model's kind."""
    if isinstance(data, Dataset):
        data = data.splits[split] if split is not None else data.everything()
    elif split is not None:
        raise InputError(f"split = '{split}': these examples are one split; leave it out")
    levels = levels_of(vdm)
    if not isinstance(data, Split):
        return examples_of(data, vdm.shape, levels)
    if data.shape != vdm.shape or data.levels != levels:
        raise InputError(
            f"data has shape {data.shape} and levels {data.levels}: "
            f"the models take shape {vdm.shape} and levels {levels}"
        )
    return data


def _unconditional(split: Split) -> Split:
    return replace(split, conditions=None, degradation=None)


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
