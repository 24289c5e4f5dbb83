"""`vdm evaluate`: bits per dimension of data under a trained model."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import click
import numpy as np
import torch

from variational_diffusion.cli.columns import ENDINGS, check_target, file_column, write_columns
from variational_diffusion.cli.console import Meter, print_json, print_table
from variational_diffusion.cli.devices import speed_options, speed_up, use_device
from variational_diffusion.cli.estimators import (
    check_estimator,
    estimator_of,
    estimator_options,
    rounds_options,
)
from variational_diffusion.cli.examples import condition_option, examples_options
from variational_diffusion.cli.options import command_line, device_options, weights_option
from variational_diffusion.cli.signals import stop_requested
from variational_diffusion.data import Split
from variational_diffusion.data.loader import ordered_batches
from variational_diffusion.decoders import Discretized
from variational_diffusion.images.pictures import save_sheet
from variational_diffusion.likelihood import (
    ContinuousBound,
    Estimator,
    Rounds,
    Summary,
    bits_of_entries,
    evaluate_rounds,
    example_columns,
    summary_rows,
)
from variational_diffusion.machine.distributed import ALONE, DAYS, Place, processes
from variational_diffusion.model import VDM
from variational_diffusion.run import evaluations
from variational_diffusion.run.directory import Run
from variational_diffusion.run.examples import check_free, chosen_examples
from variational_diffusion.run.trained import Trained
from variational_diffusion.schedules import floor_note

_MAPS = 64
_NOT_OF_THE_FIGURES = {
    "run",
    "per_example",
    "maps",
    "as_json",
    "batch_size",
    "compile_mode",
    "channels_last",
} | {"device", "threads"}


@click.command()
@examples_options
@estimator_options
@rounds_options
@click.option("--per-example", help="Write the bits of every example as this .csv or .parquet.")
@click.option("--maps", help=f"Write where the bits of {_MAPS} examples are as this .png sheet.")
@click.option("--batch-size", type=click.IntRange(1), default=250, help="Examples at once.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of the estimate.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@condition_option
@weights_option
@speed_options
@device_options
def command(
    run: str,
    data: str | None,
    split: str | None,
    limit: int | None,
    estimator: str,
    rounds: int | None,
    target_se: float | None,
    per_example: str | None,
    maps: str | None,
    batch_size: int,
    seed: int,
    as_json: bool,
    condition: str,
    weights: str,
    compile_mode: str,
    channels_last: bool,
    device: str,
    threads: int | None,
    **options: Any,
) -> None:
    """Estimate −log p(x) of DATA under the model in RUN, in bits per dimension.

    Of a model with conditions it is −log p(x|c), of the examples' own conditions; --condition none
    leaves them out.

    DATA is read with the options that the run was trained with. All of its examples are taken, or
    those of --split; without DATA, the run's own test examples. Started by torchrun, the processes
    share the batches out; the figures do not change.
    """
    check_estimator(estimator, options)
    check_target("per_example", per_example, ENDINGS)
    check_target("maps", maps, (".png", ".webp"))
    target = use_device(device, threads)
    opened = Run.open(run)
    vdm = opened.load(weights).to(target)
    speed_up(vdm, compile_mode=compile_mode, channels_last=channels_last)
    if condition == "none":
        check_free(opened)
    examples = chosen_examples(opened, data, split, limit, condition=condition)
    with processes(target, DAYS) as place:
        model, chosen = estimator_of(estimator, Trained(opened, weights, vdm), options)
        done = evaluated(
            model,
            examples,
            chosen,
            rounds=rounds,
            target_error=target_se,
            batch_size=batch_size,
            seed=seed,
            place=place,
        )
        if not place.leads:
            return
        if per_example is not None:
            columns = example_columns(*done.rounds, dimensions=vdm.dimensions)
            table = {name: column.numpy() for name, column in columns.items()}
            rows = len(table.pop("example"))  # fewer than examples where it was stopped
            own = {"example": examples.positions, **file_column(examples)}
            own = {name: column[:rows] for name, column in own.items()}
            write_columns(per_example, {**own, **table})
            click.echo(f"per example: {per_example}", err=True)
        if done.stopped:
            count = sum(len(e.total) for e in done.rounds[0])
            click.echo(f"stopped after {count} of {len(examples)} examples", err=True)
            raise KeyboardInterrupt
        if maps is not None:
            write_maps(vdm, examples.sample(_MAPS), maps, seed=seed)
            click.echo(f"maps: {maps}", err=True)
    summary = done.summary
    limited = floor_note(float(vdm.schedule.gamma_0), vdm.schedule.floor)
    steps = options["steps"]
    conditioned = opened.config.data.condition if condition == "own" else None
    values = {
        "estimator": estimator,
        **examples.as_json(),
        **summary.as_json(),
        "condition": conditioned,
        "levels": opened.config.data.levels,
        "shape": list(vdm.shape),
        "weights": weights,
        "steps": steps,
        "rounds": len(done.rounds),
        "floor": vdm.schedule.floor if limited else None,
    }
    evaluations.record(
        opened,
        weights,
        values,
        data=data or opened.config.data.source,
        command=command_line("evaluate", _NOT_OF_THE_FIGURES),
    )
    if as_json:
        print_json(values)
        return
    chain = "" if steps is None else f", {steps} steps"
    if conditioned is not None:
        chain += f", given the {conditioned}"
    print_table(
        f"{run}: {weights} weights, {estimator}{chain}",
        ["", ""],
        summary_rows(summary, examples.description),
    )
    if limited:
        click.echo(limited)


def evaluated(
    vdm: VDM, split: Split, estimator: Estimator, *, place: Place = ALONE, **options: Any
) -> Rounds:
    """Return `evaluate_rounds` with a progress bar; a signal ends it between two batches."""
    meter = Meter("evaluating", "examples") if place.leads else None
    with meter or nullcontext(), stop_requested() as stopped:
        return evaluate_rounds(
            vdm,
            split,
            estimator,
            place=place,
            progress=None if meter is None else meter.update,
            stopped=stopped,
            **options,
        )


def evaluate_split(
    vdm: VDM,
    split: Split,
    *,
    draws: int = 2,
    batch_size: int = 250,
    seed: int = 0,
) -> Summary:
    """Return the bound for infinitely many steps of a split, with a progress bar."""
    done = evaluated(vdm, split, ContinuousBound(draws), batch_size=batch_size, seed=seed)
    if done.stopped:
        raise KeyboardInterrupt
    return done.summary


def write_maps(vdm: VDM, split: Split, path: str, *, seed: int) -> None:
    """Write a sheet: every example beside a map of its bits, dark for few and light for many."""
    model, x = vdm.given_in(next(ordered_batches(split, len(split))))
    generator = torch.Generator(x.device).manual_seed(seed)
    bits = bits_of_entries(model, x, generator=generator).cpu().double().numpy()
    bits = bits.mean(1, keepdims=True)  # over the channels
    low, high = np.quantile(bits, [0.01, 0.99])
    shown = np.clip((bits - low) / max(high - low, 1e-9), 0, 1).repeat(x.shape[1], axis=1)
    levels = vdm.decoder.levels if isinstance(vdm.decoder, Discretized) else None
    images = x.cpu().double().numpy()
    least, most = (0.0, levels - 1.0) if levels else (images.min(), images.max())
    images = (images - least) / max(most - least, 1e-9)
    pairs = np.stack([images, shown], axis=1).reshape(-1, *x.shape[1:])
    save_sheet(pairs, None, path, columns=16, value_range=(0.0, 1.0))
