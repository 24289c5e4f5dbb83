"""Grids whose steps are the same share of some measure of γ.

Each is called with a schedule, the number of steps T, the model's measured errors where it needs
them, and `end`, the last γ; None: γ_0. The first γ is γ_1, and both are exact.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from variational_diffusion.errors import InputError
from variational_diffusion.grids.errors import NoiseErrors
from variational_diffusion.schedules import Schedule

_FINE = 4000
_HALVINGS = 60
_ROUNDING = 8
"""Units in the last place by which the ends of a grid may be off."""

Gammas = Float[Tensor, " levels"]
"""A grid of T + 1 values from γ_1 down to γ_0, as samplers take it."""


def uniform_in_time(schedule: Schedule, steps: int, *, end: float | None = None) -> Gammas:
    """Return γ(t) at T + 1 even times from 1 to 0, or to the time of `end`."""
    check_steps(steps)
    ends = schedule.end_points
    last = 0.0 if end is None else _time_of(schedule, end)
    gammas = schedule(torch.linspace(1, last, steps + 1, dtype=ends.dtype, device=ends.device))
    return gammas if end is None else _with_ends(gammas, schedule, end)


def uniform_in_gamma(schedule: Schedule, steps: int, *, end: float | None = None) -> Gammas:
    """Return T equal steps in γ."""
    check_steps(steps)
    gamma_1, last = _ends(schedule, end)
    share = torch.linspace(0, 1, steps + 1, dtype=gamma_1.dtype, device=gamma_1.device)
    return torch.lerp(gamma_1, last, share)


def karras(schedule: Schedule, steps: int, *, end: float | None = None, rho: float = 7.0) -> Gammas:
    """Return T equal steps in (sigma/alpha)^(1/ρ) = e^{γ/(2ρ)}, ρ > 0.

    Source: Karras, Aittala, Aila, Laine, "Elucidating the Design Space of Diffusion-Based
    Generative Models" (2022), eq. 5. As ρ grows it becomes uniform in γ.
    """
    u = torch.exp(uniform_in_gamma(schedule, 1, end=end).detach().double() / (2 * rho))
    share = torch.linspace(0, 1, steps + 1, dtype=u.dtype, device=u.device)
    check_steps(steps)
    return _with_ends(2 * rho * torch.lerp(u[0], u[1], share).log(), schedule, end)


def equal_error(
    schedule: Schedule,
    steps: int,
    errors: NoiseErrors,
    assumed: NoiseErrors | None = None,
    *,
    end: float | None = None,
    order: int = 2,
) -> Gammas:
    """Return T steps that add about the same error to the end of the flow.

    x̂ moves along the flow, and a solver of order p takes its p-th derivative to be zero. For
    Gaussian data, entry by entry with m = E(ε − ε̂)² and k = sigma/alpha, the flow moves x̂ at
    the rate |dx̂/dλ| = k m √(1 − m), and carries an error in z/alpha to γ_0 times √m. So a step
    of length h adds about h^(p+1) k m^{3/2} √(1 − m), and with the rate standing for the higher
    derivatives too, the density of steps is the root mean square of this to the power 1/(p + 1).

    assumed: not used. order: p, of the solver that the grid is for.
    """
    gamma_1, last = (float(gamma) for gamma in _ends(schedule, end))
    check_steps(steps)
    fine = torch.linspace(gamma_1, last, _FINE + 1, dtype=torch.float64)
    error = errors.at(fine).flatten(1).clamp(0, 1)
    weight = (error**3 * (1 - error)).mean(1) * fine.exp()
    weight = weight + 1e-12 * weight.max()  # where nothing moves, steps are few and not infinite
    density = weight ** (0.5 / (order + 1))
    measure = torch.cat([density.new_zeros(1), (density[1:] + density[:-1]).cumsum(0)])
    return _with_ends(_even(fine, measure, steps), schedule, end)


def _even(gamma: Tensor, measure: Tensor, steps: int) -> Tensor:
    """Return γ at even values of a rising measure of it, between its points linearly."""
    wanted = torch.linspace(0, 1, steps + 1, dtype=measure.dtype) * measure[-1]
    above = torch.searchsorted(measure, wanted).clamp(1, len(measure) - 1)
    share = (wanted - measure[above - 1]) / (measure[above] - measure[above - 1])
    return torch.lerp(gamma[above - 1], gamma[above], share)


def _ends(schedule: Schedule, end: float | None) -> tuple[Tensor, Tensor]:
    """Return γ_1 and the last γ; raise `InputError` for one that is not between γ_0 and γ_1."""
    gamma_0, gamma_1 = schedule.end_points.detach()
    if end is None:
        return gamma_1, gamma_0
    if not float(gamma_0) < end < float(gamma_1):
        raise InputError(
            f"end = {end}: give a γ between {float(gamma_0):.2f} and {float(gamma_1):.2f}, the "
            "range of this model"
        )
    return gamma_1, gamma_1.new_tensor(end)


def _with_ends(gammas: Tensor, schedule: Schedule, end: float | None) -> Gammas:
    gamma_1, last = _ends(schedule, end)
    inner = gammas.detach()[1:-1].to(gamma_1)
    return torch.cat([gamma_1[None], inner, last[None]])


@torch.no_grad()
def _time_of(schedule: Schedule, gamma: float) -> float:
    """Return t with γ(t) = γ, by bisection."""
    _ends(schedule, gamma)
    low, high = 0.0, 1.0
    like = schedule.end_points
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if float(schedule(like.new_tensor([middle]))) < gamma:
            low = middle
        else:
            high = middle
    return high


def check_steps(steps: int) -> None:
    """Raise `InputError` for a chain without a step."""
    if steps < 1:
        raise InputError(f"steps = {steps}: a chain has one step or more")


def check_falling(gammas: Gammas) -> None:
    """Raise `InputError` unless a grid has a step or more, and every one of them goes down."""
    if gammas.ndim != 1:
        raise InputError(f"gammas has shape {tuple(gammas.shape)}: a grid is a list of levels γ")
    check_steps(len(gammas) - 1)
    rising = (~(gammas.diff() < 0)).nonzero()
    if len(rising):
        i = int(rising[0])
        raise InputError(
            f"gammas: from {float(gammas[i]):.6g} to {float(gammas[i + 1]):.6g} they do not fall; "
            "give a grid from γ_1 down to γ_0, such as grids.uniform_in_time(vdm.schedule, 50)"
        )


def check_ends(gammas: Gammas, schedule: Schedule) -> None:
    """Raise `InputError` unless a grid begins at γ_1 of a schedule and ends at γ_0.

    A bound over another range of γ is not one on log p(x).
    """
    ends = schedule.end_points.detach().flip(0)
    allowed = _ROUNDING * float(torch.finfo(ends.dtype).eps) * (1 + float(ends.abs().max()))
    given = gammas[[0, -1]].detach().to(ends)
    if not bool(((given - ends).abs() <= allowed).all()):
        first, last = gammas[0], gammas[-1]
        raise InputError(
            f"gammas: from {float(first):.6g} to {float(last):.6g}, but the model's range is from "
            f"γ_1 = {float(ends[0]):.6g} down to γ_0 = {float(ends[1]):.6g}; lay the grid for its "
            "schedule, as grids.uniform_in_time(vdm.schedule, 50) does"
        )
