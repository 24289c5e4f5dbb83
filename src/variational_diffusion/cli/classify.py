"""`vdm classify`: the class under which each example is most likely."""

from __future__ import annotations

from typing import Any

import click

from variational_diffusion.cli.shared.console import print_json, print_table, say, shown
from variational_diffusion.cli.shared.examples import condition_option, examples_options
from variational_diffusion.cli.shared.options import (
    device_options,
    json_option,
    open_run,
    seed_option,
    speed_options,
    weights_option,
)
from variational_diffusion.cli.shared.types import OneOf


@click.command()
@examples_options
@click.option(
    "--draws",
    type=click.IntRange(1),
    default=16,
    help="Network evaluations for each example and class (default 16).",
)
@click.option(
    "--prior",
    type=OneOf(["shares", "even"]),
    default="shares",
    help="Of the classes: their shares of the training data (default), or all the same.",
)
@click.option(
    "--table",
    type=click.Path(),
    help="Write labels and bits of every example as this .csv or .parquet.",
)
@click.option("--batch-size", type=click.IntRange(1), default=100, help="Examples at once.")
@seed_option("the draws")
@json_option
@condition_option
@weights_option
@speed_options
@device_options
def command(run: str, data: str | None, table: str | None, as_json: bool, **options: Any) -> None:
    """Name the class of each example of DATA under which the model in RUN finds it most likely.

    The model has learned labels (vdm train --condition label). Without DATA, the run's own test
    examples are taken; --condition none is for data without labels.

    Example: vdm classify runs/labelled --limit 100
    """
    from variational_diffusion.run.classes import classify
    from variational_diffusion.storage.columns import ENDINGS, write_columns
    from variational_diffusion.storage.files import check_targets

    check_targets(table=(table, ENDINGS))
    found = classify(open_run(run), data, progress=shown, **options)
    if table is not None:
        write_columns(table, found.table)
        say(f"table: {table}", err=True)
    if as_json:
        print_json(found.as_json())
        return
    accuracy = found.accuracy
    if accuracy is None or found.confusion is None:
        rows = [(name, str(count)) for name, count in zip(found.names, found.counts, strict=True)]
        title = f"{run}: {found.examples.description}"
        print_table(title, ["class", "examples taken for it"], rows)
        return
    print_table(
        f"{run}: {accuracy.share:.1%} of {found.examples.description}, 95 % interval "
        f"{accuracy.low:.1%} to {accuracy.high:.1%}",
        ["is \\ taken for", *found.names],
        [
            (name, *map(str, row))
            for name, row in zip(found.names, found.confusion.tolist(), strict=True)
        ],
    )
