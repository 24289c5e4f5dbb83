"""`vdm report`: a run as one HTML page."""

from __future__ import annotations

from typing import Any

import click

from variational_diffusion.cli.shared.console import print_json, say, shown
from variational_diffusion.cli.shared.options import (
    device_options,
    json_option,
    open_run,
    weights_option,
)
from variational_diffusion.cli.shared.sampling import DEFAULT_STEPS, SAMPLER_HELP


@click.command()
@click.argument("run", type=click.Path())
@click.option(
    "--limit",
    "examples",
    type=click.IntRange(2),
    help="Only so many test examples, drawn at random with seed 0 (default 1000).",
)
@click.option("--n", "samples", type=click.IntRange(4), help="Samples to draw (default 64).")
@click.option("--sampler", help=SAMPLER_HELP)
@click.option(
    "--steps",
    type=click.IntRange(1),
    help=f"Steps of the sampler (default {DEFAULT_STEPS}).",
)
@click.option(
    "--evaluations",
    type=click.IntRange(2000),
    help="Evaluations of the network for the loss profile (default 20,000).",
)
@click.option(
    "--training-examples",
    type=click.IntRange(1),
    help="Training examples that the samples are compared with (default 60,000).",
)
@click.option(
    "--compare",
    multiple=True,
    metavar="RUN",
    help="Another run to compare with, by the same test examples; may be given several times.",
)
@click.option("--refresh", is_flag=True, help="Measure everything again.")
@click.option(
    "--out", type=click.Path(), help="Where to write the page; default: report.html in the run."
)
@json_option
@weights_option
@device_options
def command(run: str, as_json: bool, **options: Any) -> None:
    """Write a page about the model in RUN: figures, samples, likelihoods, how to repeat them.

    The page is one file, which loads nothing and runs no script. What is measured for it is kept
    in RUN/report, and measured again when the weights have changed or an option asks for another
    number; an option that is not given takes what there is.

    Example: vdm report runs/first --compare runs/second
    """
    from variational_diffusion.report import report

    found = report(open_run(run), progress=shown, **options)
    if as_json:
        print_json(found.as_json())
    else:
        say(found.path)
