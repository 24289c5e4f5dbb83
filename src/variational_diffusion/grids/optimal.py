"""The grid of T steps with the least expected bound, and what a chain of steps costs.

Source: Watson, Ho, Norouzi, Chan, "Learning to Efficiently Sample from Diffusion Probabilistic
Models" (2021), for the dynamic program, here in γ and with the best reverse variance.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from variational_diffusion import process
from variational_diffusion.errors import InputError
from variational_diffusion.grids.errors import NoiseErrors
from variational_diffusion.grids.even import Gammas, check_steps, uniform_in_gamma
from variational_diffusion.schedules import Schedule

_NODES = 400
_POSITIONS = 1024
_MAX_STEPS = 1000


def bound_optimal(
    schedule: Schedule,
    steps: int,
    errors: NoiseErrors,
    assumed: NoiseErrors | None = None,
    *,
    end: float | None = None,
) -> Gammas:
    """Return the grid of T steps from γ_1 to `end` with the least expected bound.

    By dynamic programming over a fine uniform grid, whose width is 1/400 of the range or half of an
    even step, whichever is less. Time and memory go as T N² and N², N the number of its values.

    errors: what the model's errors are. assumed: what its reverse steps take them to be, as at
    `process.posterior_kl`; None for the paper's variance.
    """
    check_steps(steps)
    if steps > _MAX_STEPS:
        raise InputError(
            f"steps = {steps}: the bound-optimal grid is for up to {_MAX_STEPS} steps, above which "
            "it gains nothing; take 'time'"
        )
    nodes = max(_NODES, 2 * steps) + 1
    ends = uniform_in_gamma(schedule, 1, end=end)
    fine = _nodes(schedule, nodes, end)
    cost = _costs(fine, errors, assumed)
    least = cost[0]
    chosen = []
    for _ in range(steps - 1):
        least, before = (least[:, None] + cost).min(0)
        chosen.append(before)
    path = [nodes - 1]
    for before in reversed(chosen):
        path.append(int(before[path[-1]]))
    return fine[[*path, 0]].to(ends)


def expected_diffusion(
    gammas: Gammas, errors: NoiseErrors, assumed: NoiseErrors | None = None
) -> float:
    """Return the diffusion loss of a chain that a model with these errors has, in nats per entry.

    assumed: as at `bound_optimal`.
    """
    gammas = gammas.detach().double().cpu()
    gamma_t, gamma_s = gammas[:-1], gammas[1:]
    error = _flat(errors.at(gamma_t))
    wide = None if assumed is None else _flat(assumed.at(gamma_t))
    return float(process.posterior_kl(gamma_s, gamma_t, error, wide).mean(1).sum())


def fewest_steps(
    schedule: Schedule, errors: NoiseErrors, assumed: NoiseErrors | None, excess: float = 0.05
) -> int:
    """Return the least T, at most 400, whose bound-optimal chain costs little more than T → ∞.

    excess: by what share the diffusion loss of the chain may be above that of infinitely many
        steps. assumed: as at `bound_optimal`.
    """
    limit = expected_diffusion(uniform_in_gamma(schedule, _MAX_STEPS), errors, assumed)
    cost = _costs(_nodes(schedule, _NODES + 1), errors, assumed)
    least, steps = cost[0], 1
    while least[-1] > (1 + excess) * limit and steps < _NODES:
        least, steps = (least[:, None] + cost).amin(0), steps + 1
    return steps


def _nodes(schedule: Schedule, nodes: int, end: float | None = None) -> Gammas:
    """Return values from `end`, or γ_0, up to γ_1 that a chain may go through."""
    return uniform_in_gamma(schedule, nodes - 1, end=end).flip(0).double().cpu()


def _costs(
    fine: Tensor, errors: NoiseErrors, assumed: NoiseErrors | None
) -> Float[Tensor, "nodes nodes"]:
    """Return what a step from fine[t] to fine[s] costs, [s, t]; infinity where s is not below t.

    Where there are many positions, a sample of them stands for all.
    """
    error = _flat(errors.at(fine))
    wide = None if assumed is None else _flat(assumed.at(fine))
    if error.shape[1] > _POSITIONS:
        every = torch.linspace(0, error.shape[1] - 1, _POSITIONS).long()
        error = error[:, every]
        wide = wide[:, every] if wide is not None and wide.shape[1] > 1 else wide
    elif wide is None:
        error = error.mean(1, keepdim=True)  # the cost is linear in the errors
    cost = torch.full((len(fine), len(fine)), torch.inf, dtype=fine.dtype)
    for t in range(1, len(fine)):
        here = error[t].expand(t, -1)
        there = None if wide is None else wide[t].expand(t, -1)
        cost[:t, t] = process.posterior_kl(fine[:t], fine[t].expand(t), here, there).mean(1)
    return cost


def _flat(error: Tensor) -> Tensor:
    return error.reshape(len(error), -1)
