"""--split, --limit and --condition: which examples of a run a command takes; see `examples`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from variational_diffusion.data import SPLITS

Command = TypeVar("Command", bound=Callable[..., Any])


def examples_options(command: Command) -> Command:
    """Add the arguments RUN and DATA and the options of `choice_options`."""
    for parameter in (click.argument("data", required=False), click.argument("run")):
        command = parameter(command)
    return choice_options(command)


def choice_options(command: Command) -> Command:
    """Add --split and --limit, which say which of the examples there are."""
    for option in (
        click.option(
            "--limit", type=click.IntRange(1), help="Only so many, drawn at random with seed 0."
        ),
        click.option(
            "--split",
            type=click.Choice(list(SPLITS)),
            help="Which examples (default: test; with DATA, all of them).",
        ),
    ):
        command = option(command)
    return command


def condition_option(command: Command) -> Command:
    """Add --condition, which says whether examples come with their conditions."""
    return click.option(
        "--condition",
        type=click.Choice(["own", "none"]),
        default="own",
        help="Of a model with conditions: those of the examples (own, default), or none at all.",
    )(command)
