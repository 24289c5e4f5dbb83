"""Estimates of many examples as one figure, in bits per dimension, with honest errors.

Two things make a figure uncertain, and they are kept apart. The choice of the examples: another
test set would give another mean. And the draws of the estimate: the same test set, evaluated with
another seed, would too. Rounds of the same examples with draws of their own tell the second.

With Y_ri the estimate of example i in round r of R, of n examples, the whole is

    W² = (s² − b²)⁺/n + D²     s²: variance of the examples' means over rounds, Ȳ_i
                               b² = mean_i var_r(Y_ri)/R: what independent draws add to s²
                               D²: variance of the figure by the draws

and so D ≤ W. The times of a batch are spread evenly over its examples, so D² is far below b²/n, and
is measured as the variance of the batches' means between rounds. Where these give fewer than
`LEAST_DEGREES` degrees of freedom, D² = b²/n is taken, which has n(R − 1) for normal draws and is
what D² would be without the even spread: above it.

Draws of a bound are mostly near zero and rarely large, so few examples tell D. With v_i the
variance of example i over rounds, these are (Σv)²/Σv² examples (Kish, "Survey Sampling", 1965), and
D is given no more than 1 − 1/R times as many degrees of freedom.

The interval is Student's, with the degrees of freedom of W² by Satterthwaite's formula ("An
Approximate Distribution of Estimates of Variance Components", 1946), corrected for the skewness of
the examples (`numerics.mean_interval`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from variational_diffusion.errors import InputError
from variational_diffusion.likelihood.estimators import Estimate
from variational_diffusion.numerics import bits_per_dim, mean_interval, skewness

LEAST_DEGREES = 8
"""Degrees of freedom from which on the variance between rounds is relied on."""


@dataclass(frozen=True)
class Summary:
    """Mean bits per dimension of a set of examples.

    Attributes:
        examples: Number of examples.
        bits_per_dim: The mean.
        standard_error: Of `bits_per_dim` as a figure for the population that the examples were
            drawn from; it covers their choice and the draws. NaN for one example.
        draws_error: The part of it that is due to the draws: the standard error of `bits_per_dim`
            as a figure for these examples. At most `standard_error`; NaN for one round.
        terms: That add up to `bits_per_dim`.
        evaluations: Of the network for each example, in all.
        degrees: Of freedom of `draws_error`; 0 for one round.
        interval_degrees: Of freedom of `standard_error`.
        skewness: Of the distribution of `bits_per_dim`, g/√n with g that of the examples; 0 for two
            examples and fewer.
        failures: Examples for which an adaptive solver gave up.
    """

    examples: int
    bits_per_dim: float
    standard_error: float
    draws_error: float
    terms: dict[str, float]
    evaluations: float
    degrees: float = 0.0
    interval_degrees: float = math.nan
    skewness: float = 0.0
    failures: int = 0

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the population's bits per dimension; NaN for one example."""
        return self.interval_with()

    def interval_with(self, probability: float = 0.95) -> tuple[float, float]:
        """Return the interval that holds the population's figure with this probability."""
        return mean_interval(
            self.bits_per_dim,
            self.standard_error,
            self.interval_degrees,
            self.skewness,
            probability,
        )

    def as_json(self) -> dict[str, Any]:
        """Return the fields for a JSON object, with None for what is not known."""
        interval = None if math.isnan(self.standard_error) else list(self.interval)
        values = {**asdict(self), "interval": interval}
        return {k: None if _is_nan(v) else v for k, v in values.items()}


