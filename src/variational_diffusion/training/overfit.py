"""A minute's test of a model, its data and its learning rates: learning examples by heart.

What learns at all learns these: the diffusion term of their bound goes towards zero, whatever the
data are. A mistake in the network, in the data or in the rates mostly shows as a bound that stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import repeat

import torch
from torch import Tensor

from variational_diffusion.conditions import Batch, parted
from variational_diffusion.config import TrainingConfig
from variational_diffusion.errors import InputError
from variational_diffusion.likelihood import ContinuousBound, Summary, evaluate, summarize
from variational_diffusion.model import VDM
from variational_diffusion.modes import in_evaluation_mode
from variational_diffusion.training import TrainingState, fit

SHARE = 0.5
"""Of its first diffusion term that a bound has to fall by."""

_LONGEST = 60.0  # seconds
_LOOKS = 20
_DRAWS = 8
_UNMOVED = 0.02


@dataclass(frozen=True)
class OverfitCheck:
    """What became of learning some examples by heart.

    Attributes:
        first: The bound of the examples, in bits per dimension, before training.
        last: The same after training.
        steps: Number of steps.
        seconds: Spent in them.
        causes: What may be wrong, most likely first; none if the check passed.
    """

    first: Summary
    last: Summary
    steps: int
    seconds: float
    causes: tuple[str, ...] = ()

    @property
    def fallen(self) -> float:
        """By how much the bound fell, as a share of its diffusion term at first."""
        difference = self.first.bits_per_dim - self.last.bits_per_dim
        return difference / self.first.terms["diffusion"]

    @property
    def passed(self) -> bool:
        """Whether the bound fell by `SHARE`, of examples that are worth learning."""
        return not self.causes


def overfit(
    vdm: VDM,
    batch: Batch,
    config: TrainingConfig,
    show: Callable[[float, int], None] = lambda fraction, step: None,
) -> OverfitCheck:
    """Train a new model on one batch until it has learned it, for the budget or a minute.

    The average of the weights plays no part, there is no warm-up, and γ keeps its range, as the
    best one for examples known by heart is another. `vdm` is changed.

    show: called with the share of the time that is spent, and the step, after every step.
    """
    seconds = _LONGEST if config.minutes is None else min(_LONGEST, 60 * config.minutes)
    budget = {} if config.minutes is None else {"minutes": seconds / 60}
    fixed = {"warmup_steps": 0, "end_point_learning_rate": 0.0, "posthoc_ema": False}
    config = config.model_copy(update=budget | fixed)
    first = last = _bound(vdm, batch)
    state = TrainingState.start(vdm, config)
    start, looks = time.monotonic(), 1
    diverged: tuple[str, ...] = ()
    try:
        for record in fit(state, repeat(batch), config):
            spent = max(record.progress, (time.monotonic() - start) / seconds)
            show(min(1.0, spent), state.step)
            if spent * _LOOKS >= looks or spent >= 1:
                looks += 1
                last = _bound(vdm, batch)
                if spent >= 1 or OverfitCheck(first, last, 0, 0.0).fallen >= SHARE:
                    break
    except InputError as error:  # a step that diverged, or a bound that is not finite
        diverged = (str(error),)
    found = OverfitCheck(first, last, state.step, time.monotonic() - start)
    causes = diverged or _of_data(parted(batch)[0]) or _of_learning(found, vdm, config)
    return replace(found, causes=causes)


def _bound(vdm: VDM, batch: Batch) -> Summary:
    generator = torch.Generator(vdm.schedule.gamma_0.device).manual_seed(0)
    bounds = evaluate(vdm, [batch], ContinuousBound(_DRAWS), generator=generator)
    return summarize(bounds, dimensions=vdm.dimensions)


def _of_data(x: Tensor) -> tuple[str, ...]:
    if bool((x == x.flatten()[0]).all()):
        return (f"every value of the examples is {x.flatten()[0].item():g}: see vdm data DATA",)
    if bool((x == x[:1]).all()) and len(x) > 1:
        return ("all examples are the same: see vdm data DATA",)
    return ()


def _of_learning(found: OverfitCheck, vdm: VDM, config: TrainingConfig) -> tuple[str, ...]:
    if found.fallen >= SHARE:
        return ()
    rates = f"learning_rate = {config.learning_rate:g}"
    if config.optimizer == "muon":
        rates += f" and matrix_learning_rate = {config.matrix_learning_rate:g}"
    causes = []
    if _ignores_its_input(vdm):
        causes.append("the network's output does not depend on z: is z used in its forward?")
    if found.fallen < -_UNMOVED:
        causes.append(f"the bound rose: {rates} may be too high")
    elif found.fallen < _UNMOVED:
        causes.append(f"the bound stayed: {rates} may be too low, or no gradient arrives")
    else:
        causes.append(
            f"the bound fell too slowly: {found.steps} steps may be too few for this network "
            f"on this machine, or {rates} too low or too high"
        )
    return tuple(causes)


@in_evaluation_mode
@torch.no_grad()
def _ignores_its_input(vdm: VDM) -> bool:
    end_points = vdm.schedule.end_points
    gamma = end_points.mean().expand(2)
    generator = torch.Generator(gamma.device).manual_seed(0)
    z = torch.randn((2, *vdm.shape), generator=generator, dtype=gamma.dtype, device=gamma.device)
    first, second = vdm.network(z, gamma)
    return torch.equal(first, second)
