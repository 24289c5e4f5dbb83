"""`vdm evaluate`: bits per dimension of data under a trained model."""

from __future__ import annotations

from typing import Any

import click

from variational_diffusion.cli.shared.console import print_json, print_table, say, shown
from variational_diffusion.cli.shared.estimators import estimator_options, rounds_options
from variational_diffusion.cli.shared.examples import condition_option, examples_options
from variational_diffusion.cli.shared.options import (
    command_line,
    device_options,
    joined,
    json_option,
    open_run,
    seed_option,
    speed_options,
    weights_option,
)

_MAPS = 64
_NOT_OF_THE_FIGURES = {
    "run",
    "table",
    "maps",
    "as_json",
    "batch_size",
    "compile",
    "channels_last",
    "device",
    "threads",
}


@click.command()
@examples_options
@estimator_options
@rounds_options
@click.option(
    "--table", type=click.Path(), help="Write the bits of every example as this .csv or .parquet."
)
@click.option(
    "--maps",
    type=click.Path(),
    help=f"Write where the bits of {_MAPS} examples are as this .png sheet.",
)
@click.option("--batch-size", type=click.IntRange(1), default=250, help="Examples at once.")
@seed_option("the estimate")
@json_option
@condition_option
@weights_option
@speed_options
@device_options
def command(
    run: str,
    data: str | None,
    table: str | None,
    maps: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Estimate −log p(x) of DATA under the model in RUN, in bits per dimension.

    Of a model with conditions it is −log p(x|c), of the examples' own conditions; --condition none
    leaves them out.

    DATA is read with the options that the run was trained with. All of its examples are taken, or
    those of --split; without DATA, the run's own test examples. Started by torchrun, the processes
    share the batches out; the figures do not change.

    Example: vdm evaluate runs/first --limit 1000 --estimator ode
    """
    from variational_diffusion.images.pictures import PICTURES
    from variational_diffusion.machine.signals import stop_requested
    from variational_diffusion.run import evaluations
    from variational_diffusion.run.evaluation import evaluate, save_maps
    from variational_diffusion.storage.columns import ENDINGS, write_columns
    from variational_diffusion.storage.files import check_targets

    check_targets(table=(table, ENDINGS), maps=(maps, PICTURES))
    opened = open_run(run)
    with joined(options["device"]) as place, stop_requested() as stopped:
        found = evaluate(
            opened, data, progress=shown if place.leads else False, stopped=stopped, **options
        )
    if not place.leads:
        return
    values = found.as_json()
    if as_json:
        print_json(values)
    else:
        chain = "" if found.about["steps"] is None else f", {found.about['steps']} steps"
        if found.about["condition"] is not None:
            chain += f", given the {found.about['condition']}"
        title = f"{run}: {options['weights']} weights, {found.estimator}{chain}"
        print_table(title, ["", ""], found.rows())
        for note in found.notes:
            say(note)
    if table is not None:
        write_columns(table, found.table)
        say(f"table: {table}", err=True)
    if not found.stopped:
        if maps is not None:
            save_maps(opened, data, maps, **options)
            say(f"maps: {maps}", err=True)
        evaluations.record(
            opened,
            options["weights"],
            values,
            data=data or opened.config.data.source,
            command=command_line("evaluate", _NOT_OF_THE_FIGURES),
        )
    if found.stopped:
        raise KeyboardInterrupt
