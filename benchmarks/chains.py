"""The bound of chains of T steps: every grid and reverse variance, against infinitely many steps.

    vdm train fashion-mnist --run runs/fashion --minutes 20
    vdm variance runs/fashion
    python benchmarks/chains.py runs/fashion

Every step of a chain is summed, on 250 test images, and what the dynamic program expects
of the errors that were measured on the validation images stands beside it. The standard error is
that of the difference from the expectation by the choice of these images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import click
import torch
from common import device_of, log_option, markdown, report, threads_option

from variational_diffusion.grids import GRIDS, VARIANCES, expected_diffusion, step_grid
from variational_diffusion.likelihood import ContinuousBound, DiscreteBound, evaluate_rounds
from variational_diffusion.model import VDM
from variational_diffusion.run.directory import Run
from variational_diffusion.run.examples import chosen_examples
from variational_diffusion.run.noise_errors import expected_errors, widened
from variational_diffusion.run.trained import Trained


@click.command()
@click.argument("run")
@click.option("--steps", "counts", multiple=True, type=click.IntRange(1), default=[10, 20, 50, 100])
@click.option("--grid", "laid", multiple=True, type=click.Choice(list(GRIDS)), default=list(GRIDS))
@click.option("--limit", type=click.IntRange(2), default=250, show_default=True)
@threads_option
@log_option
def main(
    run: str, counts: tuple[int, ...], laid: tuple[str, ...], limit: int, threads: int, log: bool
) -> None:
    """Compare the chains of a RUN."""
    device = device_of(threads)
    opened = Run.open(run)
    vdm = opened.load().to(device)
    variances = [n for n, v in VARIANCES.items() if opened.head() is not None or not v.predicted]
    report(bounds(opened, vdm, counts, laid, variances, limit), log=log)


def bounds(
    opened: Run,
    vdm: VDM,
    counts: Sequence[int],
    laid: Sequence[str],
    variances: Sequence[str],
    limit: int,
) -> str:
    """Return the table of chains with these numbers of steps, grids and reverse variances."""
    examples = chosen_examples(opened, None, "test", limit)

    def bits(
        model: VDM, estimator: ContinuousBound | DiscreteBound
    ) -> tuple[float, float, dict[str, float]]:
        done = evaluate_rounds(model, examples, estimator, rounds=1)
        found = done.summary
        return found.bits_per_dim, found.standard_error, found.terms

    trained = Trained(opened, "ema", vdm)
    limit_bits, limit_error, terms = bits(vdm, ContinuousBound(64))
    ends = terms["prior"] + terms["reconstruction"]
    rows: list[list[object]] = []
    for steps, grid, variance in product(counts, laid, variances):
        errors, assumed = expected_errors(trained, variance)
        gammas = step_grid(grid, vdm.schedule, steps, errors, assumed)
        value, error, _ = bits(widened(trained, variance), DiscreteBound(gammas=gammas, draws=None))
        expected = expected_diffusion(gammas, errors, assumed) / math.log(2)
        rows.append(
            [
                steps,
                grid,
                variance,
                f"{value:.3f} ± {error:.3f}",
                f"{value / limit_bits - 1:+.1%}",
                f"{expected + ends:.3f}",
            ]
        )
        print(rows[-1], flush=True)
    header = ["T", "grid", "variance", "bits/dim", "over T → ∞", "expected"]
    note = f"{opened.config.data.source}, {limit} test images; T → ∞: {limit_bits:.3f} ± "
    return f"{note}{limit_error:.3f} bits/dim\n\n{markdown(header, rows)}"


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
