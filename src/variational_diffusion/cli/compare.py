"""`vdm compare`: which of several runs is better."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from variational_diffusion.cli.shared.console import print_json, print_table, say, shown
from variational_diffusion.cli.shared.estimators import estimator_options, rounds_options
from variational_diffusion.cli.shared.examples import choice_options, condition_option
from variational_diffusion.cli.shared.options import (
    device_options,
    joined,
    json_option,
    open_run,
    seed_option,
    speed_options,
    weights_option,
)
from variational_diffusion.errors import InputError

if TYPE_CHECKING:
    from variational_diffusion.likelihood import Comparison


@click.command()
@click.argument("words", metavar="RUN RUN... [DATA]", nargs=-1, required=True)
@choice_options
@estimator_options
@rounds_options
@click.option(
    "--table",
    type=click.Path(),
    help="Write the bits of every example, one column for each run, as this .csv or .parquet.",
)
@click.option("--batch-size", type=click.IntRange(1), default=250, help="Examples at once.")
@seed_option("the estimate")
@json_option
@condition_option
@weights_option
@speed_options
@device_options
def command(words: tuple[str, ...], table: str | None, as_json: bool, **options: Any) -> None:
    """Compare the models of two or more RUNs, in bits per dimension of the same examples.

    Every model sees the same examples with the same times and the same noise, so the difference of
    two is known several times better than the figure of either. --rounds and --target-se are about
    the error of the differences.

    Without DATA the examples are the test examples of the first RUN, and the other runs must have
    the same. With DATA they are all of its examples, or those of --split. The table has the
    difference of each pair, the later run minus the earlier. It is negative where the later run is
    better. With more than two runs, the intervals of all pairs hold together with a probability
    of 95 %.

    Example: vdm compare runs/first runs/second --limit 1000
    """
    from variational_diffusion.machine.signals import stop_requested
    from variational_diffusion.run.comparison import compare
    from variational_diffusion.storage.columns import ENDINGS, write_columns
    from variational_diffusion.storage.files import check_targets

    check_targets(table=(table, ENDINGS))
    paths, data = _runs_and_data(words)
    given = [] if data is None else [data]
    with joined(options["device"]) as place, stop_requested() as stopped:
        found = compare(
            *(open_run(path) for path in paths),
            *given,
            progress=shown if place.leads else False,
            stopped=stopped,
            **options,
        )
    if not place.leads:
        return
    if table is not None:
        write_columns(table, found.table)
        say(f"table: {table}", err=True)
    if as_json:
        names = ("estimator", "steps", "weights", "condition")
        print_json({**{name: options[name] for name in names}, **found.as_json()})
        return
    chain = "" if options["steps"] is None else f", {options['steps']} steps"
    _print(
        found, f"{found.description}, {options['weights']} weights, {options['estimator']}{chain}"
    )


def _runs_and_data(words: tuple[str, ...]) -> tuple[list[str], str | None]:
    """Return the runs, and the last word where it is not one of at least three."""
    from variational_diffusion.storage.files import expanded

    paths, data = list(words), None
    if len(paths) > 2 and not os.path.exists(expanded(paths[-1]) / "config.json"):
        data = paths.pop()
    if len(paths) < 2:
        raise InputError(f"'{paths[0]}' alone: give two runs or more; type: vdm compare RUN RUN")
    return paths, data


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
        say(line)


def _interval(low: float, high: float) -> str:
    return f"{low:.4f} to {high:.4f}"
