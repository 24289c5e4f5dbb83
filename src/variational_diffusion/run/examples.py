"""The examples of a run: its own data, or others of their kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from variational_diffusion.config import DataConfig
from variational_diffusion.data import Dataset, Split, open_dataset
from variational_diffusion.data.memory import in_order
from variational_diffusion.data.values import examples_of
from variational_diffusion.errors import InputError
from variational_diffusion.model import VDM
from variational_diffusion.run.directory import Run
from variational_diffusion.run.own_data import check_known, opened_own

Data = str | Path | np.ndarray | Tensor | Split | Dataset
"""What can be measured: what the command line calls DATA, or examples in memory."""

_OTHERS = {
    name: DataConfig.model_fields[name].default
    for name in ("streaming", "shuffle_buffer", "lanes", "hold_out", "splits", "group")
}
"""How other data are read: as a whole, since a stream has only a sample of its examples at hand,
and not split as the run's own."""


def check_free(run: Run) -> None:
    """Raise `InputError` where the model never learned to do without a condition."""
    if run.config.model.condition is not None and not run.config.training.condition_dropout:
        raise InputError(
            f"run = '{run.path}' was trained with condition_dropout = 0, so it knows no examples "
            "without a condition: no guidance, no --condition none; train another with the default"
        )


def chosen_examples(
    run: Run, data: str | None, split: str | None, limit: int | None, *, condition: str = "own"
) -> Split:
    """Return the examples that a command names; those of other data must be of the model's kind.

    split: None for the test examples of the run's own data, and for all examples of other data.
    limit: so many of them are drawn at random, see `Split.sample`; None: all.
    condition: "own" for a model with conditions: they come with the examples; "none": they do not.
    """
    dataset = _opened(run, data, condition)
    if split is None and data is not None:
        chosen = dataset.everything()
    else:
        chosen = dataset.splits[split or "test"]
    return chosen if limit is None else chosen.sample(limit)


def examples_for(
    subject: Run | VDM,
    data: Data | None,
    split: str | None,
    limit: int | None,
    *,
    condition: str = "own",
) -> Split:
    """Return the examples that a call names, of the kind that a run or a model takes.

    data: None for a run's own; otherwise see `Data`. The other arguments are those of
    `chosen_examples`. Examples in memory have no conditions but those that a `Split` holds.
    """
    if isinstance(data, str | Path | None):
        if isinstance(subject, Run):
            return chosen_examples(
                subject, None if data is None else str(data), split, limit, condition=condition
            )
        if data is None:
            raise InputError(
                "data = None: a model without a run needs examples; give an array, a tensor, a "
                "split or what the command line calls DATA"
            )
        data = open_dataset(DataConfig(source=str(data), levels=subject.levels))
    if isinstance(subject, Run):
        shape, levels = subject.config.model.shape, subject.config.data.levels
        given = subject.config.model.condition is not None
    else:
        shape, levels, given = subject.shape, subject.levels, subject.condition is not None
    examples = in_memory(data, shape, levels, split)
    examples = examples if limit is None else examples.sample(limit)
    if isinstance(subject, Run) and given and not has_conditions(examples):
        check_free(subject)
    return without_conditions(examples) if condition == "none" else examples


def in_memory(
    data: np.ndarray | Tensor | Split | Dataset,
    shape: tuple[int, ...],
    levels: int | None,
    split: str | None = None,
) -> Split:
    """Return examples in memory as a split, of the kind of a model of this shape and levels."""
    if isinstance(data, Dataset):
        data = data.splits[split] if split is not None else data.everything()
    elif split is not None:
        raise InputError(f"split = '{split}': these examples are one split; leave it out")
    if not isinstance(data, Split):
        return examples_of(in_order(data), shape, levels)
    if data.shape != shape or data.levels != levels:
        raise InputError(
            f"data has shape {data.shape} and levels {data.levels}: "
            f"the model takes shape {shape} and levels {levels}"
        )
    return data


def has_conditions(split: Split) -> bool:
    """Return whether examples come with their conditions."""
    return split.conditions is not None or split.degradation is not None


def without_conditions(split: Split) -> Split:
    """Return the examples without their conditions."""
    return replace(split, conditions=None, degradation=None)


def own_data(run: Run, *, condition: str = "own") -> Dataset:
    """Return the run's data; raise `InputError` where they are gone, or of another kind now."""
    return _opened(run, None, condition)


def other_examples(run: Run, data: str, shape: tuple[int, ...]) -> Split:
    """Return all examples of data of another shape, with as many levels as the run's."""
    config = run.config.data
    changes = {"source": data, "resize": None, "crop": None, "condition": None, **_OTHERS}
    dataset = open_dataset(config.model_copy(update=changes))
    if dataset.shape != shape or dataset.levels != config.levels:
        raise InputError(
            f"data = '{data}' has shape {dataset.shape} and levels {dataset.levels}: "
            f"here it has to have shape {shape} and levels {config.levels}"
        )
    return dataset.everything()


def _attached(run: Run, condition: str) -> Dataset | None:
    """Return the data that the run brings with it, if it does."""
    return run.data.unconditioned() if run.data and condition == "none" else run.data


def _opened(run: Run, data: str | None, condition: str) -> Dataset:
    config = run.config.data
    if condition == "none":
        config = config.model_copy(update={"condition": None})
    if data is not None:
        config = config.model_copy(update={"source": data, **_OTHERS})
    try:
        dataset = _attached(run, condition) if data is None else open_dataset(config)
        dataset = dataset or opened_own(config)
    except InputError as error:
        if data is None or not str(error).startswith("condition = "):
            raise
        raise InputError(f"{error}; or do without, with --condition none") from error
    model = run.config.model
    if dataset.shape != model.shape or dataset.levels != config.levels:
        raise InputError(
            f"data = '{config.source}' has shape {dataset.shape} and levels {dataset.levels}: "
            f"the model in '{run.path}' takes shape {model.shape} and levels {config.levels}"
        )
    if data is None:
        check_known(run, dataset)
    if run.config.model.condition is not None and dataset.labels is not None:
        dataset = dataset.labelled(run.config.model.condition.options["names"])
    return dataset
