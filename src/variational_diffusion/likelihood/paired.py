"""Which of several models is better: differences of bits per dimension, measured in pairs.

Examples differ in bits per dimension by far more than two models do, and all models find the same
examples easy. The difference of two models on one example is therefore known much better than
either figure. Here every model sees the same examples, in the same batches, with the same times and
the same noise, and the standard error is that of the differences.

What is shared: each batch of each round has one seed, and all estimators draw from it in an order
that depends on the shapes alone, so networks, schedules and end points of their own change nothing.
Models see the same t, where two schedules have different γ(t); the same unit noise, scaled by the
sigma of each; the same probes of the divergence; and the same quantiles of the dequantisation. It
takes the same type of numbers, the same device and, for each model, an estimator with the same
number of draws. Otherwise the difference is still right, and its error larger.

Source: Miller, "Adding Error Bars to Evals: A Statistical Approach to Language Model Evaluations"
(2024), section 4.2, for pairing; Dunn, "Multiple Comparisons Among Means" (1961), for intervals
that hold together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from variational_diffusion.data import Split
from variational_diffusion.data.originals import file_column
from variational_diffusion.errors import InputError
from variational_diffusion.likelihood.estimators import ContinuousBound, Estimate, Estimator
from variational_diffusion.likelihood.rounds import (
    LARGEST_SHARE,
    MOST_EVALUATIONS,
    Progress,
    Round,
    check_rounds,
    enough,
    evaluate_rounds,
)
from variational_diffusion.likelihood.summary import (
    Summary,
    example_columns,
    summarize,
)
from variational_diffusion.machine.distributed import ALONE, Place
from variational_diffusion.model import VDM

PROBABILITY = 0.95
"""With which the intervals of all pairs hold together."""


@dataclass(frozen=True)
class Pair:
    """Two models on the same examples.

    first, second: positions of the models. summary: of the second's −log p(x) minus the first's, in
    bits per dimension: negative where the second is better. pairs: that are compared at once, for
    intervals that hold together.
    """

    first: int
    second: int
    summary: Summary
    pairs: int = 1

    @property
    def difference(self) -> float:
        """Bits per dimension of the second minus those of the first."""
        return self.summary.bits_per_dim

    @property
    def standard_error(self) -> float:
        """Of the difference, for the choice of the examples and the draws; NaN for one example."""
        return self.summary.standard_error

    @property
    def draws_error(self) -> float:
        """The part of it that is due to the draws; NaN for one round."""
        return self.summary.draws_error

    @property
    def degrees(self) -> float:
        """Degrees of freedom of the standard error; NaN for one example."""
        return self.summary.interval_degrees

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of the population's difference.

        Those of all pairs hold together with a probability of at least 95 % (Bonferroni): each has
        1 − 0.05/pairs. For two models it is the ordinary 95 % interval.
        """
        return self.summary.interval_with(1 - (1 - PROBABILITY) / self.pairs)

    @property
    def better(self) -> int | None:
        """The position of the better model; None where the interval has both signs or is zero."""
        low, high = self.interval
        if high < 0:
            return self.second
        return self.first if low > 0 else None

    def verdict(self, names: Sequence[str]) -> str:
        """Return the outcome in words. names: of all models."""
        n = self.summary.examples
        if n < 2:
            return "one example does not show a difference"
        low, high = self.interval
        name = interval_name(self.pairs)
        if self.difference == 0 == self.standard_error:
            return f"no difference: both give each of {n:,} examples the same bits"
        if self.better is None:
            return (
                f"no difference that {n:,} examples show; {name} of {names[self.second]} − "
                f"{names[self.first]}: {low:.4f} to {high:.4f}"
            )
        other = self.first if self.better == self.second else self.second
        low, high = sorted((abs(low), abs(high)))
        return (
            f"{names[self.better]} is better than {names[other]} by {abs(self.difference):.4f} "
            f"± {self.standard_error:.4f} bits/dim; {name} {low:.4f} to {high:.4f}"
        )

    def as_json(self, names: Sequence[str]) -> dict[str, Any]:
        """Return what a JSON object says, with None for what is not known. names: of all models."""
        numbers = {
            "difference": self.difference,
            "standard_error": self.standard_error,
            "draws_error": self.draws_error,
        }
        return {
            "first": names[self.first],
            "second": names[self.second],
            **{name: _known(value) for name, value in numbers.items()},
            "interval": [_known(value) for value in self.interval],
            "degrees": _known(self.degrees),
            "better": None if self.better is None else names[self.better],
        }


