"""`vdm schedule`: what the noise schedule of a run has learned."""

from __future__ import annotations

from typing import Any

import click

from variational_diffusion.cli.shared.console import print_json, print_table, say, shown
from variational_diffusion.cli.shared.examples import examples_options
from variational_diffusion.cli.shared.options import (
    device_options,
    json_option,
    open_run,
    seed_option,
    weights_option,
)

_TARGET = 0.01  # standard error in bits/dim of the last column of the table


@click.command()
@examples_options
@click.option(
    "--evaluations",
    type=click.IntRange(2000),
    default=20_000,
    help="Evaluations of the network to measure with (default 20,000).",
)
@seed_option("the measurement")
@click.option(
    "--out",
    type=click.Path(),
    help="Where to write the figure, .png or .svg; default: both, in the run.",
)
@json_option
@weights_option
@device_options
def command(run: str, data: str | None, out: str | None, as_json: bool, **options: Any) -> None:
    """Measure the loss m(γ) of the model in RUN, and what its noise schedule makes of it.

    The table compares the variance of the diffusion term's estimate, for one example and one
    evaluation of the network, under the learned schedule with that under fixed ones with the same
    end points and weights, and with the least possible. The figure shows γ, SNR, alpha and sigma
    over t, m(γ), the density of γ and the variances. With --json, a figure is written only where
    --out names it.

    Example: vdm schedule runs/first --out schedule.png
    """
    from variational_diffusion.report.figures import FIGURES
    from variational_diffusion.run.learned_schedule import schedule
    from variational_diffusion.storage.files import check_target, unused

    opened = open_run(run)
    found = schedule(opened, data, progress=shown, **options)
    values = found.variances._asdict()
    figures = [] if out is None else [check_target(out, endings=FIGURES)]
    if out is None and not as_json:
        figures = [unused(opened.path / f"schedule{ending}") for ending in (".png", ".svg")]
    if figures:
        from variational_diffusion.report.figures import save_figure, schedule_figure

        figure = schedule_figure(found.vdm.schedule, found.profile, found.variances)
        description = f"The noise schedule of {run}: " + ", ".join(
            f"variance {name} {value:.3g}" for name, value in values.items()
        )
        for path in figures:
            save_figure(figure, path, description)
    if as_json:
        print_json({**found.as_json(), "figures": [str(path) for path in figures]})
        return
    gamma_0, gamma_1 = found.end_points
    print_table(
        f"{run}: {opened.config.model.schedule.name} schedule from γ = {gamma_0:.3f} to "
        f"{gamma_1:.3f}; diffusion term {found.profile.diffusion:.3f} bits/dim of "
        f"{found.examples.description}",
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
                f"{value / found.variances.optimum:.2f}",
                f"{value / _TARGET**2:,.0f}",
            )
            for name, value, error, low, high in zip(values, *found.measured, strict=True)
        ],
    )
    for path in figures:
        say(f"figure: {path}")
