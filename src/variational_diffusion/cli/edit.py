"""`vdm edit`: change examples with a trained model: inpaint, restore, vary, interpolate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from variational_diffusion.cli.shared.console import print_json, say, shown
from variational_diffusion.cli.shared.examples import examples_options, given_options
from variational_diffusion.cli.shared.options import (
    device_options,
    json_option,
    open_run,
    seed_option,
    weights_option,
)
from variational_diffusion.cli.shared.sampling import SAMPLERS
from variational_diffusion.cli.shared.types import Number

MEASUREMENTS = ("mask", "downsample", "blur", "grey")
"""As in `editing.operators`, which imports torch; a test compares them."""

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group()
def command() -> None:
    """Change examples with the model in RUN, which needs no training for it.

    DATA is as at vdm train; without it the run's own SPLIT is taken. Eight examples drawn at random
    are changed unless --limit says otherwise. A model with conditions is given those of the
    examples, unless --label or --conditions names others.
    """


def _task_options(task: Command) -> Command:
    """Add the options that all tasks share; `_edited` takes them."""
    for option in (
        json_option,
        click.option(
            "--out",
            type=click.Path(),
            help="Where to write: a .png sheet or an .npy array; default: in the run.",
        ),
        seed_option("the draws"),
        weights_option,
        device_options,
        given_options,
        examples_options,
    ):
        task = option(task)
    return task


_steps = click.option("--steps", type=click.IntRange(1), default=100, help="Steps (default 100).")
_draws = click.option(
    "--n", "draws", type=click.IntRange(1), default=4, help="Samples for each example (default 4)."
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
@_task_options
def inpaint(mask: str, **options: Any) -> None:
    """Paint the white part of a mask anew; all else comes back as it was.

    Example: vdm edit inpaint runs/first --mask mask.png
    """
    _edit("inpaint", mask, **options)


@command.command()
@click.option("--measurement", required=True, help=f"One of: {', '.join(MEASUREMENTS)}.")
@click.option("--factor", type=int, help="Of downsample: side of the squares (default 2).")
@click.option("--width", type=Number(), help="Standard deviation of blur, in pixels (default 1).")
@click.option(
    "--mask", help="A picture or array for mask, as at vdm edit inpaint; what is white is not seen."
)
@click.option(
    "--noise",
    type=Number(0),
    default=0.02,
    help="Standard deviation of the measurement's noise, where data span 2 (default 0.02).",
)
@click.option(
    "--measured", is_flag=True, help="DATA are measurements already, not what is measured."
)
@_steps
@_draws
@_task_options
def restore(measurement: str, **options: Any) -> None:
    """Draw examples that agree with a measurement: fewer pixels, a blur, grey, a part unseen.

    Without --measured, the examples are measured first, and the sheet begins with them.

    Example: vdm edit restore runs/first --measurement downsample --factor 4
    """
    _edit("restore", measurement, **options)


@command.command()
@click.option("--gamma", type=Number(), required=True, help="The level of noise to go up to.")
@click.option("--sampler", default="ancestral", help=f"One of: {', '.join(SAMPLERS)}.")
@_steps
@_draws
@_task_options
def vary(gamma: float, **options: Any) -> None:
    """Put noise on examples up to a level γ and take it off again: more noise, more change.

    Example: vdm edit vary runs/first --gamma 0
    """
    _edit("vary", gamma, **options)


@command.command()
@click.option(
    "--between", type=click.IntRange(1), default=6, help="Images between two (default 6)."
)
@click.option(
    "--tolerance",
    type=Number(0, min_open=True),
    default=1e-4,
    help="Error of the ODE's solver (default 1e-4).",
)
@_task_options
def interpolate(**options: Any) -> None:
    """Go from the first example to the second, from the third to the fourth, and so on.

    The ends are encoded and decoded too; how far they are from the examples is printed. A model
    with conditions goes without them, or with those that --label or --conditions name.

    Example: vdm edit interpolate runs/first --limit 4
    """
    _edit("interpolate", **options)


def _edit(
    task: str,
    *first: Any,
    run: str,
    data: str | None,
    out: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Do a task of `run.editing`, write its results, and print where they are."""
    from variational_diffusion.images.pictures import is_image
    from variational_diffusion.run import editing
    from variational_diffusion.storage.files import expanded, unused

    opened = open_run(run)
    shape = opened.config.model.shape
    if out is None:
        name = f"{task}-seed-{options['seed']}{'.png' if is_image(shape) else '.npy'}"
        path = unused(opened.path / "samples" / name)
    else:
        path = expanded(out)
    editing.check_output(path, shape)
    found = getattr(editing, task)(opened, *first, data, progress=shown, **options)
    found.write(path)
    if as_json:
        print_json({**found.as_json(), "out": str(path)})
        return
    say(path)
    for name, value in found.figures.items():
        say(f"{name.replace('_', ' ')}: {value:.4g}")
