"""`vdm sample`: draw examples from a trained model."""

from __future__ import annotations

from typing import Any

import click

from variational_diffusion.cli.shared.console import print_json, say, shown
from variational_diffusion.cli.shared.examples import given_options
from variational_diffusion.cli.shared.options import (
    device_options,
    joined,
    json_option,
    open_run,
    seed_option,
    speed_options,
    weights_option,
)
from variational_diffusion.cli.shared.sampling import sampling_options

_FRAMES = 48


@click.command()
@click.argument("run", type=click.Path())
@click.option("--n", type=click.IntRange(1), default=64, help="Samples to draw (default 64).")
@sampling_options
@seed_option("the draw")
@click.option(
    "--out",
    type=click.Path(),
    help="Where to write: a .png sheet, an .npy array, or a folder for single files; "
    "default: in the run.",
)
@click.option(
    "--table",
    type=click.Path(),
    help="Write labels and bits of every sample as this .csv or .parquet.",
)
@click.option(
    "--animate",
    type=click.Path(),
    help="Also write z_t and x̂ on the way as this .gif, .webp or .mp4.",
)
@json_option
@given_options
@weights_option
@speed_options
@device_options
def command(
    run: str,
    n: int,
    out: str | None,
    table: str | None,
    animate: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Draw examples from the model in RUN.

    Started by torchrun, the processes share the examples out; they are the same for any number.

    Example: vdm sample runs/first --n 16 --out samples.png
    """
    from variational_diffusion.images.pictures import is_image
    from variational_diffusion.machine.signals import stop_requested
    from variational_diffusion.run.samples import check_outputs, sample_run
    from variational_diffusion.sampling import default_for
    from variational_diffusion.storage.columns import ENDINGS, write_columns
    from variational_diffusion.storage.files import check_target, check_targets, expanded, unused

    opened = open_run(run)
    shape = opened.config.model.shape
    if out is None:
        by = options["sampler"] or default_for(shape)
        ending = ".png" if is_image(shape) else ".npy"
        name = f"{by}-{options['steps']}-seed-{options['seed']}{ending}"
        path = unused(opened.path / "samples" / name)
    else:
        path = expanded(out)
    check_outputs(path, animate, shape)
    check_targets(table=(table, ENDINGS))
    labels = path.with_suffix(".labels.csv") if path.suffix else path / "labels.csv"
    if opened.config.model.condition is not None:
        check_target(labels)
    with joined(options["device"]) as place, stop_requested() as stopped:
        found = sample_run(
            opened,
            n,
            stopped=stopped,
            frames=_FRAMES if animate else 0,
            progress=shown if place.leads else False,
            **options,
        )
    if not place.leads:
        return
    found.write(path)
    if animate:
        found.write_animation(animate)
    if table is not None:
        write_columns(table, found.table)
    if found.given.drawn:
        found.write_labels(labels)
        say(f"labels drawn by their shares of the training data: {labels}", err=True)
    if as_json:
        print_json(
            {
                "samples": len(found.values),
                "shape": list(shape),
                "out": str(path),
                "animation": animate,
                "table": table,
                "labels": None if found.labels is None else found.labels.tolist(),
            }
        )
    else:
        say(path)
        if animate:
            say(animate)
        if table is not None:
            bits = found.bits["bits_per_dim"]
            span = f"from {bits.min():.3f} to {bits.max():.3f}"
            say(f"{table}   (mean {bits.mean():.3f}, {span})")
    if found.stopped:
        say(f"stopped: {len(found.values):,} of {n:,} samples are drawn", err=True)
        raise KeyboardInterrupt
