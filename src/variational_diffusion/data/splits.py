"""Disjoint splits that a seed fixes."""

from __future__ import annotations

import numpy as np

from variational_diffusion.data.source import Source, Split
from variational_diffusion.errors import InputError


def share(n: int, fraction: float) -> int:
    """Return the number of examples in a share of n: rounded, at least one."""
    return max(1, round(n * fraction))


def random_splits(
    source: Source, *, validation: float, seed: int, test: float | int | Split
) -> dict[str, Split]:
    """Draw "train", "validation" and "test" out of all examples of `source`.

    One permutation, drawn from `seed`, gives its first examples to the test, the next to the
    validation and the others to the training; the test does not change with the validation's
    share, and the first n of each split are a random draw.

    validation: share of the source's examples, in (0, 1).
    test: a share, a number of examples, or a split that the source brought with it and that is
        kept as it is.
    Raises InputError when no example is left for the training.
    """
    n = len(source)
    order = np.random.default_rng(seed).permutation(n)
    n_validation = share(n, validation)
    n_test = test if isinstance(test, int) else 0
    if isinstance(test, float):
        n_test = share(n, test)
    rest = n - n_test - n_validation
    if rest < 1:
        raise InputError(
            f"{n} examples: {n_validation} for the validation and {n_test} for the test leave none "
            "for the training; give at least 3 examples, or smaller --validation and --test shares"
        )
    drawn = Split(source, order[:n_test])
    return {
        "train": Split(source, order[n_test + n_validation :]),
        "validation": Split(source, order[n_test : n_test + n_validation]),
        "test": test if isinstance(test, Split) else drawn,
    }
