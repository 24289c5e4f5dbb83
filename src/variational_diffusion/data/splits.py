"""Disjoint splits that a seed fixes."""

from __future__ import annotations

from typing import Any

import numpy as np

from variational_diffusion.config import DataConfig
from variational_diffusion.data.source import Source, Split
from variational_diffusion.errors import InputError


def share(n: int, fraction: float) -> int:
    """Return the number of examples in a share of n: rounded, at least one."""
    return max(1, round(n * fraction))


def splits_of(
    config: DataConfig, source: Source, conditions: np.ndarray | None = None, **own: Any
) -> dict[str, Split]:
    """Return the `random_splits` that a configuration asks for; `own` in place of its shares."""
    shares = {"validation": config.validation, "test": config.test} | own
    return random_splits(source, seed=config.split_seed, conditions=conditions, **shares)


def random_splits(
    source: Source,
    *,
    validation: float | Split,
    seed: int,
    test: float | int | Split,
    conditions: np.ndarray | None = None,
) -> dict[str, Split]:
    """Draw "train", "validation" and "test" out of all examples of `source`.

    One permutation, drawn from `seed`, gives its first examples to the test, the next to the
    validation and the others to the training; the test does not change with the validation's
    share.

    validation: a share of the source's examples, in (0, 1), or a split as for `test`.
    test: a share, a number of examples, or a split that the source brought with it and that is
        kept as it is.
    conditions: of the source's examples, see `Split`.
    Raises InputError when no example is left for the training.
    """
    n = len(source)
    order = np.random.default_rng(seed).permutation(n)
    n_validation = 0 if isinstance(validation, Split) else share(n, validation)
    n_test = test if isinstance(test, int) else 0
    if isinstance(test, float):
        n_test = share(n, test)
    rest = n - n_test - n_validation
    if rest < 1:
        raise InputError(
            f"{n} examples: {n_validation} for the validation and {n_test} for the test leave none "
            "for the training; give at least 3 examples, or smaller --validation and --test shares"
        )
    drawn = np.split(order, [n_test, n_test + n_validation])
    made = [Split(source, indices, conditions=conditions) for indices in drawn]
    return {
        "train": made[2],
        "validation": validation if isinstance(validation, Split) else made[1],
        "test": test if isinstance(test, Split) else made[0],
    }
