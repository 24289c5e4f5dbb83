"""The model of a run: one set of its weights, where it computes, and what belongs to the pair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from variational_diffusion.data import Split
from variational_diffusion.machine.execution import Execution
from variational_diffusion.model import VDM
from variational_diffusion.run.directory import Run


@dataclass(frozen=True, eq=False)
class Trained:
    """The model of a run.

    weights: "ema", "raw", or another name that `Run.weights_path` knows. vdm: the model with them.
    stand_in: opens examples that are measured on in place of the run's own, where these are gone.
    measured: what was measured on them, by name; it is not kept in the run.
    """

    run: Run
    weights: str
    vdm: VDM
    stand_in: Callable[[], Split] | None = None
    measured: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, run: Run, weights: str = "ema", execution: Execution | None = None) -> Trained:
        """Load the model of a run and set it up to compute."""
        return cls(run, weights, run.load(weights).prepare(execution or Execution()))

    @property
    def device(self) -> torch.device:
        return self.vdm.device
