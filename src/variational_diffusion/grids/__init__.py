"""Step grids in γ for chains of T steps, and the reverse variance, from measured errors.

With few steps the paper's reverse variance, that of q(z_s|z_t, x), is too small: x̂ is wrong by
what E(ε_i − ε̂_i)² says, and the best Gaussian of the same mean is wider (`process.widened`).
What a step then costs is known from the same errors, so the grid of T steps with the least bound
can be found without another evaluation of the network (`optimal`). For pictures along the flow the
same errors say where x̂ moves (`even.equal_error`), and how soon no more of it is to be seen.
"""

from collections.abc import Callable

import torch

from variational_diffusion.errors import InputError, one_of
from variational_diffusion.grids.errors import VARIANCES as VARIANCES
from variational_diffusion.grids.errors import NoiseErrors as NoiseErrors
from variational_diffusion.grids.errors import PredictedErrors as PredictedErrors
from variational_diffusion.grids.errors import ReverseVariance as ReverseVariance
from variational_diffusion.grids.errors import assumed_errors as assumed_errors
from variational_diffusion.grids.errors import variance_named as variance_named
from variational_diffusion.grids.even import Gammas as Gammas
from variational_diffusion.grids.even import check_ends as check_ends
from variational_diffusion.grids.even import check_falling as check_falling
from variational_diffusion.grids.even import equal_error as equal_error
from variational_diffusion.grids.even import karras as karras
from variational_diffusion.grids.even import uniform_in_gamma as uniform_in_gamma
from variational_diffusion.grids.even import uniform_in_time as uniform_in_time
from variational_diffusion.grids.optimal import bound_optimal as bound_optimal
from variational_diffusion.grids.optimal import expected_diffusion as expected_diffusion
from variational_diffusion.grids.optimal import fewest_steps as fewest_steps
from variational_diffusion.schedules import Schedule

GRIDS: dict[str, Callable[..., Gammas]] = {
    "time": uniform_in_time,
    "gamma": uniform_in_gamma,
    "karras": karras,
    "equal-error": equal_error,
    "optimal": bound_optimal,
}
"""How T steps are laid: uniform in t, in γ, in (sigma/alpha)^(1/7), for equal errors along the
flow, for the least bound."""

MEASURED = frozenset({"equal-error", "optimal"})
"""The grids that are made of measured errors."""


def step_grid(
    name: str,
    schedule: Schedule,
    steps: int,
    errors: NoiseErrors | None = None,
    assumed: NoiseErrors | None = None,
    *,
    stop: float | None = None,
) -> Gammas:
    """Return the grid with a name of `GRIDS`, from γ_1 down to γ_0.

    errors: of the model, for the grids in `MEASURED`. assumed: as at `bound_optimal`.
    stop: where given, the first T − 1 steps are laid between γ_1 and this γ, and the last goes from
        there to γ_0: x̂ ends the way where only noise that nobody sees is left. T ≥ 2.
    """
    one_of("grid", name, GRIDS)
    if name in MEASURED and errors is None:
        raise InputError(f"grid = {name!r} needs measured errors; give them, or take 'gamma'")
    if stop is not None and steps < 2:
        raise InputError(f"steps = {steps}: stopping early takes two steps or more")
    measured = (errors, assumed) if name in MEASURED else ()
    if stop is None:
        return GRIDS[name](schedule, steps, *measured)
    gammas = GRIDS[name](schedule, steps - 1, *measured, end=stop)
    return torch.cat([gammas, schedule.gamma_0.detach()[None]])
