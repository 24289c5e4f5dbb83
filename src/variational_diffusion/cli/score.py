"""`vdm score`: how strange examples are to a model."""

from __future__ import annotations

from contextlib import suppress

import click
import numpy as np
import torch

from variational_diffusion.anomaly import SCORES, Profiles, Reference, check_reference, profiles
from variational_diffusion.checkpoint import Run
from variational_diffusion.cli.columns import ENDINGS, check_target, file_column, write_columns
from variational_diffusion.cli.console import Meter, print_json, print_table
from variational_diffusion.cli.devices import use_device
from variational_diffusion.cli.examples import (
    check_free,
    chosen_examples,
    condition_option,
    examples_options,
)
from variational_diffusion.cli.options import device_options, weights_option
from variational_diffusion.data import Split
from variational_diffusion.data.loader import ordered_batches
from variational_diffusion.errors import InputError
from variational_diffusion.figures import save_figure, score_figure
from variational_diffusion.model import VDM
from variational_diffusion.pictures import is_image, save_sheet

_BATCH = 200
_SHOWN = 10
_SHEET = 16


@click.command()
@examples_options
@click.option(
    "--score",
    type=click.Choice(list(SCORES)),
    default="combined",
    help="What the table is sorted by (default combined); --out has all of them.",
)
@click.option(
    "--reference",
    type=click.IntRange(50),
    default=1000,
    help="Validation examples of the run that the scores compare with (default 1000).",
)
@click.option(
    "--draws",
    type=click.IntRange(1),
    default=2,
    help="Network evaluations in each of 16 bands of γ (default 2).",
)
@click.option("--out", help="Write every score and term of every example as this .csv or .parquet.")
@click.option("--figure", help="Write a histogram beside the reference's as this .png or .svg.")
@click.option("--sheet", help="Write the most strange images, then the least, as this .png.")
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
    score: str,
    reference: int,
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
    """Score how strange the examples of DATA are to the model in RUN.

    Without DATA, the run's own SPLIT; with it, all examples of DATA. The scores are explained at
    `variational_diffusion.anomaly`; a percentile is the share of the model's own validation
    examples that are less strange.
    """
    check_target("out", out, ENDINGS)
    check_target("figure", figure, (".png", ".svg"))
    check_target("sheet", sheet, (".png", ".webp"))
    target = use_device(device, threads)
    opened = Run.open(run)
    vdm = opened.load(weights).to(target)
    if condition == "none":
        check_free(opened)
    examples = chosen_examples(opened, data, split, limit, condition=condition)
    if sheet is not None and not is_image(vdm.shape):
        raise InputError(f"sheet = '{sheet}': these examples are no images; give --out FILE.csv")
    validation = chosen_examples(opened, None, "validation", reference, condition=condition)
    check_reference(score, len(validation))
    own = measured(vdm, validation, draws=draws, seed=seed, title="reference")
    of = measured(vdm, examples, draws=draws, seed=seed, title="scoring")
    against = Reference(own)
    scores = scores_of(against, of)
    own_score = against.own_score(score)
    chosen = scores[score]
    percentile = np.searchsorted(np.sort(own_score), chosen) / len(own_score)
    order = np.argsort(-chosen, kind="stable")

    files = file_column(examples)
    if out is not None:
        columns = _columns(of, files, scores, percentile)
        write_columns(out, {name: column[order] for name, column in columns.items()})
        click.echo(f"scores: {out}", err=True)
    if figure is not None:
        drawn = score_figure(score, own_score, chosen)
        save_figure(drawn, figure, f"Histogram of the score {score} of {len(of)} examples")
        click.echo(f"figure: {figure}", err=True)
    if sheet is not None:
        rows = np.concatenate([order[:_SHEET], order[-_SHEET:]])
        save_sheet(
            examples.read(rows),
            opened.config.data.levels,
            sheet,
            columns=_SHEET,
            captions=[f"{chosen[i]:.3g}" for i in rows],
        )
        click.echo(f"sheet: {sheet}", err=True)
    if as_json:
        print_json(
            {
                "score": score,
                "examples": len(of),
                "reference": len(own),
                "strangest": [
                    {
                        "example": int(i),
                        **{name: str(column[i]) for name, column in files.items()},
                        "score": float(chosen[i]),
                    }
                    for i in order[:_SHOWN]
                ],
                "share_beyond_99_percent_of_the_reference": float((percentile > 0.99).mean()),
            }
        )
        return
    beyond = f"{(percentile > 0.99).mean():.1%} are stranger than 99 % of the model's own"
    shown = dict.fromkeys([score, "bits"])
    print_table(
        f"{len(of)} examples by '{score}', the strangest first; {beyond}",
        [*(files or ["example"]), *shown, "percentile"],
        [
            (
                *([str(column[i]) for column in files.values()] or [str(i)]),
                *(f"{scores[name][i]:.4g}" for name in shown),
                f"{100 * percentile[i]:.1f}",
            )
            for i in order[:_SHOWN]
        ],
    )


def measured(vdm: VDM, split: Split, *, draws: int, seed: int, title: str) -> Profiles:
    """Return the profiles of a split, with a progress bar; only equal seeds can be compared."""
    generator = torch.Generator(vdm.schedule.gamma_0.device).manual_seed(seed)
    parts = []
    done = 0
    with Meter(title, "examples") as meter:
        for part in profiles(vdm, ordered_batches(split, _BATCH), draws=draws, generator=generator):
            parts.append(part)
            done += len(part)
            meter.update(done / len(split), done, lambda: f"{parts[-1].bits.mean():.3f} bits/dim")
    return Profiles.joined(parts)


def scores_of(reference: Reference, of: Profiles) -> dict[str, np.ndarray]:
    """Return all scores that these data have."""
    scores = {}
    for name in SCORES:
        with suppress(InputError):  # real values have no classical code, few examples no bands
            scores[name] = reference.score(of, name)
    return scores


def _columns(
    of: Profiles,
    files: dict[str, np.ndarray],
    scores: dict[str, np.ndarray],
    percentile: np.ndarray,
) -> dict[str, np.ndarray]:
    return {
        "example": np.arange(len(of)),
        **files,
        **scores,
        "percentile": 100 * percentile,
        "prior": of.prior,
        "reconstruction": of.reconstruction,
        "classical": of.classical,
        **{f"band_{i}": of.bands[:, i] for i in range(of.bands.shape[1])},
    }
