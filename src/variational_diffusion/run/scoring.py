"""Anomaly scores of examples under a run: what `vdm score` does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from variational_diffusion import anomaly
from variational_diffusion.anomaly import Scored, calibration_needed, check_reference
from variational_diffusion.data import Dataset, Split
from variational_diffusion.errors import GoneError, InputError, whole
from variational_diffusion.machine.execution import Execution
from variational_diffusion.machine.progress import Listener, telling
from variational_diffusion.run.directory import Run
from variational_diffusion.run.examples import Data, check_free, examples_for, own_data
from variational_diffusion.run.trained import Trained
from variational_diffusion.storage.files import expanded

LOG = logging.getLogger(__name__)

REFERENCE = 1000
FALSE_ALARMS = 0.01


def score(
    run: Run | str | Path,
    data: Data | None = None,
    *,
    score: str = "combined",
    false_alarms: float | None = None,
    fdr: float | None = None,
    reference: int | None = None,
    draws: int = 2,
    split: str | None = None,
    limit: int | None = None,
    condition: str = "own",
    weights: str = "ema",
    seed: int = 0,
    progress: bool | Listener = False,
    stopped: Callable[[], bool] = lambda: False,
    **execution: Any,
) -> Scored:
    """Score how anomalous examples are to a run's model, with p-values.

    The p-value of an example is the share of held-out examples of the training kind that are as
    anomalous or more. `vdm score` gives the same figures.

    Args:
        run: A run, or its directory.
        data: As at `evaluate`; None: every example of the run's own data.
        score: A name of `anomaly.SCORES`: the score that the p-values are of.
        false_alarms: Mark examples with p-values up to this rate (default 0.01).
        fdr: Mark by Benjamini and Hochberg instead, so that at most this share of the marked
            examples is normal.
        reference: Number of validation examples of the run that fit and calibrate the score; None:
            1000, or more where `false_alarms` needs more.
        draws: Evaluations of the network in each of 16 bands of γ.
        split: As at `evaluate`; None: all splits.
        limit: As at `evaluate`.
        condition: As at `evaluate`.
        weights: As at `evaluate`.
        seed: As at `evaluate`.
        progress: As at `evaluate`.
        stopped: As at `evaluate`.
        **execution: Those of `Execution`, as at `evaluate`.

    Returns:
        Scores, p-values and marks, one entry an example. Where the run's own data are gone, the
        score is "bits" and the p-values are NaN.

    Raises:
        InputError: For an unknown score or rate, and for too few held-out examples.

    Examples:
        >>> noise = np.random.default_rng(0).integers(0, 17, (5, 1, 8, 8))
        >>> s = vd.score(run, noise, reference=100, draws=1)
        >>> s.p_value.shape, bool((s.p_value > 0).all() and (s.p_value <= 1).all())
        ((5,), True)
    """
    whole("seed", seed, 0)
    if false_alarms is not None and fdr is not None:
        raise InputError(f"false_alarms = {false_alarms:g}, fdr = {fdr:g}: give one of the two")
    rate = FALSE_ALARMS if false_alarms is None else false_alarms
    run = run if isinstance(run, Run) else Run.open(run)
    carried = Execution(**execution)
    with carried.begun():
        trained = Trained.open(run, weights, carried)
        if condition == "none":
            check_free(run)
        count = reference or max(REFERENCE, 2 * calibration_needed(rate))
        own = _own_unless_gone(run, data, condition)
        held_out = None if own is None else own.splits["validation"].sample(count)
        if held_out is None:
            score = "bits"
        else:
            discrete = held_out.levels is not None
            check_reference(score, len(held_out), discrete=discrete, false_alarms=false_alarms)
        if own is not None and (data is None or _is_same(data, run)):
            parts = drawn(own.splits if split is None else {split: own.splits[split]}, limit)
        else:
            parts = {"": examples_for(run, data, split, limit, condition=condition)}
        with telling(progress, "scoring", "examples") as tell:
            return anomaly.score(
                trained.vdm,
                parts,
                held_out,
                score,
                false_alarms=rate,
                fdr=fdr,
                draws=draws,
                seed=seed,
                stopped=stopped,
                progress=lambda done, total, bits: tell(
                    done / total, done, lambda: f"{bits:.3f} bits/dim"
                ),
            )


def drawn(parts: Mapping[str, Split], limit: int | None) -> dict[str, Split]:
    """Return so many examples of several splits, drawn at random out of all with seed 0."""
    sizes = [len(part) for part in parts.values()]
    if limit is None or limit >= sum(sizes):
        return dict(parts)
    counts = np.random.default_rng(0).multivariate_hypergeometric(sizes, limit)
    return {
        label: part.sample(int(n))
        for (label, part), n in zip(parts.items(), counts, strict=True)
        if n > 0
    }


def _own_unless_gone(run: Run, data: Data | None, condition: str) -> Dataset | None:
    """Return the run's own data; None where they are gone and others are scored."""
    try:
        return own_data(run, condition=condition)
    except GoneError as error:
        if data is None:
            raise
        LOG.info("%s; without held-out examples of them, there are no p-values", error)
        return None


def _is_same(data: Data, run: Run) -> bool:
    """Tell whether DATA is what the run was trained on, by its name or its path."""
    if not isinstance(data, str | Path):
        return False
    source = run.config.data.source
    return str(data) == source or expanded(data).resolve() == Path(source)
