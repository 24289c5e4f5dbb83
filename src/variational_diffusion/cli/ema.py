"""`vdm ema`: averages of the weights with widths that training did not choose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from variational_diffusion.cli.shared.console import print_json, print_table, shown
from variational_diffusion.cli.shared.options import (
    device_options,
    json_option,
    network_option,
    open_run,
    seed_option,
)
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
            return [float(part) for part in str(value).split(",")]
        except ValueError:
            self.fail(f"{value!r} is no list of widths: give one as {WIDTHS}")


@click.command()
@click.argument("run")
@click.option("--width", type=float, help="Write the average of this width, 0.02 to 0.25.")
@click.option("--out", metavar="NAME", help="Its name for --weights; default: ema-WIDTH.")
@click.option("--widths", type=Widths(), default=WIDTHS, help=f"Compare these (default {WIDTHS}).")
@click.option("--data", help="Examples to compare them on; default: those of the run.")
@click.option("--limit", type=click.IntRange(2), default=1000, help="How many (default 1000).")
@click.option("--draws", type=click.IntRange(1), default=4, help="Of the bound (default 4).")
@network_option
@seed_option("the draws")
@json_option
@device_options
def command(
    run: str,
    width: float | None,
    out: str | None,
    widths: list[float],
    as_json: bool,
    **options: Any,
) -> None:
    """Compare averages of the weights in RUN by the bound of the validation split, or write one.

    A width is the standard deviation of the average in time, as a share of the run. With --width
    the average is written, for the --weights of other commands.

    Example: vdm ema runs/first --width 0.07
    """
    from variational_diffusion.run import averages

    if width is not None:
        made = averages.write_average(open_run(run), width, out)
        if as_json:
            print_json(made.as_json())
            return
        rest = f"{100 * made.rest:.1g} %"
        click.echo(f"{made.path}   (after step {made.step}, profile to {rest})")
        click.echo(f"next: vdm evaluate {run} --weights {made.name}", err=True)
        return
    if out is not None:
        raise InputError(f"out = '{out}' goes with --width; give --width 0.07 --out {out}")
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
    click.echo(f"next: vdm ema {run} --width {found.best:g}", err=True)


def _cells(bound: WidthBound) -> tuple[str, str]:
    return (
        f"{bound.bits_per_dim:.4f} ± {bound.standard_error:.4f}",
        f"{bound.difference:+.4f} ± {bound.difference_error:.4f}",
    )
