"""Time and memory of a training step against image size, channels, levels, batch and width.

    python benchmarks/scaling.py [--axis size] [--axis levels] … [--repeats 10]

One thing is changed at a time around 1×32×32 images of 256 levels, batches of 16 and the widths of
the preset `small`; the axis `width` is that at full resolution. Each point is measured in a process
of its own; memory is the growth of that process over its size before the first step. The exponent p
is the slope of a straight line through the points in logarithms: time ∝ size^p.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat

import click
import numpy as np
import torch
from common import log_option, markdown, peak, report, resident, threads_option

from variational_diffusion.config import TrainingConfig
from variational_diffusion.decoders import Discretized
from variational_diffusion.machine.memory import keep_freed_memory
from variational_diffusion.model import VDM
from variational_diffusion.networks import UNet
from variational_diffusion.presets import noise_range
from variational_diffusion.schedules import Adaptive
from variational_diffusion.training import TrainingState, fit

CENTRE = {"size": 32, "channels": 1, "levels": 256, "batch": 16, "width": 32}
AXES = {
    "size": (16, 32, 64),
    "channels": (1, 2, 4),
    "levels": (8, 256, 65_536),
    "batch": (4, 16, 64),
    "width": (16, 32, 64),
}


def measured(point: dict[str, int], repeats: int, threads: int) -> tuple[float, float]:
    """Return the median seconds of a step, and the bytes by which the process grew."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    keep_freed_memory()
    shape = (point["channels"], point["size"], point["size"])
    width = point["width"]
    network = UNet(
        shape, levels=point["levels"], widths=(width, width * 3 // 2, 2 * width), blocks=1
    )
    schedule = Adaptive(*noise_range(point["levels"]))
    vdm = VDM(network, schedule, Discretized(point["levels"]), shape)
    x = torch.randint(0, point["levels"], (point["batch"], *shape))
    steps = TrainingConfig(steps=10**9)
    training = fit(TrainingState.start(vdm, steps), repeat(x), steps)
    before = resident()
    times = []
    for _ in range(repeats + 2):
        begin = time.perf_counter()
        next(training)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[2:]), peak() - before


@click.command()
@click.option("--axis", "axes", multiple=True, type=click.Choice(list(AXES)))
@click.option("--repeats", type=click.IntRange(1), default=10, show_default=True)
@threads_option
@log_option
def main(axes: tuple[str, ...], repeats: int, threads: int, log: bool) -> None:
    """Measure along every AXIS."""
    torch.set_num_threads(threads)
    rows: list[list[object]] = []
    with ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        for axis in axes or AXES:
            found = [
                pool.submit(measured, {**CENTRE, axis: value}, repeats, threads).result()
                for value in AXES[axis]
            ]
            times, sizes = np.array(found).T
            values = np.log(AXES[axis])
            rows.append(
                [
                    axis,
                    ", ".join(map(str, AXES[axis])),
                    ", ".join(f"{1000 * t:.0f}" for t in times),
                    f"{np.polyfit(values, np.log(times), 1)[0]:.2f}",
                    ", ".join(f"{s / 2**20:.0f}" for s in sizes),
                    f"{np.polyfit(values, np.log(sizes), 1)[0]:.2f}",
                ]
            )
            print(rows[-1], flush=True)
    header = ["axis", "values", "ms a step", "exponent", "peak MiB", "exponent"]
    report(markdown(header, rows), log=log)


if __name__ == "__main__":
    main()
