"""`vdm score`: anomaly scores and p-values of examples under a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from variational_diffusion.cli.shared.console import print_json, print_table, say, shown
from variational_diffusion.cli.shared.examples import SPLITS, condition_option
from variational_diffusion.cli.shared.options import (
    device_options,
    json_option,
    open_run,
    seed_option,
    weights_option,
)
from variational_diffusion.cli.shared.types import Number, OneOf
from variational_diffusion.errors import InputError

if TYPE_CHECKING:
    from variational_diffusion.anomaly import Scored

_SHOWN = 10
SCORES = ("bits", "typicality", "complexity", "profile", "combined")
REFERENCE, FALSE_ALARMS = 1000, 0.01
"""As in `anomaly` and `run.scoring`, which import torch; a test compares them."""


@click.command()
@click.argument("run", type=click.Path())
@click.argument("data", type=click.Path(), required=False)
@click.option(
    "--split",
    type=OneOf(SPLITS),
    help="Which examples (default: all of the run's own data, or of DATA).",
)
@click.option("--limit", type=click.IntRange(1), help="Only so many, drawn at random with seed 0.")
@click.option(
    "--score",
    type=OneOf(SCORES),
    default="combined",
    help="The score that examples are ranked by (default combined); --table has all of them.",
)
@click.option(
    "--false-alarms",
    type=Number(0, 1, min_open=True, max_open=True),
    help="Mark examples with p-values up to this: the share of normal examples that is marked by "
    f"mistake (default {FALSE_ALARMS}).",
)
@click.option(
    "--fdr",
    type=Number(0, 1, min_open=True, max_open=True),
    help="Mark by Benjamini and Hochberg instead, so that at most this share of the marked "
    "examples is normal.",
)
@click.option(
    "--reference",
    type=click.IntRange(50),
    help="Held-out validation examples of the run that fit and calibrate the score (default "
    f"{REFERENCE}, or more where --false-alarms takes more).",
)
@click.option(
    "--draws",
    type=click.IntRange(1),
    default=2,
    help="Network evaluations for each example in each of 16 bands of γ (default 2).",
)
@click.option(
    "--table",
    type=click.Path(),
    help="Write all that is known of every example as this .csv or .parquet.",
)
@click.option(
    "--figure", type=click.Path(), help="Write histograms of the score as this .png or .svg."
)
@click.option(
    "--sheet",
    type=click.Path(),
    help="Write the most anomalous images, then the most normal, as this .png.",
)
@seed_option("the noise")
@json_option
@condition_option
@weights_option
@device_options
def command(
    run: str,
    data: str | None,
    table: str | None,
    figure: str | None,
    sheet: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Rank examples by how anomalous they are to the model in RUN, with p-values.

    Without DATA, all of the run's own data, or one --split of them; with it, all examples of DATA.
    The p-value of an example is the share of held-out examples of the training kind that are as
    anomalous or more. See docs/anomalies.md.

    Example: vdm score runs/first photos --false-alarms 0.01 --sheet outliers.png
    """
    from variational_diffusion.anomaly import save_score_sheet
    from variational_diffusion.images.pictures import PICTURES, is_image
    from variational_diffusion.machine.signals import stop_requested
    from variational_diffusion.report.figures import FIGURES, save_figure, score_figure
    from variational_diffusion.run.scoring import score
    from variational_diffusion.storage.columns import ENDINGS, write_columns
    from variational_diffusion.storage.files import check_targets

    check_targets(table=(table, ENDINGS), figure=(figure, FIGURES), sheet=(sheet, PICTURES))
    opened = open_run(run)
    if sheet is not None and not is_image(opened.config.model.shape):
        raise InputError(f"sheet = '{sheet}': these examples are not images; give --table FILE.csv")
    with stop_requested() as stopped:
        found = score(opened, data, progress=shown, stopped=stopped, **options)
    if as_json:
        print_json(found.as_json())
    else:
        print_table(found.title, *_table(found))
        for line in found.notes():
            say(line)
    if table is not None:
        write_columns(table, found.columns())
        say(f"table: {table}", err=True)
    if figure is not None:
        histogram = score_figure(found.name, found.calibration, found.score, found.threshold)
        save_figure(
            histogram, figure, f"Histogram of the score {found.name} of {len(found)} examples"
        )
        say(f"figure: {figure}", err=True)
    if sheet is not None:
        save_score_sheet(found, sheet)
        say(f"sheet: {sheet}", err=True)
    if found.stopped:
        raise KeyboardInterrupt


def _table(found: Scored) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return the columns and rows of the table of the most anomalous examples."""
    shown = list(dict.fromkeys([found.name, "bits"]))
    named = "example" if found.names is None else "file"
    several = len(found.parts) > 1
    labels = found.number if found.names is None else found.names
    rows = [
        (
            str(labels[i]),
            *([str(found.split[i])] * several),
            *(f"{found.scores[each][i]:.4g}" for each in shown),
            f"{found.p_value[i]:.2g}" if found.held_out else "",
            "*" if found.marked[i] else "",
        )
        for i in found.order[:_SHOWN]
    ]
    return [named, *(["split"] * several), *shown, "p-value", "marked"], rows
