"""`vdm classify`: the class under which each example is most likely."""

from __future__ import annotations

from typing import Any

import click
import numpy as np
import torch

from variational_diffusion.cli.columns import ENDINGS, check_target, file_column, write_columns
from variational_diffusion.cli.console import Meter, print_json, print_table
from variational_diffusion.cli.devices import speed_options, speed_up, use_device
from variational_diffusion.cli.examples import condition_option, examples_options
from variational_diffusion.cli.options import device_options, weights_option
from variational_diffusion.conditions import parted
from variational_diffusion.data import Split
from variational_diffusion.data.loader import ordered_batches
from variational_diffusion.likelihood import ContinuousBound
from variational_diffusion.likelihood.classification import (
    accuracy,
    class_bounds,
    confusion,
    labels_of,
    probabilities,
)
from variational_diffusion.numerics import bits_per_dim, derived_seed
from variational_diffusion.run.directory import Run
from variational_diffusion.run.examples import chosen_examples


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
    type=click.Choice(["shares", "even"]),
    default="shares",
    help="Of the classes: their shares of the training data (default), or all the same.",
)
@click.option("--per-example", help="Write labels and bits as this .csv or .parquet.")
@click.option("--batch-size", type=click.IntRange(1), default=100, help="Examples at once.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of the draws.")
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
    draws: int,
    prior: str,
    per_example: str | None,
    batch_size: int,
    seed: int,
    as_json: bool,
    condition: str,
    weights: str,
    compile_mode: str,
    channels_last: bool,
    device: str,
    threads: int | None,
) -> None:
    """Name the class of each example of DATA under which the model in RUN finds it most likely.

    The model has learned labels (vdm train --condition label). Without DATA, the run's own test
    examples are taken; --condition none is for data without labels.
    """
    check_target("per_example", per_example, ENDINGS)
    target = use_device(device, threads)
    opened = Run.open(run)
    vdm = opened.load(weights).to(target)
    speed_up(vdm, compile_mode=compile_mode, channels_last=channels_last)
    labels = labels_of(vdm)
    examples = chosen_examples(opened, data, split, limit, condition=condition)
    count = len(labels.names)
    shares = labels.shares.cpu() if prior == "shares" else torch.full((count,), 1 / count)
    found, truth = [], []
    with Meter("classifying", "examples") as meter:
        done = 0
        for b, batch in enumerate(ordered_batches(examples, batch_size)):
            x, label = parted(batch)
            bounds = class_bounds(
                vdm, x.to(target), ContinuousBound(draws), seed=derived_seed(seed, b)
            )
            found.append(bounds.cpu())
            if label is not None:
                truth.append(label)
            done += len(x)
            meter.update(done / len(examples), done, lambda: "")
    bounds = torch.cat(found).double()
    p = probabilities(bounds, shares.double())
    predicted = p.argmax(1)
    columns = {
        "example": examples.positions,
        **file_column(examples),
        "predicted": np.array(labels.names)[predicted],
        "probability": p.amax(1).numpy(),
    }
    if truth:
        columns["label"] = np.array(labels.names)[torch.cat(truth)]
    bits = bits_per_dim(bounds, vdm.dimensions).numpy()
    columns |= {f"bits_{name}": bits[:, k] for k, name in enumerate(labels.names)}
    if per_example is not None:
        write_columns(per_example, columns)
        click.echo(f"per example: {per_example}", err=True)
    table = None if not truth else confusion(torch.cat(truth), predicted, count)
    _report(run, examples, labels.names, predicted, table, as_json)


def _report(
    run: str,
    examples: Split,
    names: tuple[str, ...],
    predicted: torch.Tensor,
    table: torch.Tensor | None,
    as_json: bool,
) -> None:
    counts = torch.bincount(predicted, minlength=len(names)).tolist()
    result: dict[str, Any] = {**examples.as_json(), "names": names, "predicted": counts}
    if table is not None:
        found = accuracy(table)
        result |= {
            "accuracy": found.share,
            "interval": [found.low, found.high],
            "confusion": table.tolist(),
        }
    if as_json:
        print_json(result)
        return
    if table is None:
        rows = [(name, str(count)) for name, count in zip(names, counts, strict=True)]
        print_table(f"{run}: {examples.description}", ["class", "examples taken for it"], rows)
        return
    print_table(
        f"{run}: {found.share:.1%} of {examples.description}, 95 % interval {found.low:.1%} to "
        f"{found.high:.1%}",
        ["is \\ taken for", *names],
        [(name, *map(str, row)) for name, row in zip(names, table.tolist(), strict=True)],
    )
