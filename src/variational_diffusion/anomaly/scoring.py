"""Scores and p-values of data under a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from variational_diffusion.anomaly.conformal import (
    calibration_needed,
    check_rate,
    discoveries,
    fewest_discoveries,
    is_at_most,
    rounded_up,
)
from variational_diffusion.anomaly.conformal import false_alarms as expected_rate
from variational_diffusion.anomaly.profiles import Profiles, measured
from variational_diffusion.anomaly.reference import Reference, check_reference, is_possible
from variational_diffusion.anomaly.scores import SCORES
from variational_diffusion.data import Originals, Split
from variational_diffusion.escaping import printable
from variational_diffusion.machine.signals import until
from variational_diffusion.model import VDM

Progress = Callable[[int, int, float], None]
"""Told how many examples of how many are measured, and the last batch's mean bound in bits/dim."""


_TRAINED_ON = "train"
_NO_FIT = 5
"""Examples that a score without parameters takes, and no other."""


@dataclass(frozen=True)
class Scored:
    """Examples with anomaly scores and p-values; all arrays have one entry an example.

    Attributes:
        name: Of the score that p-values and marks are of.
        parts: The examples, by the name of their split.
        split: Name of each example's split.
        number: Number of each example in its split.
        names: Of image files, printable; None for other data.
        profiles: Losses of the examples in bands of γ.
        scores: By name, all of `SCORES` that these data have.
        p_value: See `anomaly.conformal`; without a promise for examples that the model was trained
            on.
        marked: p_value ≤ false_alarms, or what Benjamini and Hochberg mark at the rate `fdr`.
        calibration: The scores that p-values are ranks among.
        held_out: Number of examples that fit and calibrate the score.
        false_alarms: Rate of normal examples that are marked.
        fdr: Rate of normal examples among the marked ones, if it was asked for.
        stopped: Whether the work was ended before every example was reached.
    """

    name: str
    parts: dict[str, Split]
    split: np.ndarray
    number: np.ndarray
    names: np.ndarray | None
    profiles: Profiles
    scores: dict[str, np.ndarray]
    p_value: np.ndarray
    marked: np.ndarray
    calibration: np.ndarray
    held_out: int
    false_alarms: float
    fdr: float | None
    stopped: bool = False

    def __len__(self) -> int:
        return len(self.p_value)

    def __str__(self) -> str:
        return self.title

    @property
    def score(self) -> np.ndarray:
        """The score that p-values and marks are of, shape (n,)."""
        return self.scores[self.name]

    @property
    def order(self) -> np.ndarray:
        """The examples' rows, the most anomalous first, shape (n,)."""
        return np.argsort(-self.score, kind="stable")

    @property
    def smallest_p(self) -> float:
        """The smallest p-value that the calibration examples allow."""
        return 1 / (1 + len(self.calibration))

    @property
    def threshold(self) -> float | None:
        """The smallest score that is marked; None where none is."""
        scores = self.score[self.marked]
        return float(scores.min()) if len(scores) else None

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return examples, shape (len(rows), *shape)."""
        starts = np.cumsum([0, *(len(part) for part in self.parts.values())])
        parts = list(self.parts.values())
        which = np.searchsorted(starts, rows, side="right") - 1
        return np.concatenate(
            [parts[k].read(np.array([row - starts[k]])) for k, row in zip(which, rows, strict=True)]
        )

    def columns(self) -> dict[str, np.ndarray]:
        """Return a table with everything, one row an example, the most anomalous first."""
        of = self.profiles
        columns = {
            "split": self.split,
            "example": self.number,
            **({} if self.names is None else {"file": self.names}),
            "p_value": self.p_value,
            "marked": self.marked,
            **self.scores,
            "prior": of.prior,
            "reconstruction": of.reconstruction,
            "classical": of.classical,
            **{f"band_{i}": of.bands[:, i] for i in range(of.bands.shape[1])},
        }
        order = self.order
        return {name: column[order] for name, column in columns.items()}

    @property
    def title(self) -> str:
        """Return what was scored, and how many are marked by which rule."""
        if not self.held_out:
            examples = ", ".join(part.description for part in self.parts.values())
            return f"'{self.name}' of {examples}; the most anomalous first"
        rule = f"p ≤ {self.false_alarms:g}"
        if self.fdr is not None:
            rule = f"Benjamini-Hochberg at {self.fdr:g}"
        parts = [
            f"{int(self.marked[self.split == label].sum()):,} among {part.description}"
            for label, part in self.parts.items()
        ]
        return f"marked by '{self.name}' ({rule}): {', '.join(parts)}; the most anomalous first"

    def notes(self) -> list[str]:
        """Return what a reader has to know of the p-values, a line each."""
        n = len(self.calibration)
        if not self.held_out:
            return ["p-values: none, since no held-out examples of the run's data are there"]
        notes = [
            f"p-values: against {n:,} of {self.held_out:,} held-out examples, so the smallest is "
            f"{self.smallest_p:.2g}"
            + (f"; the other {self.held_out - n:,} fit the score" if n < self.held_out else "")
        ]
        needed = calibration_needed(self.false_alarms)
        fewest = 0 if self.fdr is None else fewest_discoveries(len(self), n, self.fdr)
        if fewest > 1:
            notes.append(
                f"--fdr {self.fdr:g}: {fewest:,} examples have to have the smallest p-value before "
                "any is marked; a larger --reference allows fewer"
            )
        elif self.fdr is None and n < needed:
            notes.append(
                f"no example can be marked at {self.false_alarms:g}: that takes "
                f"{needed + self.held_out - n:,} held-out examples; type --false-alarms "
                f"{rounded_up(self.smallest_p)} or more, or train with a larger share for "
                "--validation"
            )
        elif self.fdr is None:
            expected = expected_rate(n, self.false_alarms)
            mean, low, high = (f"{100 * rate:.2g} %" for rate in expected)
            notes.append(
                f"false alarms: {mean} of new normal examples on average, {low} to {high} for 95 % "
                "of the calibration sets of this size"
            )
        if _TRAINED_ON in self.parts:
            notes.append(
                "train: the model was trained on these examples. They look more normal than new "
                "ones, and their p-values have no guarantee"
            )
        if "validation" in self.parts:
            notes.append(
                "validation: an example that calibrates the score is compared with the others only"
            )
        return notes

    def as_json(self, most: int = 10) -> dict[str, Any]:
        """Return what `vdm score --json` prints; most: how many of the most anomalous."""
        known = self.held_out > 0
        expected = expected_rate(len(self.calibration), self.false_alarms) if known else None
        by_rate = known and self.fdr is None
        return {
            "score": self.name,
            "examples": len(self),
            "held_out": self.held_out,
            "calibration": len(self.calibration),
            "smallest_p": self.smallest_p if known else None,
            "false_alarms": self.false_alarms if by_rate else None,
            "expected": expected._asdict() if expected and by_rate else None,
            "fdr": self.fdr,
            "marked": int(self.marked.sum()),
            "parts": [
                {
                    **part.as_json(),
                    "marked": int(self.marked[self.split == label].sum()),
                    "trained_on": label == _TRAINED_ON,
                }
                for label, part in self.parts.items()
            ],
            "most_anomalous": [
                {
                    **({"split": str(self.split[i])} if self.split[i] else {}),
                    "example": int(self.number[i]),
                    **({} if self.names is None else {"file": str(self.names[i])}),
                    "score": float(self.score[i]),
                    "p_value": float(self.p_value[i]) if known else None,
                    "marked": bool(self.marked[i]),
                }
                for i in self.order[:most]
            ],
        }


def score(
    vdm: VDM,
    examples: Split | Mapping[str, Split],
    held_out: Split | None,
    name: str = "combined",
    *,
    false_alarms: float = 0.01,
    fdr: float | None = None,
    draws: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Scored:
    """Return anomaly scores of examples, with p-values against held-out examples.

    examples: one split, or several by their names. held_out: examples of the training kind that
    the model was not trained on, a thousand or so. Where some of them are also in `examples` (of
    the same source, with the same index), each is compared with the other held-out examples. None:
    scores that take no parameters, without p-values and marks.
    name: of `SCORES`. false_alarms: examples with p-values up to this rate are marked. fdr: mark
    by the procedure of Benjamini and Hochberg at this rate instead. draws: network evaluations in
    each of 16 bands of γ. seed: of the noise, which all examples share. stopped: asked between two
    batches; where it is true, the examples that were reached are scored.
    Raises KeyboardInterrupt where it was stopped before the held-out examples were measured, and
    InputError for an unknown score or rate, and for too few held-out examples.
    """
    check_rate("false_alarms", false_alarms)
    if fdr is not None:
        check_rate("fdr", fdr)
    parts = {"": examples} if isinstance(examples, Split) else dict(examples)
    if held_out is None:
        return _without_reference(vdm, parts, name, draws, seed, progress or _silent, stopped)
    discrete = held_out.levels is not None
    check_reference(name, len(held_out), discrete=discrete)
    known = {label: _rows_in(part, held_out) for label, part in parts.items()}
    fresh = [replace(part, indices=part.indices[known[label] < 0]) for label, part in parts.items()]
    of = _measured_in_turn(
        vdm,
        [held_out, *fresh],
        draws=draws,
        seed=seed,
        progress=progress or _silent,
        stopped=stopped,
    )
    own = np.arange(len(held_out))
    missing = len(own) + sum(map(len, fresh)) - len(of)
    if missing:
        parts, known = _reached(parts, known, len(of) - len(own))
    row = np.concatenate(list(known.values()))
    row[row < 0] = np.arange(len(own), len(of))
    reference = Reference(of.rows(own), false_alarms)
    judged = {
        each: _judged(reference, of, row, each)
        for each in SCORES
        if is_possible(each, len(own), discrete=discrete)
    }
    p_value = judged[name][1]
    return Scored(
        name=name,
        parts=parts,
        split=np.repeat(list(parts), [len(part) for part in parts.values()]),
        number=np.concatenate([part.positions for part in parts.values()]),
        names=_names(parts.values()),
        profiles=of.rows(row),
        scores={each: scores for each, (scores, _) in judged.items()},
        p_value=p_value,
        marked=is_at_most(p_value, false_alarms) if fdr is None else discoveries(p_value, fdr),
        calibration=reference.calibration_scores(name),
        held_out=len(own),
        false_alarms=false_alarms,
        fdr=fdr,
        stopped=missing > 0,
    )


def _reached(
    parts: dict[str, Split], known: dict[str, np.ndarray], count: int
) -> tuple[dict[str, Split], dict[str, np.ndarray]]:
    """Return the held-out examples of the parts, and `count` of the others, in their order."""
    if count < 0:
        raise KeyboardInterrupt
    rows = {}
    for label, row in known.items():
        others = np.cumsum(row < 0)
        rows[label] = np.flatnonzero((row >= 0) | (others <= count))
        count -= min(count, int(others[-1])) if len(others) else 0
    rows = {label: found for label, found in rows.items() if len(found)}
    if not rows:
        raise KeyboardInterrupt
    return (
        {label: parts[label].reached(found) for label, found in rows.items()},
        {label: known[label][found] for label, found in rows.items()},
    )


def _without_reference(
    vdm: VDM,
    parts: dict[str, Split],
    name: str,
    draws: int,
    seed: int,
    progress: Progress,
    stopped: Callable[[], bool],
) -> Scored:
    """Return scores without p-values."""
    wanted = list(parts.values())
    of = _measured_in_turn(vdm, wanted, draws=draws, seed=seed, progress=progress, stopped=stopped)
    missing = sum(map(len, wanted)) - len(of)
    if missing:
        nowhere = {label: np.full(len(part), -1) for label, part in parts.items()}
        parts, _ = _reached(parts, nowhere, len(of))
    discrete = next(iter(parts.values())).levels is not None
    free = [each for each in SCORES if is_possible(each, _NO_FIT, discrete=discrete)]
    check_reference(name, _NO_FIT, discrete=discrete)
    return Scored(
        name=name,
        parts=parts,
        split=np.repeat(list(parts), [len(part) for part in parts.values()]),
        number=np.concatenate([part.positions for part in parts.values()]),
        names=_names(parts.values()),
        profiles=of,
        scores={each: SCORES[each](of, of) for each in free},
        p_value=np.full(len(of), np.nan),
        marked=np.zeros(len(of), bool),
        calibration=np.empty(0),
        held_out=0,
        false_alarms=0.0,
        fdr=None,
        stopped=missing > 0,
    )


def _silent(done: int, total: int, bits: float) -> None:
    pass


def _measured_in_turn(
    vdm: VDM,
    parts: list[Split],
    *,
    draws: int,
    seed: int,
    progress: Progress,
    stopped: Callable[[], bool],
) -> Profiles:
    """Return the profiles of several splits as one, all with the same noise, as far as it came."""
    total, done, found = sum(map(len, parts)), 0, []
    in_turn = (measured(vdm, part, draws=draws, seed=seed) for part in parts)
    for profile in until(stopped, chain.from_iterable(in_turn)):
        found.append(profile)
        done += len(profile)
        progress(done, total, float(profile.bits.mean()))
    if not found:
        raise KeyboardInterrupt
    return Profiles.joined(found)


def _judged(
    reference: Reference, of: Profiles, row: np.ndarray, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and p-values of rows of `of`, whose first rows are the reference's own."""
    n = len(reference)
    scores, p = np.empty(len(of)), np.empty(len(of))
    if (row < n).any():
        scores[:n], p[:n] = reference.own_judged(name)
    if len(of) > n:
        scores[n:], p[n:] = reference.judged(of.rows(np.arange(n, len(of))), name)
    return scores[row], p[row]


def _rows_in(part: Split, held_out: Split) -> np.ndarray:
    """Return where the examples of a split are among those held out, shape (n,); −1: nowhere."""
    rows = np.full(len(part), -1)
    if part.source is held_out.source:
        row_of = {int(index): row for row, index in enumerate(held_out.indices)}
        rows[:] = [row_of.get(int(index), -1) for index in part.indices]
    return rows


def _names(parts: Iterable[Split]) -> np.ndarray | None:
    names: list[str] = []
    for part in parts:
        own = Originals(part).names(np.arange(len(part)))
        if own is None:
            return None
        names += map(printable, own)
    return np.array(names)
