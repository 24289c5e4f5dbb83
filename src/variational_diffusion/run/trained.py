"""The model of a run: one set of its weights, where it computes, and what belongs to the pair."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from variational_diffusion.machine.execution import Execution
from variational_diffusion.model import VDM
from variational_diffusion.run.directory import Run


@dataclass(frozen=True, eq=False)
class Trained:
    """The model of a run.

    weights: "ema", "raw", or another name that `Run.weights_path` knows. vdm: the model with them.
    """

    run: Run
    weights: str
    vdm: VDM

    @classmethod
    def open(cls, run: Run, weights: str = "ema", execution: Execution | None = None) -> Trained:
        """Load the model of a run and set it up to compute."""
        return cls(run, weights, run.load(weights).prepare(execution or Execution()))

    @property
    def device(self) -> torch.device:
        return self.vdm.device