def summarize(*rounds: Iterable[Estimate], dimensions: int) -> Summary:
    """Summarise estimates of examples as one figure, in bits per dimension, with its errors.

    Args:
        *rounds: Estimates of the same examples in the same batches, each round with other draws.
        dimensions: Entries d of one example.

    Returns:
        The mean, its standard error, and the part of it that is due to the draws.

    Raises:
        InputError: For no examples, and for estimates that are not finite.

    Examples:
        >>> from variational_diffusion.likelihood import Estimate
        >>> nats = torch.log(torch.tensor([4.0, 16.0]))
        >>> s = vd.summarize([Estimate({"diffusion": nats})], dimensions=2)
        >>> round(s.bits_per_dim, 4)
        1.5
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
    errors = _errors(total, sizes[0])
    n = len(examples)
    names = table[0][0].terms
    return Summary(
        examples=n,
        bits_per_dim=float(examples.mean()),
        standard_error=errors.whole,
        draws_error=errors.draws,
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
        degrees=errors.degrees,
        interval_degrees=errors.degrees_of_whole,
        skewness=skewness(examples.numpy()) / math.sqrt(n),
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


def summary_rows(summary: Summary, examples: str = "") -> list[tuple[str, str]]:
    """Return the rows of a table: the figure with its standard error, then its terms.

    examples: what they are, such as `Split.description`; "": their number.
    """
    known = not math.isnan(summary.standard_error)
    error = f" ± {summary.standard_error:.4f}" if known else ""
    rows = [("bits/dim", f"{summary.bits_per_dim:.4f}{error}")]
    if len(summary.terms) > 1:
        rows += [(f"  {name}", f"{value:.4f}") for name, value in summary.terms.items()]
    if known:
        low, high = summary.interval
        rows.append(("95 % interval", f"{low:.4f} to {high:.4f}"))
    if not math.isnan(summary.draws_error):
        rows.append(("error of the draws alone", f"± {summary.draws_error:.4f}"))
    rows.append(("examples", examples or f"{summary.examples:,}"))
    rows.append(("network evaluations an example", f"{summary.evaluations:g}"))
    if summary.failures:
        rows.append(("solved by fixed steps", str(summary.failures)))
    return rows


def _bits(nats: Sequence[Tensor], dimensions: int) -> Tensor:
    return bits_per_dim(torch.cat(list(nats)).double().cpu(), dimensions)


class _Errors(NamedTuple):
    """Of the mean of all examples and rounds: standard errors, and their degrees of freedom."""

    whole: float
    degrees_of_whole: float
    draws: float
    degrees: float


def _errors(total: Float[Tensor, "rounds examples"], sizes: list[int]) -> _Errors:
    """Return what the head of this module says, for batches of these sizes."""
    rounds, n = total.shape
    naive = float(total.mean(0).var()) / n if n > 1 else math.nan
    if rounds == 1:
        return _Errors(math.sqrt(naive), n - 1.0 if n > 1 else math.nan, math.nan, 0.0)
    means = torch.stack([part.mean(1) for part in total.split(sizes, dim=1)], dim=1)
    share = torch.tensor(sizes, dtype=total.dtype) / n
    draws = float((share.square() * means.var(0)).sum()) / rounds
    independent = float(total.var(0).mean()) / (n * rounds)
    degrees = float(len(sizes) * (rounds - 1))
    # variances that are added and subtracted, each with its degrees of freedom
    parts = [(naive, n - 1), (independent, n * (rounds - 1)), (draws, degrees)]
    if degrees < LEAST_DEGREES:
        draws, degrees = independent, n * (rounds - 1.0)
        parts = parts[:1]
    degrees = min(degrees, _told_by(total.var(0)) * (1 - 1 / rounds))
    degrees = max(1.0, degrees)
    if n == 1:
        return _Errors(math.nan, math.nan, math.sqrt(draws), degrees)
    whole = max(naive - independent, 0) + draws
    spread = sum(variance**2 / of for variance, of in parts)
    of_whole = max(1.0, whole**2 / spread) if spread else n - 1.0
    return _Errors(math.sqrt(whole), of_whole, math.sqrt(draws), degrees)


def _told_by(variances: Float[Tensor, " examples"]) -> float:
    """Return the number of examples, all of one variance, that would tell their sum as well."""
    squares = float(variances.square().sum())
    return float(variances.sum()) ** 2 / squares if squares else math.inf


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
