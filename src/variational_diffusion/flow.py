"""The probability-flow ODE: from data to noise and back, and how densities change on the way.

dz/dγ = drift(z, γ), and d log p(z_γ)/dγ = −div drift along a solution, so that
log p(z_γ0) = log N(z_γ1; 0, I) + ∫ div drift dγ from γ_0 to γ_1. No schedule comes into it.

Source: Chen, Rubanova, Bettencourt, Duvenaud, "Neural Ordinary Differential Equations" (2018), eq.
8; Grathwohl et al., "FFJORD" (2019), for the estimate of the divergence; Song et al., "Score-Based
Generative Modeling through Stochastic Differential Equations" (2021), section 4.3. The solvers are
torchdiffeq's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from variational_diffusion.errors import needs
from variational_diffusion.modes import in_evaluation_mode
from variational_diffusion.numerics import randn_like, sum_per_example

Drift = Callable[[Tensor], Tensor]

_MAX_STEPS = 10_000
_FIXED_STEPS = 256


@runtime_checkable
class Divergence(Protocol):
    """(f, z) → f(z) and estimates of div f at z, shape (estimates, batch), both without a graph.

    estimates: how many there are; each is unbiased, and independent of the others.
    """

    @property
    def estimates(self) -> int: ...

    def __call__(self, drift: Drift, z: Tensor) -> tuple[Tensor, Tensor]: ...


@runtime_checkable
class ProbabilityFlow(Protocol):
    """What the solver asks of a model; `VDM` has it."""

    def drift(self, z: Tensor, gamma: Tensor) -> Tensor:
        """Return dz/dγ."""


@dataclass(frozen=True)
class Solution:
    """A solution of the ODE at its end.

    z: shape (batch, *shape). divergence: ∫ div drift dγ from start to end, shape (estimates,
    batch); one row of zeros where none was asked for. evaluations: of the drift. gave_up: whether
    the adaptive solver did, and equal steps were taken.
    """

    z: Tensor
    divergence: Tensor
    evaluations: int
    gave_up: bool = False


@in_evaluation_mode
def solve(
    model: ProbabilityFlow,
    z: Float[Tensor, "batch *shape"],
    start: Float[Tensor, ""],
    end: Float[Tensor, ""],
    *,
    divergence: Divergence | None = None,
    tolerance: float = 1e-5,
    steps: int | None = None,
) -> Solution:
    """Solve the ODE from z at γ = `start` to γ = `end`, either way.

    By dopri5, with relative and absolute error `tolerance` in z and in the divergence per entry,
    each in root mean square over the batch. Where its step falls below what a float can resolve,
    or 10,000 steps do not suffice, by 256 equal steps of the classical fourth-order rule.

    divergence: `ExactDivergence` or `Hutchinson`; None: not integrated.
    steps: equal steps of the fourth-order rule in place of the adaptive solver. An example's
        solution then does not depend on the others in its batch. The divergence is evaluated
        between the steps, once each, and integrated by the trapezoidal rule: it is zero to first
        order at both ends, where that rule would otherwise err.
    """
    if steps is not None:
        return _solve_in_steps(model, z, start, end, steps, divergence)
    evaluations = 0
    dimensions = z[0].numel()

    def slope(gamma: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        nonlocal evaluations
        evaluations += 1
        gamma = gamma.to(z.dtype)

        def drift(z: Tensor) -> Tensor:
            return model.drift(z, gamma)

        if divergence is None:
            return drift(state[0]), torch.zeros_like(state[1])
        moved, spread = divergence(drift, state[0])
        return moved, spread / dimensions

    def error_norm(state: tuple[Tensor, Tensor]) -> Tensor:
        return torch.stack([part.square().mean().sqrt() for part in state]).max()

    with needs("ode"):
        from torchdiffeq import odeint  # noqa: PLC0415 (it imports scipy.integrate: half a second)

    span = torch.stack([start, end]).detach().double()
    state = z, z.new_zeros(1 if divergence is None else divergence.estimates, len(z))
    gave_up = False
    with torch.no_grad():
        try:
            path = odeint(
                slope,
                state,
                span,
                rtol=tolerance,
                atol=tolerance,
                method="dopri5",
                options={"norm": error_norm, "max_num_steps": _MAX_STEPS},
            )
        except AssertionError:  # how torchdiffeq says that its step or its budget has run out
            gave_up = True
            step = float((span[1] - span[0]).abs()) / _FIXED_STEPS
            path = odeint(slope, state, span, method="rk4", options={"step_size": step})
    return Solution(path[0][-1], dimensions * path[1][-1], evaluations, gave_up)


@torch.no_grad()
def _solve_in_steps(
    model: ProbabilityFlow,
    z: Tensor,
    start: Tensor,
    end: Tensor,
    steps: int,
    divergence: Divergence | None,
) -> Solution:
    with needs("ode"):
        from torchdiffeq import odeint  # noqa: PLC0415 (as above)

    evaluations = 0

    def drift(gamma: Tensor, z: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        return model.drift(z, gamma.to(z.dtype))

    gammas = torch.linspace(float(start), float(end), steps + 1, dtype=torch.float64)
    gammas = gammas.to(z.device)
    path = odeint(drift, z, gammas, method="rk4")
    total = z.new_zeros(1 if divergence is None else divergence.estimates, len(z))
    if divergence is not None:
        width = float(end - start) / steps
        for i, gamma in enumerate(gammas):
            _, spread = divergence(partial(drift, gamma), path[i])
            total += (0.5 if i in (0, steps) else 1.0) * width * spread
    return Solution(path[-1], total, evaluations)


@dataclass(frozen=True)
class ExactDivergence:
    """The divergence itself: the trace of the Jacobian, by d backward passes."""

    estimates: ClassVar[int] = 1

    def __call__(self, drift: Drift, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return f(z), and div f at z as one row."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            moved = drift(z)
            flat = moved.flatten(1)
            total = z.new_zeros(len(z))
            for i in range(flat.shape[1]):
                (row,) = torch.autograd.grad(flat[:, i].sum(), z, retain_graph=True)
                total += row.flatten(1)[:, i]
        return moved.detach(), total[None]


@dataclass(frozen=True)
class Hutchinson:
    """Unbiased estimates of the divergence, vᵀ (∂f/∂z) v for every probe v.

    probes: as `rademacher` draws them; kept for a whole solution, so that the ODE stays one.
    """

    probes: Float[Tensor, "probes batch *shape"]

    @property
    def estimates(self) -> int:
        """One for each probe."""
        return len(self.probes)

    def __call__(self, drift: Drift, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return f(z), and a row of estimates of div f at z for each probe."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            moved = drift(z)
            rows = []
            for v in self.probes:
                (row,) = torch.autograd.grad(moved, z, v, retain_graph=True)
                rows.append(sum_per_example(row * v))
        return moved.detach(), torch.stack(rows)


def rademacher(
    count: int, z: Float[Tensor, "batch *shape"], generator: torch.Generator | None = None
) -> Float[Tensor, "probes batch *shape"]:
    """Draw `count` probes like z with entries −1 and 1, which have the least variance."""
    return torch.stack([1 - 2 * (randn_like(z, generator) < 0).to(z.dtype) for _ in range(count)])


def log_prob(
    model: ProbabilityFlow,
    z_0: Float[Tensor, "batch *shape"],
    gamma_0: Float[Tensor, ""],
    gamma_1: Float[Tensor, ""],
    divergence: Divergence,
    *,
    tolerance: float = 1e-5,
    steps: int | None = None,
) -> tuple[Float[Tensor, "estimates batch"], Solution]:
    """Return log p(z_0), a density in nats, and the solution that ends in the prior.

    There is a row for each of the divergence's estimates: its mean over probes is log p(z_0).
    """
    solution = solve(
        model,
        z_0,
        gamma_0,
        gamma_1,
        divergence=divergence,
        tolerance=tolerance,
        steps=steps,
    )
    z_1 = solution.z
    prior = sum_per_example(-0.5 * (z_1.square() + math.log(2 * math.pi)))
    return prior + solution.divergence, solution