@dataclass(frozen=True)
class Comparison:
    """Several models on the same examples, and every pair of them.

    Attributes:
        names: Of the models.
        summaries: Of each model.
        pairs: Each (i, j) with i < j, in that order.
        rounds: Number of rounds of independent draws.
        bits: Bits per dimension of every example, shape (models, examples), the mean of the rounds.
        examples: The examples that the figures are of.
        notes: What a reader has to know, one line each.
    """

    names: tuple[str, ...]
    summaries: tuple[Summary, ...]
    pairs: tuple[Pair, ...]
    rounds: int
    bits: Float[Tensor, "models examples"]
    examples: Split
    notes: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """What the examples are, as "297 test examples"."""
        return self.examples.description

    @property
    def table(self) -> dict[str, np.ndarray]:
        """Columns by name, a row an example: its number and file, and bits of each model."""
        bits = zip(self.names, self.bits, strict=True)
        own = {"example": self.examples.positions, **file_column(self.examples)}
        return own | {name: column.numpy() for name, column in bits}

    @property
    def difference(self) -> float:
        """Of two models: bits per dimension of the second minus those of the first."""
        return self._only_pair.difference

    @property
    def standard_error(self) -> float:
        """Of two models: of the difference."""
        return self._only_pair.standard_error

    @property
    def interval(self) -> tuple[float, float]:
        """Of two models: the 95 % interval of the difference."""
        return self._only_pair.interval

    @property
    def interval_name(self) -> str:
        """What the interval of a pair is: "95 % interval for 3 pairs"."""
        return interval_name(len(self.pairs))

    @property
    def _only_pair(self) -> Pair:
        if len(self.pairs) > 1:
            raise InputError(
                f"{len(self.names)} models have {len(self.pairs)} differences: take one of .pairs, "
                "as in .pairs[0].difference"
            )
        return self.pairs[0]

    def __str__(self) -> str:
        lines = [f"{self.description}, {self.rounds} rounds"]
        lines += [
            f"{name}: {s.bits_per_dim:.4f} ± {s.standard_error:.4f} bits/dim"
            for name, s in zip(self.names, self.summaries, strict=True)
        ]
        lines += [pair.verdict(self.names) for pair in self.pairs]
        return "\n".join([*lines, *self.notes])

    def as_json(self) -> dict[str, Any]:
        """Return what a JSON object says."""
        return {
            **self.examples.as_json(),
            "models": [
                {"name": name, **summary.as_json()}
                for name, summary in zip(self.names, self.summaries, strict=True)
            ],
            "pairs": [pair.as_json(self.names) for pair in self.pairs],
            "probability": PROBABILITY,
            "description": self.description,
            "rounds": self.rounds,
            "notes": list(self.notes),
        }


