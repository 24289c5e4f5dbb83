"""Muon: momentum for matrices, made orthogonal before every step."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from variational_diffusion.machine.distributed import laid_out_as, whole

_COEFFICIENTS = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, for parameters of two or more axes.

    A parameter of shape (rows, …) is seen as a matrix of `rows` rows. Its update is the nearest
    (semi-)orthogonal matrix to the momentum, times lr · sqrt(max(1, rows/columns)), so that every
    direction of the weights learns at the same pace. Weight decay is decoupled, as in AdamW.

    torch's own Muon and those of other packages iterate in bfloat16, which a processor without
    instructions for it does 20 times more slowly than float32 (experiments/LOG.md), and torch's
    takes no convolution kernels.

    Args:
        params: As of torch's optimizers.
        lr: Learning rate.
        momentum: In [0, 1).
        weight_decay: Share of the weights, times `lr`, that a step takes off.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).

    Examples:
        >>> weight = torch.nn.Parameter(torch.zeros(2, 2))
        >>> (weight * torch.tensor([[3.0, 0.0], [0.0, 1.0]])).sum().backward()
        >>> vd.Muon([weight], lr=0.1).step()
        >>> torch.allclose(weight, -0.1 * torch.eye(2), atol=0.04)
        True
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step with the gradients that are there."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            same_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    same_shape[p.shape[0], p[0].numel()].append(p)
            for (rows, columns), parameters in same_shape.items():
                gradients = [p.grad for p in parameters if p.grad is not None]
                averages = [self._average(p) for p in parameters]
                torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
                ahead = torch._foreach_lerp(gradients, averages, group["momentum"])
                updates = orthogonalised(torch.stack([whole(u).flatten(1) for u in ahead]))
                updates = updates * (-group["lr"] * math.sqrt(max(1.0, rows / columns)))
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                steps = [laid_out_as(p, u) for p, u in zip(parameters, updates, strict=True)]
                torch._foreach_add_(parameters, steps)
        return loss

    def _average(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["average"] = torch.zeros_like(parameter)
        return state["average"]


def orthogonalised(matrices: Float[Tensor, "n rows columns"]) -> Float[Tensor, "n rows columns"]:
    """Return U Vᵀ of each matrix U S Vᵀ, with singular values of 0.68 to 1.14 in place of ones.

    Newton–Schulz iteration x ← (a + b x xᵀ + c (x xᵀ)²) x. All factors are polynomials of the first
    x xᵀ, so they are multiplied up in the small dimension, and x itself is touched twice. That
    takes float32: in half precision the small singular values would be lost.
    """
    a, b, c = _COEFFICIENTS
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    # below the square root of the smallest number the squares of a norm are lost
    least = math.sqrt(torch.finfo(x.dtype).tiny)
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=least)
    gram = x @ x.mT
    identity = torch.eye(gram.shape[-1], dtype=x.dtype, device=x.device)
    product = identity.expand_as(gram)
    for i in range(_ITERATIONS):
        factor = torch.baddbmm(a * identity + b * gram, gram, gram, alpha=c)
        product = factor @ product
        if i + 1 < _ITERATIONS:
            gram = factor @ gram @ factor
    x = product @ x
    return x if wide else x.mT
