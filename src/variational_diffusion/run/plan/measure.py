"""The same figures measured: the rates of this machine, and a few real training steps."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path

import torch
from torch.nn.functional import conv2d
from torch.utils.flop_counter import FlopCounterMode

from variational_diffusion.config import Component, ModelConfig, TrainingConfig
from variational_diffusion.machine.memory import keep_freed_memory
from variational_diffusion.model import build
from variational_diffusion.run.plan.counting import FLOP_FORMULAS
from variational_diffusion.run.plan.hardware import Hardware
from variational_diffusion.training import TrainingState, fit
from variational_diffusion.training.sharding import recompute_activations

_SECONDS = 0.5  # of every rate
_STEPS = 8  # of training
_CALLS = 10  # between two looks at the clock
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Measured:
    """A few steps of training: operations of one, the shortest time, bytes at the most."""

    flops: int
    seconds: float
    memory: int


def this_machine(device: torch.device) -> Hardware:
    """Return what this machine reaches: a product of matrices, a convolution, a copy, a small add.

    `achieved` is the rate of a convolution of 64 channels, forward and backward, over that of the
    product. Power is not known.
    """
    on_cpu = device.type == "cpu"
    n = 1024 if on_cpu else 8192
    channels, images = 64, 16 if on_cpu else 256
    peak, achieved = {}, {}
    for name, dtype in _DTYPES.items():
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        peak[name] = 2 * n**3 / _seconds(partial(torch.matmul, a, b), device)
        x = torch.randn(images, channels, 32, 32, device=device, dtype=dtype, requires_grad=True)
        w = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype, requires_grad=True)
        flops = 3 * 2 * 9 * w[:, :, 0, 0].numel() * x[:, 0].numel()
        achieved[name] = flops / _seconds(partial(_convolve, x, w), device) / peak[name]
    # the convolution of float32 may be done in TF32: its rate is a figure of its own
    peak["tf32"], achieved["tf32"] = peak["float32"], achieved["float32"]
    achieved["float32"] = 1.0
    large = torch.randn((16 if on_cpu else 256) * 2**20, device=device)
    target, small = torch.empty_like(large), torch.randn(16, device=device)
    return Hardware(
        peak=peak,
        achieved=achieved,
        memory=float(_physical_memory() if on_cpu else torch.cuda.mem_get_info(device)[1]),
        bandwidth=2 * large.nbytes / _seconds(lambda: target.copy_(large), device),
        watts=None,
        operation_seconds=_seconds(lambda: small + small, device),
        on_cpu=on_cpu,
    )


def measured(
    model: ModelConfig,
    training: TrainingConfig,
    device: torch.device,
    *,
    precision: str = "float32",
    checkpointing: bool = False,
    threads: int = 1,
) -> Measured:
    """Train for a few steps in a process of its own.

    On a CPU, memory is the growth of the process over what it was after a step of one example of a
    narrow network, which loads torch's libraries; on a GPU, it is what torch had at the most.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        arguments = model, training, str(device), precision, checkpointing, threads
        return pool.submit(_measured, *arguments).result()


def _measured(
    model: ModelConfig,
    training: TrainingConfig,
    device_name: str,
    precision: str,
    checkpointing: bool,
    threads: int,
) -> Measured:
    torch.set_num_threads(threads)
    keep_freed_memory()
    device = torch.device(device_name)
    narrow = {
        name: [8] * len(value) if name == "widths" else 24 if name == "width" else value
        for name, value in model.network.options.items()
    }
    loaded = Component(name=model.network.name, options=narrow)
    narrow_model = model.model_copy(update={"network": loaded})
    warm = _steps(narrow_model, training, 1, device, precision, checkpointing)
    for _ in range(3):
        next(warm)
    del warm
    before = _memory_line("VmRSS")
    batch = training.batch_size
    steps = _steps(model, training, batch, device, precision, checkpointing)
    times = [next(steps) for _ in range(_STEPS + 1)][1:]
    if device.type == "cpu":
        used = _memory_line("VmHWM") - before
    else:
        used = torch.cuda.max_memory_allocated()
    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
        next(steps)
    return Measured(counter.get_total_flops(), min(times), used)


def _steps(
    model: ModelConfig,
    training: TrainingConfig,
    batch: int,
    device: torch.device,
    precision: str,
    checkpointing: bool,
) -> Iterator[float]:
    """Train on one batch again and again; yield the seconds of every step."""
    vdm = build(model).to(device)
    vdm = vdm.in_precision(torch.bfloat16 if precision == "bfloat16" else None)
    if checkpointing:
        recompute_activations(vdm.network)
    x = vdm.decoder.decode(torch.zeros(batch, *model.shape, device=device))
    endless = training.model_copy(update={"steps": 10**9, "minutes": None})
    steps = fit(TrainingState.start(vdm, endless), repeat(x), endless)
    while True:
        begin = time.perf_counter()
        next(steps)
        _finish(device)
        yield time.perf_counter() - begin


def _convolve(x: torch.Tensor, w: torch.Tensor) -> None:
    torch.autograd.grad(conv2d(x, w, padding=1), (x, w), grad_outputs=x)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a call: the shortest, as other programs only make it longer."""
    for _ in range(3):
        call()
    _finish(device)
    shortest = float("inf")
    end = time.perf_counter() + _SECONDS
    while (begin := time.perf_counter()) < end:
        for _ in range(_CALLS):
            call()
        _finish(device)
        shortest = min(shortest, (time.perf_counter() - begin) / _CALLS)
    return shortest


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _memory_line(name: str) -> int:
    """Return VmRSS, the size of this process, or VmHWM, its largest; getrusage has the parent's."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return 1024 * int(value.split()[0])
    raise LookupError(name)
