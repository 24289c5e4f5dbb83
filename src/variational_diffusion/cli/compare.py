"""`vdm compare`: which of several runs is better."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
import numpy as np

from variational_diffusion.cli.columns import ENDINGS, check_target, file_column, write_columns
from variational_diffusion.cli.console import Meter, print_json, print_table
from variational_diffusion.cli.devices import speed_options, speed_up, use_device
from variational_diffusion.cli.estimators import (
    check_estimator,
    estimator_of,
    estimator_options,
    rounds_options,
)
from variational_diffusion.cli.examples import choice_options, condition_option
from variational_diffusion.cli.options import device_options, weights_option
from variational_diffusion.cli.signals import stop_requested
from variational_diffusion.errors import InputError
from variational_diffusion.likelihood import Comparison, check_comparable, compare_models
from variational_diffusion.machine.distributed import DAYS, processes
from variational_diffusion.run.comparison import common_examples, names_of
from variational_diffusion.run.directory import Run
from variational_diffusion.run.examples import check_free
from variational_diffusion.run.trained import Trained


@click.command()
@click.argument("words", metavar="RUN RUN... [DATA]", nargs=-1, required=True)
@choice_options
@estimator_options
@rounds_options
@click.option(
    "--per-example",
    help="Write the bits of every example, one column for each run, as this .csv or .parquet.",
)
@click.option("--batch-size", type=click.IntRange(1), default=250, help="Examples at once.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of the estimate.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@condition_option
@weights_option
@speed_options
@device_options
def command(
    words: tuple[str, ...],
    split: str | None,
    limit: int | None,
    estimator: str,
    rounds: int | None,
    target_se: float | None,
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
    **options: Any,
) -> None:
    """Compare the models of two or more RUNs, in bits per dimension of the same examples.

    Every model sees the same examples with the same times and the same noise, so the difference of
    two is known several times better than the figure of either. --rounds and --target-se are about
    the error of the differences.

    Without DATA the examples are the test examples of the first RUN, and the other runs must have
    the same. With DATA they are all of its examples, or those of --split. The table has the
    difference of each pair, the later run minus the earlier. It is negative where the later run is
    better. With more than two runs, the intervals of all pairs hold together with a probability
    of 95 %.
    """
    check_estimator(estimator, options)
    check_target("per_example", per_example, ENDINGS)
    target = use_device(device, threads)
    runs, data = _runs_and_data(words)
    if condition == "none":
        for run in runs:
            check_free(run)
    models = [run.load(weights).to(target) for run in runs]
    names = names_of(runs)
    check_comparable(models, names)
    for vdm in models:
        speed_up(vdm, compile_mode=compile_mode, channels_last=channels_last)
    splits, notes = common_examples(runs, data, split, limit, condition=condition)
    with processes(target, DAYS) as place:
        meter = Meter("comparing", "examples") if place.leads else None
        subjects = [
            estimator_of(estimator, Trained(run, weights, vdm), options)
            for run, vdm in zip(runs, models, strict=True)
        ]
        with meter or nullcontext(), stop_requested() as stopped:
            found = compare_models(
                [model for model, _ in subjects],
                splits,
                [estimator for _, estimator in subjects],
                names=names,
                rounds=rounds,
                target_error=target_se,
                batch_size=batch_size,
                seed=seed,
                notes=notes,
                place=place,
                progress=None if meter is None else meter.update,
                stopped=stopped,
            )
    if not place.leads:
        return
    if per_example is not None:
        own = {"example": splits[0].positions, **file_column(splits[0])}
        write_columns(per_example, {**own, **_columns(found)})
        click.echo(f"per example: {per_example}", err=True)
    steps = options["steps"]
    if as_json:
        about = {"estimator": estimator, "steps": steps, "weights": weights, "condition": condition}
        print_json({**about, **splits[0].as_json(), **found.as_json()})
        return
    chain = "" if steps is None else f", {steps} steps"
    _print(found, f"{found.description}, {weights} weights, {estimator}{chain}")


def _runs_and_data(words: tuple[str, ...]) -> tuple[list[Run], str | None]:
    """Return the runs, and the last word where it is not one of at least three."""
    paths, data = list(words), None
    if len(paths) > 2 and not (Path(paths[-1]) / "config.json").exists():
        data = paths.pop()
    if len(paths) < 2:
        raise InputError(f"'{paths[0]}' alone: give two runs or more; type: vdm compare RUN RUN")
    return [Run.open(path) for path in paths], data


def _columns(found: Comparison) -> dict[str, np.ndarray]:
    return {name: bits.numpy() for name, bits in zip(found.names, found.bits, strict=True)}


def _print(found: Comparison, title: str) -> None:
    """Print a table of the runs, one of the pairs, and what they say in words."""
    print_table(
        title,
        ["run", "bits/dim", "95 % interval"],
        [
            (name, f"{s.bits_per_dim:.4f} ± {s.standard_error:.4f}", _interval(*s.interval))
            for name, s in zip(found.names, found.summaries, strict=True)
        ],
    )
    print_table(
        f"differences, after {found.rounds} rounds; negative: the first name is the better model",
        ["", "bits/dim", found.interval_name, "error of the draws"],
        [
            (
                f"{found.names[pair.second]} − {found.names[pair.first]}",
                f"{pair.difference:+.4f} ± {pair.standard_error:.4f}",
                _interval(*pair.interval),
                f"± {pair.draws_error:.4f}",
            )
            for pair in found.pairs
        ],
    )
    for line in (*(pair.verdict(found.names) for pair in found.pairs), *found.notes):
        click.echo(line)


def _interval(low: float, high: float) -> str:
    return f"{low:.4f} to {high:.4f}"
