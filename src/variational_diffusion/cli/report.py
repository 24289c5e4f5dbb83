"""`vdm report`: a run as one HTML page."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from variational_diffusion.cli.console import print_json
from variational_diffusion.cli.devices import use_device
from variational_diffusion.cli.measuring import PARTS, Subject, compared, measured_sections
from variational_diffusion.cli.options import device_options, weights_option
from variational_diffusion.cli.samplers import DEFAULTS, SAMPLER_HELP
from variational_diffusion.errors import InputError
from variational_diffusion.report import check_replaceable, render, write_page
from variational_diffusion.run import evaluations
from variational_diffusion.run.directory import Run
from variational_diffusion.sampling import named


@click.command()
@click.argument("run")
@click.option(
    "--examples",
    type=click.IntRange(2),
    help="Test examples that the bits per dimension are of (default 1000).",
)
@click.option("--samples", type=click.IntRange(4), help="Samples to draw (default 64).")
@click.option("--sampler", help=SAMPLER_HELP)
@click.option(
    "--steps",
    type=click.IntRange(1),
    help=f"Steps of the sampler (default {DEFAULTS['steps']}).",
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
@click.option("--out", help="Name of the page; default: report.html in the run.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@weights_option
@device_options
def command(
    run: str,
    refresh: bool,
    out: str | None,
    as_json: bool,
    weights: str,
    device: str,
    threads: int | None,
    **asked: Any,
) -> None:
    """Write a page about the model in RUN: figures, samples, likelihoods, how to repeat them.

    The page is one file, which loads nothing and runs no script. What is measured for it is kept
    in RUN/report, and measured again when the weights have changed or an option asks for another
    number; an option that is not given takes what there is.
    """
    start = time.monotonic()
    target = use_device(device, threads)
    opened = Run.open(run)
    path = opened.path / "report.html" if out is None else Path(out)
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"out = '{path}': give a name that ends in .html")
    check_replaceable(path)
    if asked["sampler"] is not None:
        named(asked["sampler"])  # refused before the work
    subject = Subject(opened, weights, target)
    if not opened.weights_path(weights).exists():
        opened.load(weights)  # it says what is there instead
    asked["compare"] = compared(subject, asked["compare"])
    sections, measured, notes = measured_sections(subject, asked, refresh=refresh)
    for note in notes:
        click.echo(note, err=True)
    recorded = evaluations.of_weights(opened, weights)
    page = render(opened, weights, sections, notes=notes, evaluations=recorded)
    write_page(page, path)
    if as_json:
        print_json(
            {
                "report": str(path),
                "bytes": path.stat().st_size,
                "seconds": time.monotonic() - start,
                "measured": measured,
                "left_out": [
                    name
                    for name in PARTS
                    if name not in sections and (name != "comparison" or asked["compare"])
                ],
            }
        )
        return
    click.echo(path)
