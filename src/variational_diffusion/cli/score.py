"""`vdm score`: anomaly scores and p-values of examples under a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from variational_diffusion.anomaly import (
    SCORES,
    Scored,
    calibration_needed,
    check_reference,
    fewest_discoveries,
    rounded_up,
    save_score_sheet,
    score,
)
from variational_diffusion.anomaly import false_alarms as expected_false_alarms
from variational_diffusion.cli.columns import ENDINGS, check_target, write_columns
from variational_diffusion.cli.console import Meter, print_json, print_table
from variational_diffusion.cli.devices import use_device
from variational_diffusion.cli.examples import condition_option
from variational_diffusion.cli.options import device_options, weights_option
from variational_diffusion.data import SPLITS, Split
from variational_diffusion.errors import InputError
from variational_diffusion.images.pictures import is_image
from variational_diffusion.report.figures import save_figure, score_figure
from variational_diffusion.run.directory import Run
from variational_diffusion.run.examples import check_free, chosen_examples, own_data

_SHOWN = 10
_REFERENCE, _FALSE_ALARMS = 1000, 0.01
_TRAINED_ON = "train"


@click.command()
@click.argument("run")
@click.argument("data", required=False)
@click.option(
    "--split",
    type=click.Choice(list(SPLITS)),
    help="Only this split (default: every example of the run's own data, or of DATA).",
)
@click.option("--limit", type=click.IntRange(1), help="Only so many, drawn at random with seed 0.")
@click.option(
    "--score",
    "name",
    type=click.Choice(list(SCORES)),
    default="combined",
    help="The score that examples are ranked by (default combined); --out has all of them.",
)
@click.option(
    "--false-alarms",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Mark examples with p-values up to this: the share of normal examples that is marked by "
    f"mistake (default {_FALSE_ALARMS}).",
)
@click.option(
    "--fdr",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Mark by Benjamini and Hochberg instead, so that at most this share of the marked "
    "examples is normal.",
)
@click.option(
    "--reference",
    type=click.IntRange(50),
    help="Held-out validation examples of the run that fit and calibrate the score (default "
    f"{_REFERENCE}, or more where --false-alarms takes more).",
)
@click.option(
    "--draws",
    type=click.IntRange(1),
    default=2,
    help="Network evaluations in each of 16 bands of γ (default 2).",
)
@click.option("--out", help="Write every score and term of every example as this .csv or .parquet.")
@click.option("--figure", help="Write histograms of the score as this .png or .svg.")
@click.option(
    "--sheet", help="Write the most anomalous images, then the most normal, as this .png."
)
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of the noise.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@condition_option
@weights_option
@device_options
def command(
    run: str,
    data: str | None,
    split: str | None,
    limit: int | None,
    name: str,
    false_alarms: float | None,
    fdr: float | None,
    reference: int | None,
    draws: int,
    out: str | None,
    figure: str | None,
    sheet: str | None,
    seed: int,
    as_json: bool,
    condition: str,
    weights: str,
    device: str,
    threads: int | None,
) -> None:
    """Rank examples by how anomalous they are to the model in RUN, with p-values.

    Without DATA, all of the run's own data, or one --split of them; with it, all examples of DATA.
    The p-value of an example is the share of held-out examples of the training kind that are as
    anomalous or more. See docs/anomalies.md and `variational_diffusion.anomaly`.
    """
    check_target("out", out, ENDINGS)
    check_target("figure", figure, (".png", ".svg"))
    check_target("sheet", sheet, (".png", ".webp"))
    if false_alarms is not None and fdr is not None:
        raise InputError(f"false_alarms = {false_alarms:g}, fdr = {fdr:g}: give one of the two")
    rate = false_alarms or _FALSE_ALARMS
    target = use_device(device, threads)
    opened = Run.open(run)
    vdm = opened.load(weights).to(target)
    if condition == "none":
        check_free(opened)
    if sheet is not None and not is_image(vdm.shape):
        raise InputError(f"sheet = '{sheet}': these examples are not images; give --out FILE.csv")
    count = reference or max(_REFERENCE, 2 * calibration_needed(rate))
    own = own_data(opened, condition=condition)
    held_out = own.splits["validation"].sample(count)
    if data is not None and not _is_same(data, opened.config.data.source):
        parts = {"": chosen_examples(opened, data, split, limit, condition=condition)}
    else:
        parts = drawn(own.splits if split is None else {split: own.splits[split]}, limit)
    discrete = held_out.levels is not None
    check_reference(name, len(held_out), discrete=discrete, false_alarms=false_alarms)
    with Meter("scoring", "examples") as meter:
        found = score(
            vdm,
            parts,
            held_out,
            name,
            false_alarms=rate,
            fdr=fdr,
            draws=draws,
            seed=seed,
            progress=lambda done, total, bits: meter.update(
                done / total, done, lambda: f"{bits:.3f} bits/dim"
            ),
        )

    if out is not None:
        write_columns(out, found.columns())
        click.echo(f"scores: {out}", err=True)
    if figure is not None:
        histogram = score_figure(name, found.calibration, found.scores[name], found.threshold)
        save_figure(histogram, figure, f"Histogram of the score {name} of {len(found)} examples")
        click.echo(f"figure: {figure}", err=True)
    if sheet is not None:
        save_score_sheet(found, sheet)
        click.echo(f"sheet: {sheet}", err=True)
    if as_json:
        print_json(_values(found))
        return
    print_table(_title(found), *_table(found))
    for line in _notes(found):
        click.echo(line)


def drawn(parts: Mapping[str, Split], limit: int | None) -> dict[str, Split]:
    """Return so many examples of several splits, drawn at random out of all with seed 0."""
    sizes = [len(part) for part in parts.values()]
    if limit is None or limit >= sum(sizes):
        return dict(parts)
    counts = np.random.default_rng(0).multivariate_hypergeometric(sizes, limit)
    return {
        label: part.sample(int(n))
        for (label, part), n in zip(parts.items(), counts, strict=True)
        if n > 0
    }


def _is_same(data: str, source: str) -> bool:
    """Tell whether DATA is what the run was trained on, by its name or its path."""
    return data == source or Path(data).expanduser().resolve() == Path(source)


def _title(found: Scored) -> str:
    """Return what was scored, and how many are marked by which rule."""
    rule = f"p ≤ {found.false_alarms:g}"
    if found.fdr is not None:
        rule = f"Benjamini-Hochberg at {found.fdr:g}"
    parts = [
        f"{int(found.marked[found.split == label].sum()):,} among {part.description}"
        for label, part in found.parts.items()
    ]
    return f"marked by '{found.score}' ({rule}): {', '.join(parts)}; the most anomalous first"


def _table(found: Scored) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return the columns and rows of the table of the most anomalous examples."""
    shown = list(dict.fromkeys([found.score, "bits"]))
    named = "example" if found.names is None else "file"
    several = len(found.parts) > 1
    labels = found.number if found.names is None else found.names
    rows = [
        (
            str(labels[i]),
            *([str(found.split[i])] * several),
            *(f"{found.scores[each][i]:.4g}" for each in shown),
            f"{found.p_value[i]:.2g}",
            "*" if found.marked[i] else "",
        )
        for i in found.order[:_SHOWN]
    ]
    return [named, *(["split"] * several), *shown, "p-value", "marked"], rows


