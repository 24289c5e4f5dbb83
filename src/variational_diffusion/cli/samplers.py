"""--sampler, --steps, --grid and their like: how a command draws samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import click

from variational_diffusion.cli.console import shown
from variational_diffusion.decoders import UNSEEN, Discretized
from variational_diffusion.errors import InputError
from variational_diffusion.grids import GRIDS, VARIANCES, Gammas
from variational_diffusion.model import VDM
from variational_diffusion.run.directory import Run
from variational_diffusion.run.noise_errors import reverse_chain
from variational_diffusion.run.trained import Trained
from variational_diffusion.sampling import (
    DEFAULT_STEPS,
    SAMPLERS,
    Multistep,
    Sampler,
    default_for,
    named,
)

Command = TypeVar("Command", bound=Callable[..., Any])

_GRID = "gamma"
DEFAULTS: dict[str, Any] = {
    "sampler": None,
    "steps": DEFAULT_STEPS,
    "grid": _GRID,
    "variance": "posterior",
    "eta": None,
    "stop_early": None,
    "clip": None,
}
"""What `sampling_of` is given by a command that was asked for nothing."""

SAMPLER_HELP = (
    f"One of: {', '.join(SAMPLERS)} (default sde-dpmpp-2m for images, unipc for vectors)."
)


class Sampling(NamedTuple):
    """What is sampled, by what, on which grid."""

    model: VDM
    sampler: Sampler
    gammas: Gammas


def sampling_options(command: Command) -> Command:
    """Add the options of sampling; `sampling_of` acts on them."""
    for option in (
        click.option(
            "--clip",
            type=click.FloatRange(0, 1),
            metavar="QUANTILE",
            help="Keep x̂ in the range of the levels: 0 cuts it off; 0.995, say, scales an example "
            "whose x̂ exceeds it at that quantile (default: as it is).",
        ),
        click.option(
            "--stop-early",
            type=click.FloatRange(0, 1),
            metavar="SHARE",
            help="Take the last step from where the noise is this share of the range of the data "
            f"(default: {UNSEEN:.3g} for images of {math.ceil(1 / UNSEEN)} levels or more, all the "
            "way otherwise; 0: all the way).",
        ),
        click.option(
            "--eta",
            type=float,
            help="ddim, dpmpp-2m, dpmpp-3m, sde-dpmpp-2m, unipc: noise drawn on the way, from 0 "
            "(none) to 1 (as much as ancestral).",
        ),
        click.option(
            "--variance",
            type=click.Choice(VARIANCES),
            default="posterior",
            help="ancestral: as in the paper (posterior, default), or widened by the measured "
            "error, one number a step (scalar), for each position, or predicted from z (after vdm "
            "variance).",
        ),
        click.option(
            "--grid",
            type=click.Choice(list(GRIDS)),
            default=_GRID,
            help=f"Of the steps (default {_GRID}); equal-error and optimal measure the model once.",
        ),
        click.option(
            "--steps",
            type=click.IntRange(1),
            default=DEFAULT_STEPS,
            help=f"Steps of the sampler (default {DEFAULT_STEPS}); heun evaluates the network "
            "twice in each, adaptive as often as it needs.",
        ),
        click.option(
            "--sampler",
            help=SAMPLER_HELP,
        ),
    ):
        command = option(command)
    return command


def sampling_of(run: Run, vdm: VDM, weights: str, options: dict[str, Any]) -> Sampling:
    """Return what the options of `sampling_options` ask for; a default sampler is named there."""
    options["sampler"] = options["sampler"] or default_for(vdm.shape)
    name, variance, clip = options["sampler"], options["variance"], options["clip"]
    sampler = named(name)
    if options["eta"] is not None:
        if not isinstance(sampler, Multistep):
            with_eta = [key for key, value in SAMPLERS.items() if isinstance(value, Multistep)]
            raise InputError(
                f"eta = {options['eta']}: {name} has none; it is for {', '.join(with_eta)}"
            )
        sampler = replace(sampler, eta=options["eta"])
    if variance != "posterior" and name != "ancestral":
        raise InputError(
            f"variance = '{variance}': {name} does not draw with it; type --sampler ancestral"
        )
    stop = _stop(vdm, options["stop_early"], options["steps"])
    trained = Trained(run, weights, vdm)
    model, gammas = reverse_chain(
        trained, options["steps"], options["grid"], variance, stop=stop, progress=shown
    )
    return Sampling(model if clip is None else model.clipped(clip), sampler, gammas)


def _stop(vdm: VDM, share: float | None, steps: int) -> float | None:
    """Return the γ from which the last step is taken; None for a grid that goes all the way."""
    if share == 0:
        return None
    if share is None:
        return vdm.stop_early(steps)
    if not isinstance(vdm.decoder, Discretized):
        raise InputError(f"stop_early = {share:g}: real-valued data have no range; leave it out")
    gamma = vdm.decoder.gamma_at(share)
    gamma_0, gamma_1 = (float(end) for end in vdm.schedule.end_points)
    if not gamma_0 < gamma < gamma_1:
        low, high = (vdm.decoder.noise_at(end) for end in (gamma_0, gamma_1))
        raise InputError(
            f"stop_early = {share:g}: this model's noise is {low:.2g} to {high:.2g} of the range; "
            "give a share between, or 0"
        )
    return gamma
