"""--estimator and its options: how −log p(x) is estimated, and how precisely."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from variational_diffusion.cli.chains import chain_options, is_chain_option_given
from variational_diffusion.cli.console import shown
from variational_diffusion.errors import InputError
from variational_diffusion.likelihood import (
    DEQUANTISATIONS,
    ESTIMATORS,
    EXACT_DIMENSIONS,
    LARGEST_SHARE,
    LOOSEST,
    MOST_EVALUATIONS,
    PROBES,
    ContinuousBound,
    DiscreteBound,
    Estimator,
    ImportanceWeighted,
    ODELikelihood,
    default_probes,
)
from variational_diffusion.model import VDM
from variational_diffusion.run.noise_errors import reverse_chain
from variational_diffusion.run.trained import Trained

Command = TypeVar("Command", bound=Callable[..., Any])


def estimator_options(command: Command) -> Command:
    """Add --estimator and what its entries take; `estimator_of` acts on them."""
    for option in (
        click.option(
            "--tolerance",
            type=click.FloatRange(1e-10, LOOSEST),
            default=1e-5,
            help=f"ode, importance: error of the solver, at most {LOOSEST:g} (default 1e-5).",
        ),
        click.option(
            "--dequantisation",
            type=click.Choice(list(DEQUANTISATIONS)),
            help="ode, importance; default: truncated-normal for discrete data.",
        ),
        click.option(
            "--probes",
            type=click.IntRange(1),
            help="Of the divergence. ode: default 1. importance: 3 or more; default: the exact "
            f"divergence up to {EXACT_DIMENSIONS} entries an example, else {PROBES}.",
        ),
        click.option(
            "--samples", type=click.IntRange(1), default=8, help="K of importance (default 8)."
        ),
        click.option(
            "--exact",
            is_flag=True,
            help="discrete: every step instead of a sample; ode, importance: the exact divergence.",
        ),
        click.option(
            "--draws",
            type=click.IntRange(1),
            default=2,
            help="vlb, discrete: network evaluations for each example in a round (default 2).",
        ),
        chain_options,
        click.option(
            "--estimator",
            type=click.Choice(list(ESTIMATORS)),
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
            type=click.FloatRange(0, min_open=True),
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


def estimator_of(name: str, trained: Trained, options: dict[str, Any]) -> tuple[VDM, Estimator]:
    """Return what the options ask for, and the model that it is called with."""
    exact, vdm = options["exact"], trained.vdm
    if name == "vlb":
        return vdm, ContinuousBound(options["draws"])
    if name == "discrete":
        grid, variance = options["grid"] or "time", options["variance"] or "posterior"
        chain = reverse_chain(trained, options["steps"], grid, variance, progress=shown)
        return chain.model, DiscreteBound(chain.gammas, None if exact else options["draws"])
    probes = options["probes"]
    if probes is None and not exact:
        probes = 1 if name == "ode" else default_probes(vdm.dimensions)
    flow = ODELikelihood(options["dequantisation"], probes, options["tolerance"])
    return vdm, flow if name == "ode" else ImportanceWeighted(options["samples"], flow)


def check_estimator(estimator: str, options: dict[str, Any]) -> None:
    """Raise InputError for options that do not go with the estimator."""
    steps = options["steps"]
    if (estimator == "discrete") != (steps is not None):
        raise InputError(
            f"estimator = {estimator!r}, steps = {steps}: --steps goes with "
            "--estimator discrete, and is needed there"
        )
    if options["exact"] and options["probes"] is not None:
        raise InputError(
            f"exact, probes = {options['probes']}: the exact divergence takes no probes; give one "
            "of the two"
        )
    if estimator != "discrete" and is_chain_option_given(options):
        raise InputError(
            f"estimator = {estimator!r}: --grid and --variance go with --estimator discrete"
        )
