"""The loop over steps as events: each step, means over some of them, validations."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from variational_diffusion.config import TrainingConfig
from variational_diffusion.data import Split
from variational_diffusion.data.loader import Batches
from variational_diffusion.likelihood import ContinuousBound, Summary, evaluate_rounds
from variational_diffusion.machine.distributed import here, is_sharded, sum_over_processes
from variational_diffusion.numerics import bits_per_dim
from variational_diffusion.training.steps import Engine, StepRecord, TrainingState, fit

_VALIDATION_EXAMPLES = 512  # enough to follow a run; `evaluate` takes them all
_VALIDATION_BATCH = 64


@dataclass(frozen=True)
class Means:
    """What is logged of some steps together, of all processes.

    step: the last of them. values: as in `metrics.jsonl`; bounds in bits per dimension.
    """

    step: int
    values: dict[str, Any]


@dataclass(frozen=True)
class Validation:
    """What the averaged weights give on validation examples. seconds: of training so far."""

    step: int
    seconds: float
    summary: Summary


def follow(
    state: TrainingState,
    batches: Batches,
    config: TrainingConfig,
    validation: Split,
    *,
    engine: Engine,
    every: float,
    log_every: int,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[StepRecord | Means | Validation]:
    """Train as `fit` does; yield each step, means, and a validation now and then.

    every: seconds of training between two validations; there is none after the last step.
    log_every: steps between two means.
    """
    recent: list[StepRecord] = []
    validated_at = state.seconds
    at, waited = time.monotonic(), batches.waited

    def means() -> Means:
        nonlocal at, waited
        seconds, before = time.monotonic() - at, waited
        at, waited = time.monotonic(), batches.waited
        took = {
            "examples_per_second": config.batch_size * len(recent) / seconds,
            "waiting": (waited - before) / seconds,
            "memory": _peak_memory(state.vdm.device),
        }
        made = Means(state.step, _averaged(state, recent) | took)
        recent.clear()
        return made

    for record in fit(state, batches, config, engine=engine, stopped=stopped):
        recent.append(record)
        yield record
        if record.step % log_every == 0:
            yield means()
        if state.seconds - validated_at > every and not record.skipped and record.progress < 1:
            yield validate(state, validation)
            validated_at = state.seconds
    if recent:
        yield means()


def validate(state: TrainingState, split: Split) -> Validation:
    """Evaluate the averaged weights on examples of a split, shared out over the processes."""
    average = state.average.module
    done = evaluate_rounds(
        average,
        split.sample(_VALIDATION_EXAMPLES),
        ContinuousBound(2),
        rounds=1,
        batch_size=_VALIDATION_BATCH,
        place=here(),
        together=is_sharded(average),
    )
    return Validation(state.step, state.seconds, done.summary)


def _averaged(state: TrainingState, records: list[StepRecord]) -> dict[str, Any]:
    """Return the means over some steps, and where the schedule is after the last."""
    last, vdm = records[-1], state.vdm
    gamma_0, gamma_1 = vdm.schedule.end_points.tolist()
    good = [record for record in records if not record.skipped] or records
    names = ("prior", "reconstruction", "diffusion")
    terms = {name: torch.cat([getattr(r.bound, name) for r in good]).double() for name in names}
    moments = [terms[name].sum() for name in names]
    moments += [terms["diffusion"].square().sum(), torch.full_like(moments[0], len(terms["prior"]))]
    *sums, squares, count = sum_over_processes(torch.stack(moments)).tolist()
    to_bits = float(bits_per_dim(torch.ones((), dtype=torch.float64), vdm.dimensions))
    mean = sums[2] / count
    return {
        "step": last.step,
        "seconds": last.seconds,
        "train": {name: to_bits * value / count for name, value in zip(names, sums, strict=True)},
        "variance": to_bits**2 * (squares - count * mean**2) / max(1.0, count - 1),
        "gradient_norm": fmean(record.gradient_norm for record in good),
        "learning_rate": last.learning_rate,
        "skipped": state.skipped,
        "gamma_0": gamma_0,
        "gamma_1": gamma_1,
    }


def _peak_memory(device: torch.device) -> int:
    """Return the most bytes that were in use: on a GPU its own, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kilobytes = 1 if sys.platform == "darwin" else 1024
    return kilobytes * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
