"""Where the time of a training step goes, and how much of the machine's rates it reaches.

    python benchmarks/where.py fashion-mnist [--set SECTION.FIELD=VALUE …]

Kinds of operations by torch's profiler, as shares of the time spent in operations; then the rate of
a product of large matrices and of copying memory, measured here, and the rate of the step's own
operations (torch's flop counter) beside them.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import click
import torch
from common import device_of, markdown, opened, report, run_options
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from variational_diffusion.data.loader import training_batches
from variational_diffusion.machine.execution import Execution
from variational_diffusion.model import build
from variational_diffusion.training import TrainingState, fit

KINDS = {
    "convolution, backward": ("convolution_backward",),
    "convolution, forward": ("convolution",),
    "attention and dense layers": ("scaled_dot_product", "_flash_attention", "addmm", "mm", "bmm"),
    "normalisation": ("norm",),
    "SiLU": ("silu", "gelu"),
    "optimizers and average": ("_adam", "_foreach", "lerp"),
    "joining, copying, resizing": ("cat", "copy", "upsample", "clone", "stack"),
}
"""Parts of the names of operations, the first that fits."""


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


@click.command()
@run_options
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True)
def main(
    data: str,
    steps: int,
    compile: str,
    precision: str,
    channels_last: bool,
    threads: int,
    log: bool,
    **options: Any,
) -> None:
    """Profile the training step of the preset for DATA."""
    device_of(threads, "cpu")
    dataset, configured = opened(data, options)
    config = configured(steps=10**9)
    state = TrainingState.start(build(config.model), config.training)
    stream = training_batches(dataset.splits["train"], config.training.batch_size, 0)
    training = fit(state, stream, config.training)
    with FlopCounterMode(display=False) as counter:
        next(training)
    state.vdm.prepare(
        Execution("cpu", precision=precision, compile=compile, channels_last=channels_last)
    )
    for _ in range(5):
        next(training)
    seconds = median_seconds(lambda: next(training), steps)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(steps):
            next(training)
    spent: dict[str, float] = defaultdict(float)
    for event in profiled.key_averages():
        name = event.key.removeprefix("aten::")
        if event.key.startswith("aten::") or compile != "off":
            kind = next((k for k, parts in KINDS.items() if any(p in name for p in parts)), "rest")
            spent[kind] += event.self_cpu_time_total
    total = sum(spent.values())
    rows = [
        [kind, f"{time_ / total:.1%}"] for kind, time_ in sorted(spent.items(), key=lambda x: -x[1])
    ]

    n = 2048
    a, b = torch.randn(n, n), torch.randn(n, n)
    product = 2 * n**3 / median_seconds(lambda: a @ b, 10)
    block = torch.empty(2**27, dtype=torch.uint8)
    target = torch.empty_like(block)
    copying = 2 * block.numel() / median_seconds(lambda: target.copy_(block), 10)
    reached = counter.get_total_flops() / seconds
    table = (
        f"{1000 * seconds:.1f} ms a step of {config.training.batch_size} images, "
        f"{100 * total / steps / 1e6 / seconds:.0f} % of it in operations.\n\n"
        f"{markdown(['kind', 'share of operations'], rows)}\n\n"
        f"Products of matrices: {product / 1e9:.0f} GFLOP/s; copying: {copying / 1e9:.1f} GB/s; "
        f"the step: {reached / 1e9:.0f} GFLOP/s, {reached / product:.0%} of the first."
    )
    report(table, log=log)


if __name__ == "__main__":
    main()