def _notes(found: Scored) -> list[str]:
    """Return what a reader has to know of the p-values, a line each."""
    n = len(found.calibration)
    notes = [
        f"p-values: against {n:,} of {found.held_out:,} held-out examples, so the smallest is "
        f"{found.smallest_p:.2g}"
        + (f"; the other {found.held_out - n:,} fit the score" if n < found.held_out else "")
    ]
    needed = calibration_needed(found.false_alarms)
    fewest = 0 if found.fdr is None else fewest_discoveries(len(found), n, found.fdr)
    if fewest > 1:
        notes.append(
            f"--fdr {found.fdr:g}: {fewest:,} examples have to have the smallest p-value before "
            "any is marked; a larger --reference allows fewer"
        )
    elif found.fdr is None and n < needed:
        notes.append(
            f"no example can be marked at {found.false_alarms:g}: that takes "
            f"{needed + found.held_out - n:,} held-out examples; type --false-alarms "
            f"{rounded_up(found.smallest_p)} or more, or train with a larger share for --validation"
        )
    elif found.fdr is None:
        expected = expected_false_alarms(n, found.false_alarms)
        mean, low, high = (f"{100 * rate:.2g} %" for rate in expected)
        notes.append(
            f"false alarms: {mean} of new normal examples on average, {low} to {high} for 95 % of "
            "the calibration sets of this size"
        )
    if _TRAINED_ON in found.parts:
        notes.append(
            "train: the model was trained on these examples. They look more normal than new ones, "
            "and their p-values have no guarantee"
        )
    if "validation" in found.parts:
        notes.append(
            "validation: an example that calibrates the score is compared with the others only"
        )
    return notes


def _values(found: Scored) -> dict[str, Any]:
    """Return what --json prints."""
    expected = expected_false_alarms(len(found.calibration), found.false_alarms)
    return {
        "score": found.score,
        "examples": len(found),
        "held_out": found.held_out,
        "calibration": len(found.calibration),
        "smallest_p": found.smallest_p,
        "false_alarms": found.false_alarms if found.fdr is None else None,
        "expected": expected._asdict() if found.fdr is None else None,
        "fdr": found.fdr,
        "marked": int(found.marked.sum()),
        "parts": [
            {
                **part.as_json(),
                "marked": int(found.marked[found.split == label].sum()),
                "trained_on": label == _TRAINED_ON,
            }
            for label, part in found.parts.items()
        ],
        "most_anomalous": [
            {
                **({"split": str(found.split[i])} if found.split[i] else {}),
                "example": int(found.number[i]),
                **({} if found.names is None else {"file": str(found.names[i])}),
                "score": float(found.scores[found.score][i]),
                "p_value": float(found.p_value[i]),
                "marked": bool(found.marked[i]),
            }
            for i in found.order[:_SHOWN]
        ],
    }
