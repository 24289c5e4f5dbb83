"""--estimator and its options: how −log p(x) is estimated, and how precisely."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from variational_diffusion.cli.shared.sampling import GRIDS, VARIANCES
from variational_diffusion.cli.shared.types import Number, OneOf

Command = TypeVar("Command", bound=Callable[..., Any])

ESTIMATORS = {
    "vlb": "the bound for infinitely many steps",
    "discrete": "the bound of the model with --steps steps",
    "ode": "the probability-flow ODE",
    "importance": "the ODE with --samples weighted draws",
}
DEQUANTISATIONS = ("truncated-normal", "variational", "uniform", "none")
LOOSEST, EXACT_DIMENSIONS, PROBES, LARGEST_SHARE, MOST_EVALUATIONS = 1e-4, 16, 4, 0.25, 128
"""As in `likelihood`, which imports torch; a test compares them."""


def estimator_options(command: Command) -> Command:
    """Add --estimator and what its entries take, as `evaluate` takes them."""
    for option in (
        click.option(
            "--tolerance",
            type=Number(1e-10, LOOSEST),
            help="Error of the ODE's solver (ode, importance), at most "
            f"{LOOSEST:g} (default 1e-5).",
        ),
        click.option(
            "--dequantisation",
            type=OneOf(DEQUANTISATIONS),
            help="How levels become real values (ode, importance; default: truncated-normal for "
            "discrete data).",
        ),
        click.option(
            "--probes",
            type=click.IntRange(1),
            help="Probes of the divergence. ode: default 1. importance: 3 or more; default: "
            "the exact "
            f"divergence up to {EXACT_DIMENSIONS} entries an example, else {PROBES}.",
        ),
        click.option(
            "--samples", type=click.IntRange(1), help="Weighted draws K (importance; default 8)."
        ),
        click.option(
            "--exact",
            is_flag=True,
            help="Discrete: every step instead of a sample; ode, importance: the exact divergence.",
        ),
        click.option(
            "--draws",
            type=click.IntRange(1),
            help="Network evaluations for each example in a round (vlb, discrete; default 2).",
        ),
        click.option(
            "--variance",
            type=OneOf(VARIANCES),
            help="Variance of the reverse steps (discrete): as in the paper (posterior, "
            "default), or widened "
            "by the measured error, one number a step (scalar), for each position, or predicted "
            "from z (after vdm variance).",
        ),
        click.option(
            "--grid",
            type=OneOf(GRIDS),
            help="Grid of the steps (discrete): uniform in time (default), in gamma, in a power of "
            "sigma/alpha (karras), for equal errors along the flow, or for the least bound "
            "(optimal).",
        ),
        click.option("--steps", type=click.IntRange(1), help="Steps T of the chain (discrete)."),
        click.option(
            "--estimator",
            type=OneOf(list(ESTIMATORS)),
            default="vlb",
            help="; ".join(f"{name}: {what}" for name, what in ESTIMATORS.items()) + ".",
        ),
    ):
        command = option(command)
    return command


def rounds_options(command: Command) -> Command:
    """Add --rounds and --target-se."""
    for option in (
        click.option(
            "--target-se",
            type=Number(0, min_open=True),
            help="Go on with rounds until the error of the draws is at most this, in bits/dim, "
            "however many evaluations that takes.",
        ),
        click.option(
            "--rounds",
            type=click.IntRange(1),
            help="Rounds of independent draws, whose spread gives the error of the draws. "
            f"Default: 2, then more until that error is {LARGEST_SHARE:.0%} of the standard error "
            f"or less, as long as no example takes more than {MOST_EVALUATIONS} evaluations of the "
            "network.",
        ),
    ):
        command = option(command)
    return command
