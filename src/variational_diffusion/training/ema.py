"""Averages of the weights over training, which evaluate and sample better than the last ones."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from variational_diffusion.machine.distributed import local

Module = TypeVar("Module", bound=nn.Module)


class ExponentialAverage(Generic[Module]):
    """A copy of a model, `module`, whose parameters are the average of the model's over the steps.

    average ← d · average + (1 − d) · weights, with d = min(decay, (1 + n)/(10 + n)) at update n:
    a short run averages over its last tenth, a long one over the last 1/(1 − decay) steps. Buffers
    are those of the model.

    torch's `AveragedModel` does the same and walks through all modules at every step to find the
    tensors (docs/performance.md); here they are listed once.
    """

    def __init__(self, model: Module, decay: float) -> None:
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.updates = 0
        self._model = model

    @cached_property
    def _tensors(self) -> tuple[list[Tensor], ...]:
        """Averages, weights, copies of buffers, buffers: listed when they are where they stay."""
        averages = [local(average.detach()) for average in self.module.parameters()]
        weights = [local(weight.detach()) for weight in self._model.parameters()]
        return averages, weights, list(self.module.buffers()), list(self._model.buffers())

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights that the model has now."""
        n = self.updates
        share = 1 - min(self.decay, (1 + n) / (10 + n)) if n else 1.0
        averages, weights, copies, buffers = self._tensors
        torch._foreach_lerp_(averages, weights, share)
        if buffers:
            torch._foreach_copy_(copies, buffers)
        self.updates += 1
