"""`vdm ema`: averages of the weights with widths that training did not choose."""

from __future__ import annotations

import math
from typing import Any

import click
import torch

from variational_diffusion.cli.devices import use_device
from variational_diffusion.cli.evaluate import evaluated
from variational_diffusion.cli.shared.console import print_json, print_table
from variational_diffusion.cli.shared.options import device_options
from variational_diffusion.data import Split
from variational_diffusion.errors import InputError
from variational_diffusion.likelihood import ContinuousBound, example_columns
from variational_diffusion.model import VDM
from variational_diffusion.run import averages
from variational_diffusion.run.directory import Run
from variational_diffusion.run.examples import chosen_examples

_WIDTHS = "0.03,0.05,0.07,0.1,0.15,0.2"


class Widths(click.ParamType):
    """Numbers with commas between them."""

    name = "W,W,…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[float]:
        try:
            return [float(part) for part in str(value).split(",")]
        except ValueError:
            self.fail(f"{value!r} is no list of widths: give one as {_WIDTHS}")


@click.command()
@click.argument("run")
@click.option("--width", type=float, help="Write the average of this width, 0.02 to 0.25.")
@click.option("--out", metavar="NAME", help="Its name for --weights; default: ema-WIDTH.")
@click.option(
    "--widths", type=Widths(), default=_WIDTHS, help=f"Compare these (default {_WIDTHS})."
)
@click.option("--data", help="Examples to compare them on; default: those of the run.")
@click.option("--limit", type=click.IntRange(2), default=1000, help="How many (default 1000).")
@click.option("--draws", type=click.IntRange(1), default=4, help="Of the bound (default 4).")
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of the draws.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@device_options
def command(
    run: str,
    width: float | None,
    out: str | None,
    widths: list[float],
    data: str | None,
    limit: int,
    draws: int,
    seed: int,
    as_json: bool,
    device: str,
    threads: int | None,
) -> None:
    """Compare averages of the weights in RUN by the bound of the validation split, or write one.

    A width is the standard deviation of the average in time, as a share of the run. With --width
    the average is written, for the --weights of other commands.
    """
    target = use_device(device, threads)
    opened = Run.open(run)
    if width is not None:
        made = averages.reconstruct(opened, width)
        name = out or f"ema-{width:g}"
        metadata = {"step": str(made.step), "width": str(width), "rest": repr(made.rest)}
        path = opened.save_weights(name, made.vdm, metadata)
        if as_json:
            print_json({"weights": name, "width": width, "step": made.step, "rest": made.rest})
            return
        click.echo(f"{path}   (after step {made.step}, profile to {100 * made.rest:.1g} %)")
        click.echo(f"next: vdm evaluate {run} --weights {name}", err=True)
        return
    if out is not None:
        raise InputError(f"out = '{out}' goes with --width; give --width 0.07 --out {out}")
    examples = chosen_examples(opened, data, "validation", limit)
    reference = _bits(opened.load("ema").to(target), examples, draws, seed)
    found = []
    for each in widths:
        made = averages.reconstruct(opened, each)
        bits = _bits(made.vdm.to(target), examples, draws, seed)
        found.append({"width": each, "rest": made.rest} | _compared(bits, reference))
    best = min(found, key=lambda row: row["bits_per_dim"])
    if as_json:
        ema = _compared(reference, reference)
        print_json({"step": made.step, "ema": ema, "widths": found, "best": best["width"]})
        return
    rows = [("ema", *_cells(_compared(reference, reference)), "")]
    for row in found:
        mark = " (best)" if row is best else ""
        rows.append((f"{row['width']:g}{mark}", *_cells(row), f"{100 * row['rest']:.2f} %"))
    print_table(
        f"{run}: {examples.description}; averages after step {made.step}",
        ["width", "bits/dim", "above ema", "rest of the profile"],
        rows,
    )
    click.echo(f"next: vdm ema {run} --width {best['width']:g}", err=True)


def _bits(vdm: VDM, examples: Split, draws: int, seed: int) -> torch.Tensor:
    """Return the bound of every example in bits per dimension, the same draws for all weights."""
    done = evaluated(vdm, examples, ContinuousBound(draws), rounds=1, seed=seed)
    if done.stopped:
        raise KeyboardInterrupt
    assert done.summary.examples == len(examples)  # and it refuses what is not finite
    return example_columns(*done.rounds, dimensions=vdm.dimensions)["bits_per_dim"]


def _compared(bits: torch.Tensor, reference: torch.Tensor) -> dict[str, float]:
    """Return means and standard errors: of the bits, and of their difference example by example."""
    n, difference = len(bits), bits - reference
    return {
        "bits_per_dim": float(bits.mean()),
        "standard_error": float(bits.std()) / math.sqrt(n),
        "difference": float(difference.mean()),
        "difference_error": float(difference.std()) / math.sqrt(n),
    }


def _cells(row: dict[str, float]) -> tuple[str, str]:
    return (
        f"{row['bits_per_dim']:.4f} ± {row['standard_error']:.4f}",
        f"{row['difference']:+.4f} ± {row['difference_error']:.4f}",
    )
