"""--steps, --grid and --variance: the chain of T steps that a command uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from variational_diffusion.grids import GRIDS, VARIANCES

Command = TypeVar("Command", bound=Callable[..., Any])


def chain_options(command: Command) -> Command:
    """Add --steps, --grid and --variance."""
    for option in (
        click.option(
            "--variance",
            type=click.Choice(VARIANCES),
            help="Of the reverse steps: as in the paper (posterior, default), or widened by the "
            "measured error, one number a step (scalar), for each position, or predicted "
            "from z (after vdm variance).",
        ),
        click.option(
            "--grid",
            type=click.Choice(list(GRIDS)),
            help="Of the steps: uniform in time (default), in gamma, in a power of sigma/alpha "
            "(karras), for equal errors along the flow, or for the least bound (optimal).",
        ),
        click.option("--steps", type=click.IntRange(1), help="Steps T of the chain."),
    ):
        command = option(command)
    return command


def is_chain_option_given(options: dict[str, Any]) -> bool:
    """Tell whether --grid or --variance was given."""
    return options["grid"] is not None or options["variance"] is not None
