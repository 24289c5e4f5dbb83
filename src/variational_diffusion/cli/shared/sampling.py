"""--sampler, --steps, --grid and their like: how a command draws samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from variational_diffusion.cli.shared.types import Number, OneOf

GRIDS = ("time", "gamma", "karras", "equal-error", "optimal")
VARIANCES = ("posterior", "scalar", "position", "predicted")
SAMPLERS = (
    "ancestral",
    "ddim",
    "dpmpp-2m",
    "dpmpp-3m",
    "sde-dpmpp-2m",
    "unipc",
    "heun",
    "adaptive",
)
DEFAULT_STEPS, GRID, UNSEEN = 20, "gamma", 3 / 256
"""As in `grids`, `sampling` and `decoders`, which import torch; a test compares them."""

Command = TypeVar("Command", bound=Callable[..., Any])

SAMPLER_HELP = (
    f"One of: {', '.join(SAMPLERS)} (default sde-dpmpp-2m for images, unipc for vectors)."
)


def sampling_options(command: Command) -> Command:
    """Add the options of sampling, as `Run.sample` takes them."""
    for option in (
        click.option(
            "--clip",
            type=Number(0, 1),
            metavar="QUANTILE",
            help="Keep x̂ in the range of the levels: 0 cuts it off; 0.995, say, scales an example "
            "whose x̂ exceeds it at that quantile (default: as it is).",
        ),
        click.option(
            "--stop-early",
            type=Number(0, 1),
            metavar="SHARE",
            help="Take the last step from where the noise is this share of the range of the data "
            f"(default: {UNSEEN:.3g} for images of {-(-1 // UNSEEN):.0f} levels or more, all the "
            "way otherwise; 0: all the way).",
        ),
        click.option(
            "--eta",
            type=Number(),
            help="Noise drawn on the way, from 0 (none) to 1 (as much as ancestral), by ddim, "
            "dpmpp-2m, dpmpp-3m, sde-dpmpp-2m and unipc.",
        ),
        click.option(
            "--variance",
            type=OneOf(VARIANCES),
            default="posterior",
            help="Variance of the reverse steps (ancestral): as in the paper (posterior, "
            "default), or widened by the measured "
            "error, one number a step (scalar), for each position, or predicted from z (after vdm "
            "variance).",
        ),
        click.option(
            "--grid",
            type=OneOf(GRIDS),
            default=GRID,
            help=f"Grid of the steps (default {GRID}); equal-error and optimal measure the "
            f"model once.",
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
