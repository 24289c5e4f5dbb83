"""`vdm edit`: change examples with a trained model: inpaint, restore, vary, interpolate."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from variational_diffusion import editing, grids
from variational_diffusion.cli.changes import Job, middle, read_mask, task_options, visible
from variational_diffusion.cli.shared.console import Meter
from variational_diffusion.editing.operators import MEASUREMENTS, Measurement
from variational_diffusion.errors import InputError
from variational_diffusion.model import VDM
from variational_diffusion.sampling import SAMPLERS, named


@click.group()
def command() -> None:
    """Change examples with the model in RUN, which needs no training for it.

    DATA is as at vdm train; without it the run's own SPLIT is taken. Eight examples drawn at random
    are changed unless --limit says otherwise. A model with conditions is given those of the
    examples, unless --label or --conditions names others.
    """


_steps = click.option("--steps", type=click.IntRange(1), default=100, help="Steps (default 100).")
_draws = click.option(
    "--draws", type=click.IntRange(1), default=4, help="Results for each example (default 4)."
)


@command.command()
@click.option(
    "--mask",
    required=True,
    help="A picture of the images' size, or a boolean .npy array of an example's shape: what is "
    "white or true is painted anew.",
)
@click.option(
    "--repeats", type=click.IntRange(1), default=5, help="Times each step is done (default 5)."
)
@click.option(
    "--jump", type=click.IntRange(1), default=5, help="Steps repeated together (default 5)."
)
@_steps
@_draws
@task_options
def inpaint(mask: str, repeats: int, jump: int, steps: int, draws: int, **shared: Any) -> None:
    """Paint the white part of a mask anew; all else comes back as it was."""
    job = Job.start("inpaint", **shared)
    hole = read_mask(mask, job.vdm.shape)
    gammas = grids.uniform_in_time(job.vdm.schedule, steps).detach()

    def path(model: VDM, x: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        return editing.inpaint(
            model, x, hole, gammas, repeats=repeats, jump=jump, generator=generator
        )

    x, given = job.examples()
    hidden = torch.where(hole, middle(job.vdm), x).to(x.dtype)
    job.write(x, hidden, job.drawn(x, given, path, steps=steps, draws=draws))


@command.command()
@click.option("--measurement", required=True, help=f"One of: {', '.join(MEASUREMENTS)}.")
@click.option("--factor", type=int, help="Of downsample: side of the squares (default 2).")
@click.option("--width", type=float, help="Of blur: standard deviation in pixels (default 1).")
@click.option("--mask", help="Of mask: as at vdm edit inpaint; what is white is not seen.")
@click.option(
    "--noise",
    type=click.FloatRange(0),
    default=0.02,
    help="Standard deviation of the measurement's noise, where data span 2 (default 0.02).",
)
@click.option(
    "--measured", is_flag=True, help="DATA are measurements already, not what is measured."
)
@_steps
@_draws
@task_options
def restore(
    measurement: str,
    noise: float,
    measured: bool,
    steps: int,
    draws: int,
    factor: int | None,
    width: float | None,
    mask: str | None,
    **shared: Any,
) -> None:
    """Draw examples that agree with a measurement: fewer pixels, a blur, grey, a part unseen.

    Without --measured, the examples are measured first, and the sheet begins with them.
    """
    job = Job.start("restore", **shared)
    shape = job.vdm.shape
    function = _function(measurement, shape, {"factor": factor, "width": width, "mask": mask})
    seen = Measurement(function, noise)
    if measured:
        degraded, given = job.measurements(function)
        encoded = job.vdm.encode(degraded)
        x, y = None, function(encoded) if measurement == "mask" else encoded
    else:
        x, given = job.examples()
        y = seen(job.vdm.encode(x), job.generator())
    gammas = grids.uniform_in_time(job.vdm.schedule, steps).detach()

    def path(model: VDM, y: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        return editing.posterior_samples(model, y, seen, gammas, generator=generator)

    results = job.drawn(y, given, path, steps=steps, draws=draws)
    residual = function(job.vdm.encode(results[:, 0])) - y
    job.write(x, visible(job.vdm, y), results, residual=float(residual.square().mean().sqrt()))


@command.command()
@click.option("--gamma", type=float, required=True, help="The level of noise to go up to.")
@click.option("--sampler", default="ancestral", help=f"One of: {', '.join(SAMPLERS)}.")
@_steps
@_draws
@task_options
def vary(gamma: float, sampler: str, steps: int, draws: int, **shared: Any) -> None:
    """Put noise on examples up to a level γ and take it off again: more noise, more change."""
    carry = named(sampler)
    job = Job.start("vary", **shared)
    gammas = editing.below(grids.uniform_in_time(job.vdm.schedule, steps).detach(), gamma)

    def path(model: VDM, x: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        return editing.variations(model, x, gammas, sampler=carry, generator=generator)

    x, given = job.examples()
    job.write(x, None, job.drawn(x, given, path, steps=len(gammas) - 1, draws=draws))


@command.command()
@click.option(
    "--between", type=click.IntRange(1), default=6, help="Images between two (default 6)."
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, min_open=True),
    default=1e-4,
    help="Of the ODE's solver (default 1e-4).",
)
@task_options
def interpolate(between: int, tolerance: float, **shared: Any) -> None:
    """Go from the first example to the second, from the third to the fourth, and so on.

    The ends are encoded and decoded too; how far they are from the examples is printed. A model
    with conditions goes without them, or with those that --label or --conditions name.
    """
    job = Job.start("interpolate", **shared)
    x, given = job.examples(free=True)
    if len(x) < 2:
        raise InputError("limit = 1: an interpolation takes two examples or more")
    first, second = x[0 : len(x) // 2 * 2 : 2], x[1::2]
    shares = np.linspace(0, 1, between + 2).tolist()
    stages = []
    with Meter("interpolating", "images") as meter:
        model = given.to(job.vdm, slice(0, len(first)))
        path = editing.interpolate(
            model, first, second, shares, tolerance=tolerance, generator=job.generator()
        )
        for done, stage in enumerate(path):
            stages.append(stage)
            meter.update((done + 1) / len(shares), done + 1, lambda: "")
    results = torch.stack(stages, 1)
    ends = torch.stack([first, second], 1)
    difference = (results[:, [0, -1]].double() - ends.double()).abs()
    job.write(
        first,
        None,
        results,
        last=second,
        round_trip_exact=float((difference == 0).double().mean()),
        round_trip_largest=float(difference.max()),
    )


def _function(
    name: str, shape: tuple[int, ...], options: dict[str, Any]
) -> Callable[[Tensor], Tensor]:
    """Return the function of a measurement of the table, with the options that are its own."""
    if name not in MEASUREMENTS:
        raise InputError(f"measurement = {name!r}: known are {', '.join(MEASUREMENTS)}")
    own = list(inspect.signature(MEASUREMENTS[name]).parameters)[1:]
    given = {option: value for option, value in options.items() if value is not None}
    for option in given.keys() - set(own):
        takes = f"it takes --{own[0]}" if own else "it takes no option"
        raise InputError(f"{option} = {given[option]}: no option of {name}; {takes}")
    if "mask" in own:
        if "mask" not in given:
            raise InputError("measurement = 'mask': name the picture of the mask with --mask")
        given["mask"] = read_mask(given["mask"], shape)
    return MEASUREMENTS[name](shape, **given)
