"""What the averages for `vdm ema` cost: a training step with and without them, and a snapshot.

    python benchmarks/averages.py DATA [--preset NAME] [--repeats 40]

The steps are of one run, in turn; the ratio is the median of those of neighbouring steps.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from typing import Any

import click
import torch
from common import markdown, median_ratio, opened, report, run_options

from variational_diffusion.data.loader import training_batches
from variational_diffusion.machine.execution import Execution
from variational_diffusion.model import build
from variational_diffusion.run import averages
from variational_diffusion.run.directory import Run
from variational_diffusion.training import TrainingState, fit

WARM_UP = 6


@click.command()
@click.option("--repeats", type=click.IntRange(1), default=40, show_default=True)
@run_options
def main(
    data: str,
    repeats: int,
    threads: int,
    log: bool,
    compile: str,
    precision: str,
    channels_last: bool,
    **options: Any,
) -> None:
    """Time the training step on DATA with and without the averages, and the writing of them."""
    torch.set_num_threads(threads)
    dataset, configured = opened(data, options)
    config = configured(steps=10**6)
    state = TrainingState.start(build(config.model), config.training)
    state.vdm.prepare(
        Execution("cpu", precision=precision, compile=compile, channels_last=channels_last)
    )
    stream = training_batches(dataset.splits["train"], config.training.batch_size, 0)
    steps = fit(state, stream, config.training)
    powers = state.power_averages
    times: dict[bool, list[float]] = {True: [], False: []}
    for repeat in range(WARM_UP + repeats):
        for kept in (True, False) if repeat % 2 else (False, True):
            state.power_averages = powers if kept else None
            start = time.perf_counter()
            next(steps)
            if repeat >= WARM_UP:
                times[kept].append(time.perf_counter() - start)
    state.power_averages = powers
    assert powers is not None
    updates = []
    for _ in range(repeats):
        start = time.perf_counter()
        powers.update()
        updates.append(time.perf_counter() - start)
    with tempfile.TemporaryDirectory() as folder:
        run = Run.start(folder, config)
        written = []
        for _ in range(5):
            start = time.perf_counter()
            averages.keep(run, state, last=True)
            written.append(time.perf_counter() - start)
    step, snapshot = statistics.median(times[False]), statistics.median(written)
    ratio = median_ratio(times[True], times[False])
    share = snapshot / (averages.interval(1) * step)
    rows: list[list[object]] = [
        ["parameters", sum(p.numel() for p in state.vdm.parameters())],
        ["step without averages", f"{1000 * step:.1f} ms"],
        ["step with them, ratio", f"{ratio:.4f}"],
        ["an update of them alone", f"{1000 * statistics.median(updates):.2f} ms"],
        ["a snapshot", f"{1000 * snapshot:.1f} ms"],
        [f"its share, one in {averages.interval(1)} steps", f"{share:.2%}"],
    ]
    report(markdown(["", ""], rows), log=log)


if __name__ == "__main__":
    main()
