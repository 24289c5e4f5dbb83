"""Images a second and share of the peak, of training and sampling, for the presets on a GPU.

    python benchmarks/gpu.py [--preset gpu] … [--seconds 5]

In float32 and bfloat16, eager, compiled and with CUDA graphs. The peak is what this device reaches
in a product of two large matrices of that type, measured in the same run, and the operations of a
step are counted by torch's flop counter. On a machine without CUDA it says so and ends; with
`--device cpu` it runs there, as its own test.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import repeat

import click
import torch
from common import log_option, markdown, report, threads_option
from torch.utils.flop_counter import FlopCounterMode

from variational_diffusion.config import TrainingConfig, validated
from variational_diffusion.decoders import Discretized
from variational_diffusion.machine.cuda_graphs import Recorded
from variational_diffusion.machine.execution import COMPILE_MODES, Execution
from variational_diffusion.model import VDM
from variational_diffusion.networks import NETWORKS
from variational_diffusion.presets import PRESETS
from variational_diffusion.schedules import SCHEDULES
from variational_diffusion.training import Engine, TrainingState, fit

SHAPES = {"tiny": (1, 8, 8), "small": (1, 28, 28), "medium": (3, 64, 64), "vector": (64,)}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def rate(call: Callable[[], object], seconds: float, device: torch.device) -> float:
    """Return calls a second."""
    for _ in range(3):
        call()
    synchronize(device)
    begin, calls = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        call()
        calls += 1
        if calls % 8 == 0:
            synchronize(device)
    synchronize(device)
    return calls / (time.perf_counter() - begin)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak(dtype: torch.dtype, device: torch.device, seconds: float) -> float:
    """Return the operations a second of a product of large matrices."""
    torch.backends.cuda.matmul.allow_tf32 = True  # as cuDNN's convolutions do
    n = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 * rate(lambda: a @ b, seconds, device)


def operations(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def measured(
    preset: str, batch: int | None, precision: str, mode: str, device: torch.device, s: float
) -> tuple[int, float, float, float, float]:
    """Return the batch, then images and operations a second of training and of sampling."""
    torch.manual_seed(0)
    shape = SHAPES.get(preset, (3, 32, 32))
    chosen = PRESETS[preset](shape, 256)
    batch = batch or chosen.training["batch_size"]
    settings = {**chosen.training, "steps": 10**9, "batch_size": batch}
    config = validated(TrainingConfig, settings)
    vdm = VDM(
        NETWORKS[chosen.network.name](shape, **chosen.network.options),
        SCHEDULES[chosen.schedule.name](**chosen.schedule.options),
        Discretized(256),
        shape,
        chosen.prediction,
    ).to(device)
    x = torch.randint(0, 256, (batch, *shape), device=device)
    z = torch.randn(batch, *shape, device=device)
    gamma_t, gamma_s = torch.tensor([0.0, -0.02], device=device)
    engine = Engine(graphs=mode == "cuda-graphs")
    training = fit(TrainingState.start(vdm, config), repeat(x), config, engine=engine)

    @torch.no_grad()
    def reverse(z: torch.Tensor) -> list[torch.Tensor]:
        return [vdm.reverse(z, gamma_t, gamma_s).sample()]

    step = Recorded(reverse) if engine.graphs else reverse

    def train() -> None:
        next(training)

    def sample() -> None:
        vdm.eval()
        step(z)

    flops = operations(train), operations(lambda: reverse(z))
    vdm.prepare(Execution(str(device), precision=precision, compile=mode))
    speeds = rate(train, s, device), rate(sample, s, device)
    return (
        batch,
        batch * speeds[0],
        flops[0] * speeds[0],
        batch * speeds[1],
        flops[1] * speeds[1],
    )


@click.command()
@click.option("--preset", "presets", multiple=True, type=click.Choice(list(PRESETS)))
@click.option("--batch-size", type=click.IntRange(1), help="Default: the preset's.")
@click.option("--precision", "precisions", multiple=True, type=click.Choice(list(PRECISIONS)))
@click.option("--compile", "modes", multiple=True, type=click.Choice(list(COMPILE_MODES)))
@click.option("--seconds", type=float, default=5.0, show_default=True, help="For each figure.")
@click.option("--device", "device_name", default="cuda", show_default=True)
@threads_option
@log_option
def main(
    presets: tuple[str, ...],
    batch_size: int | None,
    precisions: tuple[str, ...],
    modes: tuple[str, ...],
    seconds: float,
    device_name: str,
    threads: int,
    log: bool,
) -> None:
    """Measure every PRESET in every precision and mode of compilation."""
    device = torch.device(device_name)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device on this machine: nothing measured")
        return
    torch.set_num_threads(threads)
    rows: list[list[object]] = []
    for name in precisions or PRECISIONS:
        dtype = PRECISIONS[name]
        best = peak(dtype, device, seconds)
        print(f"{name}: {best / 1e12:.2f} TFLOP/s in a product of matrices", flush=True)
        for preset in presets or PRESETS:
            for mode in modes or COMPILE_MODES:
                batch, images, work, sampled, sampling = measured(
                    preset, batch_size, name, mode, device, seconds
                )
                rows.append(
                    [
                        preset,
                        batch,
                        name,
                        mode,
                        f"{images:.0f} ({work / best:.1%})",
                        f"{sampled:.0f} ({sampling / best:.1%})",
                    ]
                )
                print(rows[-1], flush=True)
    header = ["preset", "batch", "precision", "compile", "training images/s", "sampling images/s"]
    note = "In brackets the share of the rate of a product of large matrices."
    table = f"{note}\n\n{markdown(header, rows)}"
    report(table, log=log)


if __name__ == "__main__":
    main()
