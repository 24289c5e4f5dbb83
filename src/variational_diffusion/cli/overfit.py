"""`vdm train --overfit-check`: whether a model can learn eight examples by heart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from variational_diffusion.cli.shared.console import print_json, print_table

if TYPE_CHECKING:
    from variational_diffusion.training.overfit import OverfitCheck


def report_overfit(found: OverfitCheck, *, as_json: bool) -> None:
    """Print what came of the check; exit with 1 if it failed."""
    from variational_diffusion.training.overfit import SHARE

    if as_json:
        print_json(
            {
                "passed": found.passed,
                "first": found.first.bits_per_dim,
                "last": found.last.bits_per_dim,
                "fallen": found.fallen,
                "steps": found.steps,
                "seconds": found.seconds,
                "causes": found.causes,
            }
        )
    else:
        first, last = found.first.bits_per_dim, found.last.bits_per_dim
        enough = first - SHARE * found.first.terms["diffusion"]
        rows = {"first": first, "last": last, f"to pass: {SHARE:.0%} of diffusion less": enough}
        print_table(
            f"{'passed' if found.passed else 'FAILED'}: {found.first.examples} examples, "
            f"{found.steps} steps in {found.seconds:.0f} seconds",
            ["bound of the examples", "bits/dim"],
            [(name, f"{value:.3f}") for name, value in rows.items()],
        )
        for cause in found.causes:
            click.echo(f"perhaps: {cause}")
    if not found.passed:
        click.get_current_context().exit(1)
