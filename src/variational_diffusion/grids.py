"""Step grids in γ for chains of T steps, and the reverse variance, from measured errors.

With few steps the paper's reverse variance, that of q(z_s|z_t, x), is too small: x̂ is wrong by
what E(ε_i − ε̂_i)² says, and the best Gaussian of the same mean is wider (`process.widened`).
What a step then costs is known from the same errors, so the grid of T steps with the least bound
can be found without another evaluation of the network.

Source: Bao, Li, Zhu, Zhang, "Analytic-DPM" (2022), and Bao et al., "Estimating the Optimal
Covariance with Imperfect Mean in Diffusion Probabilistic Models" (2022), for the variance; Watson,
Ho, Norouzi, Chan, "Learning to Efficiently Sample from Diffusion Probabilistic Models" (2021), for
the dynamic program. Both are written for γ here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from variational_diffusion import process
from variational_diffusion.errors import InputError
from variational_diffusion.schedules import Schedule

_NODES = 400
_POSITIONS = 1024
_MAX_STEPS = 1000
_LARGEST_LOG = 8.0
_SMOOTH_MEAN, _SMOOTH_POSITION = 1.5, 3.0  # bins

Gammas = Float[Tensor, " levels"]
"""A grid of T + 1 values from γ_1 down to γ_0, as samplers take it."""


@dataclass(frozen=True)
class NoiseErrors:
    """m(γ) = E(ε − ε̂)² of a trained model, in bins of one width over γ.

    gamma: middles of the bins, rising, shape (bins,), two or more.
    error: shape (bins, *shape), for every position of an example; an axis of length one stands for
        all positions along it.
    """

    gamma: Float[Tensor, " bins"]
    error: Float[Tensor, "bins *shape"]

    def at(self, gamma: process.Gamma) -> Float[Tensor, "*batch_and_shape"]:
        """Return m at every γ: linear between the middles of the bins, constant beyond them."""
        middles, error = self.gamma.to(gamma), self.error.to(gamma)
        last = len(middles) - 1
        place = ((gamma - middles[0]) / (middles[-1] - middles[0]) * last).clamp(0, last)
        below = place.floor().clamp(max=last - 1)
        share = (place - below).reshape(*gamma.shape, *(1,) * (error.ndim - 1))
        return torch.lerp(error[below.long()], error[below.long() + 1], share)

    def __call__(self, z: Tensor, gamma: Float[Tensor, " batch"], noise: Tensor) -> Tensor:
        """Return what is assumed of (ε − ε̂)² at z: its mean over all z at this γ."""
        return self.at(gamma)

    def smoothed(self) -> NoiseErrors:
        """Return the same with neighbouring bins averaged, which m(γ) being smooth allows.

        The mean over positions, in its logarithm, by a Gaussian of one and a half bins; what each
        position is of the mean, by one of three. A grid that is optimal for a noisy profile would
        put its steps where the noise happens to be low.
        """
        mean = self.averaged().error
        kernel = _kernel(len(self.gamma), _SMOOTH_MEAN).to(mean)
        of_position = _kernel(len(self.gamma), _SMOOTH_POSITION).to(mean)
        level = torch.tensordot(kernel, mean.log(), 1).exp()
        return NoiseErrors(self.gamma, level * torch.tensordot(of_position, self.error / mean, 1))

    def averaged(self) -> NoiseErrors:
        """Return the same with one number for all positions."""
        axes = tuple(range(1, self.error.ndim))
        return NoiseErrors(self.gamma, self.error.mean(axes, keepdim=True))


def _kernel(bins: int, width: float) -> Float[Tensor, "bins bins"]:
    place = torch.arange(bins, dtype=torch.float64)
    weights = torch.exp(-0.5 * ((place[:, None] - place) / width).square())
    return weights / weights.sum(1, keepdim=True)


@dataclass(frozen=True)
class PredictedErrors:
    """E[(ε − ε̂)² | z], by a network that predicts its logarithm relative to the mean over z.

    mean: measured errors. head: (z, γ, ε̂) → factor's logarithm, such as `networks.VarianceHead`.
    """

    mean: NoiseErrors
    head: Callable[[Tensor, Tensor, Tensor], Tensor]

    def __call__(self, z: Tensor, gamma: Float[Tensor, " batch"], noise: Tensor) -> Tensor:
        """Return what is assumed of (ε − ε̂)² at z, of the shape of z."""
        factor = self.head(z, gamma, noise).clamp(-_LARGEST_LOG, _LARGEST_LOG).exp()
        return self.mean.at(gamma) * factor


VARIANCES = ("posterior", "scalar", "position", "predicted")
"""The reverse variance: as in the paper; widened by one number a step; by one for each position; by
one that a network predicts from z."""


def assumed_errors(variance: str, errors: NoiseErrors | None) -> NoiseErrors | None:
    """Return the errors by which a name of `VARIANCES` widens the reverse step.

    For "predicted" those for each position, which a `PredictedErrors` refines for every z.
    """
    if variance not in VARIANCES:
        raise InputError(f"variance = {variance!r}: known are {', '.join(VARIANCES)}")
    if variance == "posterior":
        return None
    if errors is None:
        raise InputError(
            f"variance = {variance!r} needs measured errors; give them, or 'posterior'"
        )
    return errors.averaged() if variance == "scalar" else errors


def uniform_in_time(schedule: Schedule, steps: int) -> Gammas:
    """Return γ(t) at t = 1, 1 − 1/T, …, 0."""
    _check(steps)
    ends = schedule.end_points
    return schedule(torch.linspace(1, 0, steps + 1, dtype=ends.dtype, device=ends.device))


def uniform_in_gamma(schedule: Schedule, steps: int) -> Gammas:
    """Return T equal steps from γ_1 to γ_0."""
    _check(steps)
    gamma_0, gamma_1 = schedule.end_points.detach()
    share = torch.linspace(0, 1, steps + 1, dtype=gamma_0.dtype, device=gamma_0.device)
    return torch.lerp(gamma_1, gamma_0, share)


def bound_optimal(
    schedule: Schedule, steps: int, errors: NoiseErrors, assumed: NoiseErrors | None = None
) -> Gammas:
    """Return the grid of T steps between the schedule's end points with the least expected bound.

    By dynamic programming over a fine uniform grid, whose width is 1/400 of the range or half of an
    even step, whichever is less. Time and memory go as T N² and N², N the number of its values.

    errors: what the model's errors are. assumed: what its reverse steps take them to be, as at
    `process.posterior_kl`; None for the paper's variance.
    """
    _check(steps)
    if steps > _MAX_STEPS:
        raise InputError(
            f"steps = {steps}: the bound-optimal grid is for up to {_MAX_STEPS} steps, above which "
            "it gains nothing; take 'time'"
        )
    nodes = max(_NODES, 2 * steps) + 1
    fine = _nodes(schedule, nodes)
    cost = _costs(fine, errors, assumed)
    least = cost[0]
    chosen = []
    for _ in range(steps - 1):
        least, before = (least[:, None] + cost).min(0)
        chosen.append(before)
    path = [nodes - 1]
    for before in reversed(chosen):
        path.append(int(before[path[-1]]))
    ends = schedule.end_points.detach()
    grid = fine[[*path, 0]].to(ends)
    grid[0], grid[-1] = ends[1], ends[0]
    return grid


GRIDS = ("time", "gamma", "optimal")
"""How T steps are laid: uniform in t, uniform in γ, or for the least bound."""


def step_grid(
    name: str,
    schedule: Schedule,
    steps: int,
    errors: NoiseErrors | None = None,
    assumed: NoiseErrors | None = None,
) -> Gammas:
    """Return the grid with a name of `GRIDS`; "optimal" takes the errors of `bound_optimal`."""
    if name == "time":
        return uniform_in_time(schedule, steps)
    if name == "gamma":
        return uniform_in_gamma(schedule, steps)
    if name != "optimal":
        raise InputError(f"grid = {name!r}: known are {', '.join(GRIDS)}")
    if errors is None:
        raise InputError("grid = 'optimal' needs measured errors; give them, or take 'time'")
    return bound_optimal(schedule, steps, errors, assumed)


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


def _nodes(schedule: Schedule, nodes: int) -> Gammas:
    """Return values from γ_0 up to γ_1 that a chain may go through."""
    return uniform_in_gamma(schedule, nodes - 1).flip(0).double().cpu()


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


def _check(steps: int) -> None:
    if steps < 1:
        raise InputError(f"steps = {steps}: a chain has one step or more")
