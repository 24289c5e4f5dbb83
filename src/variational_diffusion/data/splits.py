"""Disjoint splits: by what the examples are, so that more of them do not move the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from variational_diffusion.config import DataConfig, SplitRule
from variational_diffusion.data.keys import keys_of_source
from variational_diffusion.data.source import Source, Split
from variational_diffusion.errors import InputError

IN_ORDER = SplitRule(by="order")
"""Of data that have a name of ours: they never change, and figures are of their splits."""

_DRAWS = 0.5
"""Share of different examples below which data are draws of few values, and copies no mistake."""


class Parts(NamedTuple):
    """Splits by their name, what decided on them, and the keys of their examples.

    content: of the split's examples, uint64, by the name of the split; see `data.keys`.
    """

    splits: dict[str, Split]
    rule: SplitRule
    content: dict[str, np.ndarray]


def share(n: int, fraction: float) -> int:
    """Return the number of examples in a share of n: rounded, at least one."""
    return max(1, round(n * fraction))


def splits_of(
    config: DataConfig,
    source: Source,
    conditions: np.ndarray | None = None,
    *,
    content: Mapping[str, np.ndarray] | None = None,
    groups: np.ndarray | None = None,
    **own: int | Split,
) -> Parts:
    """Split the examples of a source as a configuration asks.

    conditions: of the source's examples, see `Split`.
    content: the keys of all examples of the source, as "train", and of `own` splits by their names;
        None: they are made of the values, all of which are read once.
    groups: one number for each example of the source, the same for those that stay together; None:
        exact copies do.
    own: splits that the source brought with it, "validation" or "test", kept as they are; or a
        number of test examples, of data that are split in their order.
    """
    if content is None:
        content = {"train": keys_of_source(source)}
    shares = {"validation": config.validation, "test": config.test} | own
    rule = config.splits or _rule(config, content["train"] if groups is None else groups, shares)
    if rule.by == "order":
        splits = random_splits(source, seed=config.split_seed, conditions=conditions, **shares)
    else:
        of_sides = content["train"] if groups is None else groups
        if rule.by == "draws":
            of_sides = of_sides ^ _mixed(_occurrence(of_sides))
        splits = _drawn(source, _places(of_sides, config.split_seed), rule, conditions, own)
    keys = {}
    for name, split in splits.items():
        if split.source is source:
            keys[name] = content["train"][split.indices]
        else:
            keys[name] = content[name] if name in content else keys_of_source(split.source)
    return Parts(splits, rule, keys)


def _rule(config: DataConfig, keys: np.ndarray, shares: Mapping[str, float | Split]) -> SplitRule:
    """Return what decides on the sides of examples with these keys.

    The shares of a configuration are those of the numbers from 0 to 1, so that a side follows from
    the example alone. Where that leaves a split empty, its share is made just as large as one
    example needs.
    """
    test, validation = (
        0.0 if isinstance(part, Split) else float(part)
        for part in (shares["test"], shares["validation"])
    )
    by, needed = "content", 1 + (test > 0) + (validation > 0)
    if config.group is None and len(np.unique(keys)) < max(needed, _DRAWS * len(keys)):
        by, keys = "draws", keys ^ _mixed(_occurrence(keys))
    places = np.unique(_places(keys, config.split_seed))
    if len(places) < needed or test + validation >= 1:
        what = "examples" if config.group is None else f"groups of group = '{config.group}'"
        raise InputError(
            f"{len(places)} {what}, validation = {validation:g} and test = {test:g} leave none for "
            f"the training; give at least {needed} different ones, or smaller --validation and "
            "--test shares"
        )
    counts: list[int] = []
    left = len(places)
    for part, nominal in ((test, test), (validation, test + validation)):
        count = int(np.searchsorted(places, nominal)) - sum(counts)
        needed -= part > 0
        counts.append(min(max(count, 1), left - needed) if part > 0 else 0)
        left -= counts[-1]
    below = []
    for end, nominal in zip(np.cumsum(counts), (test, test + validation), strict=True):
        reached = int(np.searchsorted(places, nominal)) == end
        below.append(nominal if reached else float(places[end]))
    return SplitRule(by=by, below=(below[0], below[1]))


def _drawn(
    source: Source,
    places: np.ndarray,
    rule: SplitRule,
    conditions: np.ndarray | None,
    own: Mapping[str, int | Split],
) -> dict[str, Split]:
    """Return the splits of examples at places between 0 and 1, in the order of these."""
    order = np.argsort(places, kind="stable")
    first, last = np.searchsorted(places[order], rule.below)
    test, validation, train = np.split(order, [first, last])
    splits = {
        name: Split(source, indices, conditions=conditions)
        for name, indices in (("train", train), ("validation", validation), ("test", test))
    }
    splits |= {name: split for name, split in own.items() if isinstance(split, Split)}
    for name, split in splits.items():
        if not len(split):
            raise InputError(
                f"no example is left for the {name} split: the data have changed since they were "
                "split; bring the missing ones back, or train another run"
            )
    return splits


def _places(keys: np.ndarray, seed: int) -> np.ndarray:
    """Return a number in [0, 1) for every key, uniform over keys and over seeds."""
    return (_mixed(keys ^ _mixed(np.array([seed % 2**64], np.uint64))) >> np.uint64(11)) * 2.0**-53


def _mixed(x: np.ndarray) -> np.ndarray:
    """Return numbers of which every bit depends on all bits of x, uint64.

    Source: G. Steele, D. Lea, C. Flood, "Fast Splittable Pseudorandom Number Generators" (2014).
    """
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _occurrence(keys: np.ndarray) -> np.ndarray:
    """Return how many examples with the same key come before each, uint64."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(keys[order]) > 0])
    counts = np.diff(np.r_[starts, len(keys)])
    found = np.empty(len(keys), np.uint64)
    found[order] = np.arange(len(keys)) - np.repeat(starts, counts)
    return found


def random_splits(
    source: Source,
    *,
    validation: float | Split,
    seed: int,
    test: float | int | Split,
    conditions: np.ndarray | None = None,
) -> dict[str, Split]:
    """Draw "train", "validation" and "test" out of all examples of `source`, by their order.

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
