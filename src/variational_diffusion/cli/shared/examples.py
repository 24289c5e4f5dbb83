"""--split, --limit, --condition and --label: which examples, and what the model is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from variational_diffusion.cli.shared.types import Number, OneOf

SPLITS = ("train", "validation", "test")
"""As in `data`, which imports torch; a test compares them."""

Command = TypeVar("Command", bound=Callable[..., Any])


def examples_options(command: Command) -> Command:
    """Add the arguments RUN and DATA and the options of `choice_options`."""
    for parameter in (
        click.argument("data", type=click.Path(), required=False),
        click.argument("run", type=click.Path()),
    ):
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
            type=OneOf(SPLITS),
            help="Which examples (default: test; with DATA, all of them).",
        ),
    ):
        command = option(command)
    return command


def condition_option(command: Command) -> Command:
    """Add --condition, which says whether examples come with their conditions."""
    return click.option(
        "--condition",
        type=OneOf(["own", "none"]),
        default="own",
        help="What a model with conditions is given: those of the examples (own, default), or none "
        "at all.",
    )(command)


def given_options(command: Command) -> Command:
    """Add the options that say what samples are given, as `Run.sample` takes them."""
    for option in (
        click.option(
            "--guidance-interval",
            type=Number(),
            nargs=2,
            metavar="LOW HIGH",
            help="γ at which the guidance applies; default: everywhere.",
        ),
        click.option(
            "--guidance",
            type=Number(0),
            default=1.0,
            help="Weight of the condition: 1, the default, is the model's own; 2 is sharper.",
        ),
        click.option("--conditions", help="Vectors or images to condition on, as an .npy array."),
        click.option(
            "--label",
            multiple=True,
            help="Class of the samples, or several that take turns; default: drawn by their "
            "shares of the training data.",
        ),
        condition_option,
    ):
        command = option(command)
    return command
