"""Held-out examples as a reference: one part fits the score, the other part calibrates it.

A score with parameters (a mean, a covariance, a regression) looks smaller on the examples that it
was fitted to than on new ones, so these must not calibrate it. The examples are parted at random,
once and whatever their values ("split conformal", Papadopoulos et al., "Inductive Confidence
Machines for Regression", 2002). Given the part that fits, the score is a fixed function, and new
examples and the other part are exchangeable: the promise of `conformal` holds exactly.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from variational_diffusion.anomaly.conformal import (
    calibration_needed,
    own_p_values,
    p_values,
    rounded_up,
)
from variational_diffusion.anomaly.profiles import BANDS, Profiles
from variational_diffusion.anomaly.scores import SCORES, least_to_fit
from variational_diffusion.errors import InputError

_LEAST_CALIBRATION = 5
_SEED = 0  # of the parting


@dataclass(frozen=True)
class Reference:
    """Examples of the training kind that the model was not trained on, some hundreds or more.

    own: their profiles. false_alarms: the smallest p-value that is to be possible; where half of
    the examples do not allow it, more of them calibrate, as long as enough are left to fit.
    Raises InputError for too few examples when a score is asked for, see `check_reference`.
    """

    own: Profiles
    false_alarms: float = 0.01

    def __len__(self) -> int:
        return len(self.own)

    def calibrating(self, name: str) -> int:
        """Return how many examples calibrate a score of `SCORES`: all where it has no parameters.

        Otherwise one half, or as many as `false_alarms` takes if enough are left to fit: one more
        than for new examples, since each of its own is compared with the others only.
        """
        n, least = len(self.own), least_to_fit(name, self.own.bands.shape[1])
        check_reference(name, n, self.own.bands.shape[1])
        if least == 0:
            return n
        return n - max(least, min(n // 2, n - 1 - calibration_needed(self.false_alarms)))

    def judged(self, of: Profiles, name: str = "combined") -> tuple[np.ndarray, np.ndarray]:
        """Return the score and the p-value of new examples, two arrays of shape (m,)."""
        order, fit = self._parted(name)
        calibration, scores = self._scores(name, order[:fit], order[fit:], of)
        return scores, p_values(calibration, scores)

    def calibration_scores(self, name: str = "combined") -> np.ndarray:
        """Return the scores that p-values are ranks among, shape (n,)."""
        order, fit = self._parted(name)
        return self._scores(name, order[:fit], order[fit:])[0]

    def own_judged(self, name: str = "combined") -> tuple[np.ndarray, np.ndarray]:
        """Return the score and the p-value of each of its own examples, by the others: (n,) each.

        Those that calibrate are ranked among themselves. The others take their turns: as many of
        them calibrate, and all the rest fit, until each has been ranked by a fit that has not seen
        it. The promise of `conformal` holds for every one.
        """
        order, fit = self._parted(name)
        scores, p = np.empty(len(order)), np.empty(len(order))
        size = len(order) - fit
        for stop in range(len(order), 0, -size):
            first = max(0, stop - size)
            calibrating, wanted = order[first : first + size], slice(0, stop - first)
            found, _ = self._scores(name, np.setdiff1d(order, calibrating), calibrating)
            scores[calibrating[wanted]] = found[wanted]
            p[calibrating[wanted]] = own_p_values(found)[wanted]
        return scores, p

    def _parted(self, name: str) -> tuple[np.ndarray, int]:
        """Return a random order of the examples, and how many at its beginning fit the score."""
        n = len(self.own)
        return np.random.default_rng(_SEED).permutation(n), n - self.calibrating(name)

    def _scores(
        self, name: str, fitting: np.ndarray, calibrating: np.ndarray, of: Profiles | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return scores of the examples that calibrate and of others, by one fit."""
        parts = [self.own.rows(calibrating), *([] if of is None else [of])]
        scores = SCORES[name](self.own.rows(fitting), Profiles.joined(parts))
        return scores[: len(calibrating)], scores[len(calibrating) :]


def check_reference(
    name: str,
    examples: int,
    bands: int = BANDS,
    *,
    discrete: bool = True,
    false_alarms: float | None = None,
) -> None:
    """Raise InputError for an unknown score, and for one that such held-out examples do not allow.

    examples: how many there are. discrete: whether their values are integers. false_alarms: a rate
    that must be possible.
    """
    least = least_to_fit(name, bands)
    if name == "complexity" and not discrete:
        raise InputError(
            "score = 'complexity': real-valued data have no classical code length; type "
            "--score combined"
        )
    larger = "train with a larger share for --validation"
    if examples < least + _LEAST_CALIBRATION:
        raise InputError(
            f"reference = {examples} held-out examples: '{name}' needs "
            f"{least + _LEAST_CALIBRATION} or more; {'type --score bits, or ' if least else ''}"
            f"{larger}"
        )
    if false_alarms is not None and examples < least + calibration_needed(false_alarms):
        possible = rounded_up(1 / (1 + examples - least))
        raise InputError(
            f"false_alarms = {false_alarms:g}: '{name}' needs "
            f"{least + calibration_needed(false_alarms)} held-out examples for that, and there are "
            f"{examples}; type --false-alarms {possible}, or {larger}"
        )


def is_possible(name: str, examples: int, *, discrete: bool) -> bool:
    """Tell whether `check_reference` raises nothing."""
    with suppress(InputError):
        check_reference(name, examples, discrete=discrete)
        return True
    return False
