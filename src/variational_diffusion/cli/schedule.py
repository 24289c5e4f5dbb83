"""`vdm schedule`: what the noise schedule of a run has learned."""

from __future__ import annotations

from pathlib import Path

import click
import torch

from variational_diffusion.cli.console import print_json, print_table, shown
from variational_diffusion.cli.devices import use_device
from variational_diffusion.cli.examples import examples_options
from variational_diffusion.cli.options import device_options, weights_option
from variational_diffusion.data import Split
from variational_diffusion.likelihood.loss_profile import (
    GROUPS,
    measure,
    measured_variances,
    profile,
)
from variational_diffusion.report.figures import save_figure, schedule_figure
from variational_diffusion.run.directory import Run
from variational_diffusion.run.examples import chosen_examples
from variational_diffusion.run.noise_errors import to_measure
from variational_diffusion.storage.files import unused

_BATCH = 200
_BINS = 100
_TARGET = 0.01  # standard error in bits/dim of the last column of the table


@click.command()
@examples_options
@click.option(
    "--evaluations",
    type=click.IntRange(20 * _BINS),
    default=20_000,
    help="Evaluations of the network to measure with (default 20,000).",
)
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of the measurement.")
@click.option("--out", help="Name of the figure, .png or .svg; default: both, in the run.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@weights_option
@device_options
def command(
    run: str,
    data: str | None,
    split: str | None,
    limit: int | None,
    evaluations: int,
    seed: int,
    out: str | None,
    as_json: bool,
    weights: str,
    device: str,
    threads: int | None,
) -> None:
    """Measure the loss m(γ) of the model in RUN, and what its noise schedule makes of it.

    The table compares the variance of the diffusion term's estimate, for one example and one
    evaluation of the network, under the learned schedule with that under fixed ones with the same
    end points and weights, and with the least possible. The figure shows γ, SNR, alpha and sigma
    over t, m(γ), the density of γ and the variances.
    """
    target = use_device(device, threads)
    opened = Run.open(run)
    vdm = opened.load(weights).to(target)
    examples = chosen_examples(opened, data, split, limit)
    errors = measure_split(vdm, examples, evaluations=evaluations, seed=seed)
    gamma_0, gamma_1 = vdm.schedule.end_points.tolist()
    found = profile(errors, (gamma_0, gamma_1), bins=_BINS)
    measured = measured_variances(errors, (gamma_0, gamma_1), vdm.schedule, bins=_BINS)
    values = measured.values

    figure = schedule_figure(vdm.schedule, found, values)
    description = f"The noise schedule of {run}: " + ", ".join(
        f"variance {name} {value:.3g}" for name, value in values._asdict().items()
    )
    figures = (
        [Path(out)]
        if out is not None
        else [unused(opened.path / f"schedule{ending}") for ending in (".png", ".svg")]
    )
    for path in figures:
        save_figure(figure, path, description)
    if as_json:
        print_json(
            {
                "gamma_0": gamma_0,
                "gamma_1": gamma_1,
                "variance": values._asdict(),
                "standard_error": measured.errors._asdict(),
                "interval": {
                    name: [low, high]
                    for name, low, high in zip(
                        values._fields, measured.low, measured.high, strict=True
                    )
                },
                "diffusion": found.diffusion,
                "evaluations": found.evaluations,
                "weights": weights,
                **examples.as_json(),
                "figures": [str(path) for path in figures],
            }
        )
        return
    print_table(
        f"{run}: {opened.config.model.schedule.name} schedule from γ = {gamma_0:.3f} to "
        f"{gamma_1:.3f}; diffusion term {found.diffusion:.3f} bits/dim of {examples.description}",
        [
            "schedule",
            "variance, (bits/dim)²",
            "95 % interval",
            "of the optimum",
            f"evaluations for ± {_TARGET}",
        ],
        [
            (
                name,
                f"{value:.3f} ± {error:.3f}",
                f"{low:.3f} to {high:.3f}",
                f"{value / values.optimum:.2f}",
                f"{value / _TARGET**2:,.0f}",
            )
            for name, value, error, low, high in zip(values._fields, *measured, strict=True)
        ],
    )
    for path in figures:
        click.echo(f"figure: {path}")


def measure_split(vdm: VDM, split: Split, *, evaluations: int, seed: int = 0) -> list[Errors]:
    """Measure m(γ) on a split, with a progress bar, as `measured_variances` takes it."""
    generator = torch.Generator(vdm.schedule.gamma_0.device).manual_seed(seed)
    size = min(_BATCH, -(-evaluations // GROUPS))
    batches = to_measure(
        split, size, -(-evaluations // size), "measuring", seed, GROUPS, progress=shown
    )
    return list(measure(vdm, batches, generator=generator))
