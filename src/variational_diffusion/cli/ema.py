"""`vdm ema`: averages of the weights with widths that training did not choose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from variational_diffusion.cli.shared.console import print_json, print_table, say, shown
from variational_diffusion.cli.shared.options import (
    device_options,
    json_option,
    network_option,
    open_run,
    place_option,
    seed_option,
)
from variational_diffusion.cli.shared.types import Number
from variational_diffusion.errors import InputError

if TYPE_CHECKING:
    from variational_diffusion.run.averages import WidthBound

WIDTHS = "0.03,0.05,0.07,0.1,0.15,0.2"
"""As in `run.averages`, which imports torch; a test compares them."""


class Widths(click.ParamType):
    """Numbers with commas between them."""

    name = "W,W,…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[float]:
        try:
            return [Number().convert(part, param, ctx) for part in str(value).split(",")]
        except click.BadParameter:
            self.fail(f"{value!r} is no list of widths: give one as {WIDTHS}")


@click.command()
@click.argument("run", type=click.Path())
@click.argument("data", type=click.Path(), required=False)
@click.option(
    "--width",
    type=Number(),
    help="Standard deviation of the average to write, 0.02 to 0.25 of the run.",
)
@click.option("--name", help="Name of that average for --weights; default: ema-WIDTH.")
@click.option("--widths", type=Widths(), default=WIDTHS, help=f"Compare these (default {WIDTHS}).")
@click.option(
    "--limit",
    type=click.IntRange(2),
    default=1000,
    help="Only so many, drawn at random with seed 0 (default 1000).",
)
@click.option(
    "--draws",
    type=click.IntRange(1),
    default=4,
    help="Network evaluations for each example (default 4).",
)
@network_option
@place_option
@seed_option("the draws")
@json_option
@device_options
def command(
    run: str,
    width: float | None,
    name: str | None,
    widths: list[float],
    as_json: bool,
    **options: Any,
) -> None:
    """Compare averages of the weights in RUN by the bound of held-out examples, or write one.

    The examples are those of DATA, or of the run's validation split. A width is the standard
    deviation of the average in time, as a share of the run. With --width the average is written,
    for the --weights of other commands.

    Example: vdm ema runs/first --width 0.07
    """
    from variational_diffusion.escaping import typed
    from variational_diffusion.run import averages

    if width is not None:
        made = averages.write_average(open_run(run), width, name)
        if as_json:
            print_json(made.as_json())
            return
        rest = f"{100 * made.rest:.1g} %"
        say(f"{made.path}   (after step {made.step}, profile to {rest})")
        say(f"next: vdm evaluate {typed(run)} --weights {typed(made.name)}", err=True)
        return
    if name is not None:
        raise InputError(f"name = '{name}' goes with --width; give --width 0.07 --name {name}")
    found = averages.compare_widths(open_run(run), widths, progress=shown, **options)
    if as_json:
        print_json(found.as_json())
        return
    rows = [("ema", *_cells(found.ema), "")]
    for each in found.widths:
        mark = " (best)" if each.width == found.best else ""
        rows.append((f"{each.width:g}{mark}", *_cells(each), f"{100 * each.rest:.2f} %"))
    print_table(
        f"{run}: {found.examples}; averages after step {found.step}",
        ["width", "bits/dim", "above ema", "rest of the profile"],
        rows,
    )
    say(f"next: vdm ema {typed(run)} --width {found.best:g}", err=True)


def _cells(bound: WidthBound) -> tuple[str, str]:
    return (
        f"{bound.bits_per_dim:.4f} ± {bound.standard_error:.4f}",
        f"{bound.difference:+.4f} ± {bound.difference_error:.4f}",
    )