def compare_models(
    models: Sequence[VDM],
    examples: Split | Sequence[Split],
    estimator: Estimator | Sequence[Estimator] | None = None,
    *,
    names: Sequence[str] | None = None,
    rounds: int | None = None,
    target_error: float | None = None,
    batch_size: int = 250,
    seed: int = 0,
    notes: Sequence[str] = (),
    place: Place = ALONE,
    progress: Progress | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Comparison:
    """Compare models on the same examples, with the same times and noise.

    models: two or more, of one shape and with the same levels, or all real-valued.
    examples: of all models; or a split for each, with the same examples in the same order, whose
        conditions may differ.
    estimator: of all models, or one for each; None: the bound for infinitely many steps, two draws.
    names: of the models; None: "model 1", "model 2", …
    rounds: of independent draws. target_error: go on until the error by the draws of every
        difference is at most this, in bits per dimension. With neither, rounds go on until that
        error is at most `LARGEST_SHARE` of the difference's standard error, as long as no model has
        more than `MOST_EVALUATIONS` evaluations for an example.
    notes: to be kept in the result, before those that are made here.
    batch_size, seed, place, progress, stopped: as in `evaluate_rounds`, with which each summary
        agrees to the last digit for the same rounds. Where it is stopped, the rounds that are whole
        count; KeyboardInterrupt is raised where none is.
    Raises InputError for fewer than two models, and for models whose bits per dimension are not
    comparable.
    """
    count = len(models)
    names = tuple(names or (f"model {i + 1}" for i in range(count)))
    check_comparable(models, names)
    check_rounds(rounds, target_error)
    splits = [examples] * count if isinstance(examples, Split) else list(examples)
    estimators = list(estimator) if isinstance(estimator, Sequence) else [estimator] * count
    chosen = [ContinuousBound(2) if each is None else each for each in estimators]
    if len(splits) != count or len(chosen) != count or len(names) != count:
        raise InputError(
            f"{count} models, {len(splits)} splits, {len(chosen)} estimators, {len(names)} names: "
            "give one for all models, or one for each"
        )
    table: list[list[Round]] = [[] for _ in models]
    pairs: list[Pair] = []
    expected = rounds or 2
    while True:
        number = len(table[0])
        found = []
        for i, (vdm, split, each) in enumerate(zip(models, splits, chosen, strict=True)):
            done = evaluate_rounds(
                vdm,
                split,
                each,
                rounds=1,
                first=number,
                batch_size=batch_size,
                seed=seed,
                place=place,
                progress=_part_of(progress, number, i, count, expected, len(split)),
                stopped=stopped,
            )
            if done.stopped:
                break
            found += done.rounds
        if len(found) < count:
            if not pairs:
                raise KeyboardInterrupt
            break
        for of_model, round_ in zip(table, found, strict=True):
            of_model.append(round_)
        pairs = _pairs(table, models[0].dimensions)
        if all(enough(pair.summary, number + 1, rounds, target_error) for pair in pairs):
            break
        if rounds is None:
            expected = max(_rounds_needed(pair, number + 1, target_error) for pair in pairs)
    dimensions = models[0].dimensions
    bits = [example_columns(*of, dimensions=dimensions)["bits_per_dim"] for of in table]
    return Comparison(
        names,
        tuple(summarize(*of, dimensions=dimensions) for of in table),
        tuple(pairs),
        len(table[0]),
        torch.stack(bits),
        splits[0],
        (*notes, *_notes(models, pairs, len(table[0]), asked=bool(rounds or target_error))),
    )


def check_comparable(models: Sequence[VDM], names: Sequence[str]) -> None:
    """Raise InputError for models whose bits per dimension cannot be compared."""
    if len(models) < 2:
        raise InputError(f"{len(models)} to compare: give two runs or models, or more")
    kinds = [(vdm.shape, vdm.levels) for vdm in models]
    for name, kind in zip(names[1:], kinds[1:], strict=True):
        if kind != kinds[0]:
            (shape, levels), (other_shape, other_levels) = kinds[0], kind
            raise InputError(
                f"'{names[0]}' models shape {shape} and levels {levels}, '{name}' shape "
                f"{other_shape} and levels {other_levels}: their bits per dimension cannot be "
                "compared; train both on the same data"
            )


def differences(first: Round, second: Round) -> Round:
    """Return the second's estimates minus the first's, term by term, of the same batches.

    Of two estimators whose terms have other names it is the total alone. Evaluations and failures
    are those of the model with more of them.
    """
    found = []
    for a, b in zip(first, second, strict=True):
        if a.terms.keys() == b.terms.keys():
            terms = {name: b.terms[name].double() - a.terms[name].double() for name in a.terms}
        else:
            terms = {"total": b.total.double() - a.total.double()}
        found.append(
            Estimate(terms, max(a.evaluations, b.evaluations), max(a.failures, b.failures))
        )
    return found


def _pairs(table: Sequence[Sequence[Round]], dimensions: int) -> list[Pair]:
    positions = list(itertools.combinations(range(len(table)), 2))
    return [
        Pair(
            i,
            j,
            summarize(*map(differences, table[i], table[j]), dimensions=dimensions),
            len(positions),
        )
        for i, j in positions
    ]


def _rounds_needed(pair: Pair, finished: int, target: float | None) -> int:
    """Return how many rounds there will be in all, by the variance of the draws so far."""
    summary = pair.summary
    wanted = LARGEST_SHARE * summary.standard_error if target is None else target
    if not summary.draws_error > 0 or not wanted > 0:
        return finished
    needed = math.ceil(finished * (summary.draws_error / wanted) ** 2)
    most = int(MOST_EVALUATIONS * finished / summary.evaluations)
    return needed if target is not None else min(needed, most)


def _part_of(
    progress: Progress | None, number: int, i: int, count: int, expected: int, examples: int
) -> Progress | None:
    """Return the progress of one model in one round, told as that of the whole."""
    if progress is None:
        return None
    before = number * count + i

    def tell(share: float, done: int, figure: Callable[[], str]) -> None:
        whole = max(expected, number + 1) * count
        progress(min(1.0, (before + share) / whole), before * examples + done, figure)

    return tell


def _notes(models: Sequence[VDM], pairs: Sequence[Pair], rounds: int, asked: bool) -> Iterator[str]:
    kinds = {(vdm.schedule.gamma_0.dtype, vdm.schedule.gamma_0.device.type): None for vdm in models}
    if len(kinds) > 1:
        names = " and ".join(f"{dtype} on {device}" for dtype, device in kinds)
        yield f"the models are {names}: they do not see the same noise, and the errors are larger"
    if len(pairs) > 1:
        yield (
            f"{len(pairs)} pairs: each interval is wider than a single one, so that all of them "
            "hold together with a probability of 95 % (Bonferroni)"
        )
    parts = [pair.draws_error / pair.standard_error for pair in pairs if pair.standard_error > 0]
    if not asked and max(parts, default=0.0) > LARGEST_SHARE:
        yield (
            f"the error of the draws is up to {max(parts):.0%} of a standard error after {rounds} "
            f"rounds; more of them make it smaller (--rounds {4 * rounds})"
        )


def interval_name(pairs: int) -> str:
    """Return what the interval of each of so many pairs is called."""
    return "95 % interval" if pairs == 1 else f"95 % interval for {pairs} pairs"


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
