"""What an evaluation came to: a figure with its errors, and a table with a row for each example."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from variational_diffusion.likelihood.summary import Summary, summary_rows


@dataclass(frozen=True)
class Likelihood:
    """The likelihood of examples under a model, with its errors.

    Attributes:
        summary: The figure with its errors and terms.
        table: Columns by name, a row for each example: "example", its number, "file" where it has
            one, "bits_per_dim", the terms, and "error", the standard error by the draws.
        nats_per_example: −log p(x) of each example, shape (examples,).
        estimator: Its name in `ESTIMATORS`.
        examples: What they are, such as "297 test examples".
        rounds: Number of rounds of independent draws.
        notes: What a reader has to know of the figure, a line each.
        stopped: Whether the work was ended before every example was reached.
        about: What else there is to know, for `as_json`.

    Examples:
        >>> text = str(vd.evaluate(run, limit=50, rounds=2))  # 1.702 ± 0.016 bits/dim (50 of …)
        >>> text[text.index("bits") :]
        'bits/dim (50 of 297 test examples, drawn with seed 0, bound, 4 draws)'
    """

    summary: Summary
    table: dict[str, np.ndarray]
    nats_per_example: np.ndarray
    estimator: str
    examples: str
    rounds: int
    notes: tuple[str, ...] = ()
    stopped: bool = False
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def bits_per_dim(self) -> float:
        """The mean over the examples, in bits per dimension."""
        return self.summary.bits_per_dim

    @property
    def standard_error(self) -> float:
        """Of `bits_per_dim` as a figure for the population; NaN for one example."""
        return self.summary.standard_error

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the population's bits per dimension."""
        return self.summary.interval

    @property
    def terms(self) -> dict[str, float]:
        """What adds up to `bits_per_dim`."""
        return self.summary.terms

    def rows(self) -> list[tuple[str, str]]:
        """Return the rows of a table to print."""
        return summary_rows(self.summary, self.examples)

    def as_json(self) -> dict[str, Any]:
        """Return what `vdm evaluate --json` prints."""
        values = {"estimator": self.estimator, **self.summary.as_json(), **self.about}
        return values | {"rounds": self.rounds, "notes": list(self.notes)}

    def __str__(self) -> str:
        known = not math.isnan(self.standard_error)
        error = f" ± {self.standard_error:.3f}" if known else ""
        name = "bound" if self.estimator == "vlb" else self.estimator
        drawn = self.summary.evaluations if name in ("bound", "discrete") else self.rounds
        draws = f"{drawn:g} draw{'s' * (drawn != 1)}"
        return f"{self.bits_per_dim:.3f}{error} bits/dim ({self.examples}, {name}, {draws})"
