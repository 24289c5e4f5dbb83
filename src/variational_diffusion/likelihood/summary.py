"""Estimates of many examples as one figure, in bits per dimension, with honest errors.

Two things make a figure uncertain, and they are kept apart. The choice of the examples: another
test set would give another mean. And the draws of the estimate: the same test set, evaluated with
another seed, would too. Rounds of the same examples with draws of their own tell the second.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from variational_diffusion.errors import InputError
from variational_diffusion.likelihood.estimators import Estimate
from variational_diffusion.numerics import bits_per_dim

LEAST_DEGREES = 8
"""Degrees of freedom from which on the error of the draws is to be relied on."""


@dataclass(frozen=True)
class Summary:
    """Mean bits per dimension of a set of examples.

    standard_error: of `bits_per_dim` as a figure for the population that the examples were drawn
        from; it covers their choice and the draws. NaN for one example.
    draws_error: the part of it that is due to the draws: the standard error of `bits_per_dim` as a
        figure for these examples. NaN for one round. degrees: of freedom of its estimate.
    terms: that add up to `bits_per_dim`. evaluations: of the network for each example, in all.
    failures: examples for which an adaptive solver gave up.
    """

    examples: int
    bits_per_dim: float
    standard_error: float
    draws_error: float
    terms: dict[str, float]
    evaluations: float
    degrees: int = 0
    failures: int = 0

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the population's bits per dimension."""
        return (
            self.bits_per_dim - 1.96 * self.standard_error,
            self.bits_per_dim + 1.96 * self.standard_error,
        )

    def as_json(self) -> dict[str, Any]:
        """Return the fields for a JSON object, with None for what is not known."""
        values = {**asdict(self), "interval": list(self.interval)}
        return {k: None if _is_nan(v) else v for k, v in values.items()}


def summarize(*rounds: Iterable[Estimate], dimensions: int) -> Summary:
    """Summarise estimates of d = `dimensions` entries each, in batches, from one round or more.

    Every round holds the same examples in the same batches, estimated with other draws.
    """
    table = [list(estimates) for estimates in rounds]
    if not table or not table[0]:
        raise InputError("no examples: choose a split or a limit with one example or more")
    sizes = [[len(estimate.total) for estimate in row] for row in table]
    if any(row != sizes[0] for row in sizes):
        raise ValueError("rounds of different batches")
    total = torch.stack([_bits([e.total for e in row], dimensions) for row in table])
    if not bool(total.isfinite().all()):
        bad = int((~total.isfinite()).any(0).sum())
        raise InputError(
            f"bits per dimension of {bad} of {total.shape[1]} examples are not finite: "
            "the model has diverged there, or the data are far outside of what it was trained on"
        )
    examples = total.mean(0)
    n = len(examples)
    draws_error, degrees = _draws_error(total, sizes[0])
    names = table[0][0].terms
    return Summary(
        examples=n,
        bits_per_dim=float(examples.mean()),
        standard_error=float(examples.std() / math.sqrt(n)) if n > 1 else math.nan,
        draws_error=draws_error,
        terms={
            name: float(
                torch.stack([_bits([e.terms[name] for e in row], dimensions) for row in table])
                .mean(0)
                .mean()
            )
            for name in names
        },
        evaluations=sum(
            e.evaluations * size / n for row in table for e, size in zip(row, sizes[0], strict=True)
        ),
        degrees=degrees,
        failures=max(sum(e.failures for e in row) for row in table),
    )


def example_columns(
    *rounds: Iterable[Estimate], dimensions: int
) -> dict[str, Shaped[Tensor, " examples"]]:
    """Return what is known of every example, as columns: their number, bits/dim, terms, error.

    Rounds may end early, the first last: an example has the mean of those that reached it. "error"
    is the standard error by the draws of the example, NaN for one round.
    """
    table = [list(estimates) for estimates in rounds]
    columns: dict[str, list[Tensor]] = {}
    for of_batch in zip_longest(*table):
        estimates = [estimate for estimate in of_batch if estimate is not None]
        total = torch.stack([_bits([e.total], dimensions) for e in estimates])
        error = (
            total.std(0) / math.sqrt(len(estimates)) if len(estimates) > 1 else total[0] * math.nan
        )
        values = {"bits_per_dim": total.mean(0)}
        for name in estimates[0].terms:
            each = [_bits([e.terms[name]], dimensions) for e in estimates]
            values[name] = torch.stack(each).mean(0)
        values["error"] = error
        for name, value in values.items():
            columns.setdefault(name, []).append(value)
    joined = {name: torch.cat(values) for name, values in columns.items()}
    n = len(joined["bits_per_dim"]) if joined else 0
    return {"example": torch.arange(n), **joined}


def summary_rows(summary: Summary) -> list[tuple[str, str]]:
    """Return the rows of a table: the figure with its standard error, then its terms."""
    low, high = summary.interval
    rows = [("bits/dim", f"{summary.bits_per_dim:.4f} ± {summary.standard_error:.4f}")]
    if len(summary.terms) > 1:
        rows += [(f"  {name}", f"{value:.4f}") for name, value in summary.terms.items()]
    rows.append(("95 % interval", f"{low:.4f} to {high:.4f}"))
    if not math.isnan(summary.draws_error):
        rough = f", roughly (from {summary.degrees} differences)" if summary.degrees < 10 else ""
        rows.append(("error of the draws alone", f"± {summary.draws_error:.4f}{rough}"))
    rows.append(("examples", str(summary.examples)))
    rows.append(("network evaluations an example", f"{summary.evaluations:g}"))
    if summary.failures:
        rows.append(("solved by fixed steps", str(summary.failures)))
    return rows


def _bits(nats: Sequence[Tensor], dimensions: int) -> Tensor:
    return bits_per_dim(torch.cat(list(nats)).double().cpu(), dimensions)


def _draws_error(total: Tensor, sizes: list[int]) -> tuple[float, int]:
    """Return the standard error by the draws, and its degrees of freedom.

    The draws of a batch depend on each other (their times are spread evenly), those of different
    batches and rounds do not: the variance of a batch's mean between rounds is what counts.

    total: bits per dimension, shape (rounds, examples).
    """
    rounds, n = total.shape
    if rounds < 2:
        return math.nan, 0
    means = torch.stack([part.mean(1) for part in total.split(sizes, dim=1)], dim=1)
    share = torch.tensor(sizes, dtype=total.dtype) / n
    variance = (share.square() * means.var(0)).sum() / rounds
    return float(variance.sqrt()), len(sizes) * (rounds - 1)


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
