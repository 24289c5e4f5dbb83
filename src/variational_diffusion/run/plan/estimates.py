"""Memory and time of a step, from what it computes and what a device can do."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from variational_diffusion.run.plan.counting import Footprint, Operation
from variational_diffusion.run.plan.hardware import Hardware

USABLE = 0.9
"""Share of a GPU's memory that a step may fill: the rest is the driver's and what lies between."""

CPU_HEAP = 1.2
"""What the C library's heap takes for what is in it, in training; experiments/LOG.md."""

CPU_KERNELS = 10 * 2**20
"""Bytes of the machine code that is generated for a network's operations on a CPU."""

_BANDWIDTH_SHARE = 0.8  # of the stated bandwidth, in operations entry by entry


@dataclass(frozen=True)
class Memory:
    """Bytes. `total` is the most at one time, at which not all parts are whole.

    activations: what forward keeps for backward.
    """

    weights: float
    gradients: float
    optimizer: float
    average: float
    activations: float
    total: float


@dataclass(frozen=True)
class Estimate:
    """A training step on one device.

    batch: examples in one pass. passes: passes of a step, one after the other.
    seconds: of a step. fits: whether the memory of the device is enough.
    """

    batch: int
    passes: int
    memory: Memory
    seconds: float
    fits: bool

    @property
    def images_per_second(self) -> float:
        return self.batch * self.passes / self.seconds


def seconds(operations: Iterable[Operation], hardware: Hardware) -> float:
    """Return the time of operations, one after the other, on one device.

    Each takes as long as its arithmetic, its memory traffic or its start, whichever is longest.
    Source: Williams, Waterman, Patterson, "Roofline" (2009).
    """
    rates = {name: peak * hardware.achieved[name] for name, peak in hardware.peak.items()}
    bandwidth = _BANDWIDTH_SHARE * hardware.bandwidth
    return math.fsum(
        max(flops / rates[precision], moved / bandwidth, hardware.operation_seconds)
        for flops, moved, precision in operations
    )


def memory(step: Footprint, *, passes: int = 1, hardware: Hardware | None = None) -> Memory:
    """Return the memory of a step.

    passes: forward and backward passes before an update; with several, all gradients are there
        while the activations are.
    hardware: adds what a CPU's heap takes beyond its contents; None: does not.
    """
    peak = step.peak if passes == 1 else step.gradients + step.peak_without_gradients
    total: float = step.weights + step.optimizer + step.average + max(peak, step.update_peak)
    if hardware is not None and hardware.on_cpu:
        total = CPU_HEAP * total + CPU_KERNELS
    return Memory(
        weights=float(step.weights),
        gradients=float(step.gradients),
        optimizer=float(step.optimizer),
        average=float(step.average),
        activations=float(step.kept),
        total=float(total),
    )


def estimate(step: Footprint, hardware: Hardware, *, passes: int = 1) -> Estimate:
    """Return time and memory of a training step of `passes` passes as `step` has one."""
    used = memory(step, passes=passes, hardware=hardware)
    forward, backward = seconds(step.forward, hardware), seconds(step.backward, hardware)
    update = seconds(step.update, hardware)
    return Estimate(
        batch=step.batch,
        passes=passes,
        memory=used,
        seconds=(passes + step.end_passes) * forward + passes * backward + update,
        fits=used.total <= hardware.memory * (1.0 if hardware.on_cpu else USABLE),
    )
