"""Averages of the weights over training, which evaluate and sample better than the last ones."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def exponential_average(model: nn.Module, decay: float) -> AveragedModel:
    """Return a copy of the model whose `update_parameters(model)` averages the weights over steps.

    average ← d · average + (1 − d) · weights, with d = min(decay, (1 + n)/(10 + n)) at update n:
    a short run averages over its last tenth, a long one over the last 1/(1 − decay) steps.
    """

    @torch.no_grad()
    def update(average: list[Tensor], weights: list[Tensor], count: Tensor) -> None:
        n = float(count)
        torch._foreach_lerp_(average, weights, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(model, multi_avg_fn=cast("Any", update))
