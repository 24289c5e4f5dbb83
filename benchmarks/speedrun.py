"""Bits per dimension after a fixed number of minutes, or of steps, of training from nothing.

    python benchmarks/speedrun.py fashion-mnist --minutes 5 --seeds 3
    python benchmarks/speedrun.py digits --steps 2500 --set network.dropout=0

The clock counts every step from the first, compilation included; reading the data and the
evaluation at the end do not count. Then the averaged weights are evaluated on validation images.
Settings and presets are chosen here, so the test images stay unseen: `--split test` is for the
figure of a choice that has been made. Any setting of the run can be changed as in `vdm train`.
Nothing else should run on the machine; experiments/speedrun.md is the leaderboard.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import click
import torch
from common import device_of, markdown, opened, report, run_options

from variational_diffusion.data.loader import ordered_batches, training_batches
from variational_diffusion.likelihood import evaluate_rounds
from variational_diffusion.machine.execution import Execution
from variational_diffusion.model import VDM, build
from variational_diffusion.training import TrainingState, fit

LIMIT = 1000


@click.command()
@run_options
@click.option("--minutes", type=float, help="Budget of a run; without --steps: 5.")
@click.option("--steps", type=click.IntRange(1), help="Budget in steps instead.")
@click.option(
    "--split",
    type=click.Choice(["validation", "test"]),
    default="validation",
    show_default=True,
    help=f"Where the figure comes from; at most {LIMIT} examples.",
)
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True)
def main(
    data: str,
    minutes: float | None,
    steps: int | None,
    split: str,
    seeds: int,
    compile: str,
    precision: str,
    channels_last: bool,
    threads: int,
    log: bool,
    **options: Any,
) -> None:
    """Train on DATA for so long from each seed, and evaluate."""
    device = device_of(threads)
    dataset, configured = opened(data, options)
    budget = {"steps": steps, "minutes": None if steps else minutes or 5.0}
    chosen = dataset.splits[split].sample(LIMIT)
    rows: list[list[object]] = []
    values = []
    for seed in range(seeds):
        config = configured(**budget, seed=seed)
        vdm = build(config.model, seed=seed).to(device)
        state = TrainingState.start(vdm, config.training)
        vdm.prepare(
            Execution(
                str(device), precision=precision, compile=compile, channels_last=channels_last
            )
        )
        stream = training_batches(dataset.splits["train"], config.training.batch_size, seed)
        for _ in fit(state, stream, config.training):
            pass
        average = state.average.module
        summary = evaluate_rounds(average, chosen).summary
        values.append(summary.bits_per_dim)
        gamma_0, gamma_1 = average.schedule.end_points.tolist()
        parameters = sum(p.numel() for p in vdm.network.parameters())
        rows.append(
            [
                seed,
                f"{summary.bits_per_dim:.4f} ± {summary.standard_error:.4f}",
                state.step,
                f"{1000 * state.seconds / state.step:.1f}",
                f"{milliseconds_an_image(average, next(ordered_batches(chosen, 100))):.2f}",
                f"{parameters:,}",
                f"{gamma_0:.2f} to {gamma_1:.2f}",
            ]
        )
        print(rows[-1], flush=True)
    header = ["seed", f"{split} bits/dim", "steps", "ms a step", "ms an image", "parameters", "γ"]
    table = markdown(header, rows)
    if seeds > 1:
        table += f"\n\nmedian {statistics.median(values):.4f}"
    report(table, log=log)


@torch.inference_mode()
def milliseconds_an_image(vdm: VDM, x: torch.Tensor) -> float:
    """Return the median time of one pass of the network, which sampling and coding pay."""
    z = torch.randn(x.shape, device=vdm.schedule.gamma_0.device)
    gamma = torch.zeros(len(x), device=z.device)
    times = []
    for _ in range(12):
        begin = time.perf_counter()
        vdm.network(z, gamma)
        if z.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times[2:]) / len(x)


if __name__ == "__main__":
    main()
