"""Memory, time and energy of a step, from what it computes and what a device can do."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from variational_diffusion.plan import collectives
from variational_diffusion.plan.counting import Footprint, Operation
from variational_diffusion.plan.hardware import Hardware

SHARDINGS = ("replicated", "sharded in the node", "sharded")
"""Who holds what of weights, gradients, optimisers' states and average: every device all of it;
every node all of it, its devices a part; every device one part of the whole."""

USABLE = 0.9
"""Share of a GPU's memory that a step may fill: the rest is the driver's and what lies between."""

CPU_HEAP = 1.2
"""What the C library's heap takes for what is in it, in training; experiments/LOG.md."""

CPU_KERNELS = 10 * 2**20
"""Bytes of the machine code that is generated for a network's operations on a CPU."""

_AS_QUICK = 1.05
_BUCKET = 25.0 * 2**20  # of gradients that are exchanged together, as torch's data parallel does
_BANDWIDTH_SHARE = 0.8  # of the stated bandwidth, in operations entry by entry


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. `total` is the most at one time, at which not all parts are whole.

    gathered: weights of two blocks that are put together for use, when sharded.
    activations: what forward keeps for backward.
    """

    weights: float
    gradients: float
    optimizer: float
    average: float
    gathered: float
    activations: float
    total: float


@dataclass(frozen=True)
class Estimate:
    """A training step on `devices` devices.

    batch: examples of a device in one pass. passes: passes of a step, one after the other.
    compute: seconds of a step without the exchange. exchange: seconds that computing waits for it.
    fits: whether the memory of the device is enough.
    """

    devices: int
    sharding: str
    batch: int
    passes: int
    memory: Memory
    compute: float
    exchange: float
    fits: bool

    @property
    def seconds(self) -> float:
        """Seconds of a step."""
        return self.compute + self.exchange

    @property
    def images_per_second(self) -> float:
        """Examples a second of all devices."""
        return self.batch * self.passes * self.devices / self.seconds


def seconds(operations: Iterable[Operation], hardware: Hardware, *, parts: int = 1) -> float:
    """Return the time of operations, one after the other, on one device.

    Each takes as long as its arithmetic, its memory traffic or its start, whichever is longest.
    parts: number of devices that share the tensors, and so the traffic; products are of whole
        matrices.
    Source: Williams, Waterman, Patterson, "Roofline" (2009).
    """
    rates = {name: peak * hardware.achieved[name] for name, peak in hardware.peak.items()}
    bandwidth = _BANDWIDTH_SHARE * hardware.bandwidth * parts
    return math.fsum(
        max(flops / rates[precision], moved / bandwidth, hardware.operation_seconds)
        for flops, moved, precision in operations
    )


def memory(
    step: Footprint,
    *,
    devices: int = 1,
    sharding: str = "replicated",
    passes: int = 1,
    hardware: Hardware | None = None,
) -> Memory:
    """Return the memory of each device.

    passes: forward and backward passes before an update; with several, and with several devices,
        all gradients are there while the activations are.
    hardware: adds what a CPU's heap takes beyond its contents; None: does not.
    """
    parts = parts_of(sharding, devices, hardware.node if hardware else devices)
    held = step.weights + step.optimizer + step.average
    most: float
    if devices == 1 and passes == 1:
        most = max(step.peak, step.update_peak)
    else:
        most = max(step.gradients / parts + step.peak_without_gradients, step.update_peak / parts)
    gathered = 2.0 * step.unit if parts > 1 else 0.0
    total = held / parts + gathered + most
    if hardware is not None and hardware.on_cpu:
        total = CPU_HEAP * total + CPU_KERNELS
    return Memory(
        weights=step.weights / parts,
        gradients=step.gradients / parts,
        optimizer=step.optimizer / parts,
        average=step.average / parts,
        gathered=gathered,
        activations=float(step.kept),
        total=float(total),
    )


def parts_of(sharding: str, devices: int, node: int) -> int:
    """Return the number of devices that share one copy of the state."""
    return {"replicated": 1, "sharded in the node": min(devices, node), "sharded": devices}[
        sharding
    ]


def estimate(
    step: Footprint,
    hardware: Hardware,
    *,
    devices: int = 1,
    sharding: str = "replicated",
    passes: int = 1,
) -> Estimate:
    """Return time and memory of a training step.

    step: of one device's examples in one pass. passes: gradients of so many are added up before
        an update.

    Gradients are exchanged while backward goes on, in buckets of 25 MiB; the last has to be waited
    for. Sharded weights are gathered block by block in float32, in forward and in backward, while
    the block before is computed. An update by products, as Muon's, gathers its matrices once more.
    """
    used = memory(step, devices=devices, sharding=sharding, passes=passes, hardware=hardware)
    parts = parts_of(sharding, devices, hardware.node)
    forward = seconds(step.forward, hardware)
    backward = seconds(step.backward, hardware)
    update = seconds(step.update, hardware, parts=parts)
    compute = (passes + step.end_passes) * forward + passes * backward + update
    waited = 0.0
    if parts == 1:
        gradients = float(step.gradients)
        whole = collectives.all_reduce(gradients, devices, hardware)
        last = collectives.all_reduce(min(_BUCKET, gradients), devices, hardware)
        waited = max(last, whole - backward)
    else:
        gather = _by_blocks(step, parts, hardware)
        reduce = gather  # a reduce-scatter of the gradients takes as long
        if parts < devices:
            reduce += collectives.reduce_among_nodes(float(step.gradients), devices, hardware)
        first = gather / step.units
        waited = passes * (first + max(0.0, gather - forward) + max(0.0, gather - backward))
        waited += max(reduce / step.units, reduce - max(0.0, backward - gather))
        if any(operation.flops for operation in step.update):
            waited += gather
    limit = hardware.memory * (1.0 if hardware.on_cpu else USABLE)
    return Estimate(
        devices=devices,
        sharding=sharding,
        batch=step.batch,
        passes=passes,
        memory=used,
        compute=compute,
        exchange=waited,
        fits=used.total <= limit,
    )


def recommended(step: Footprint, hardware: Hardware, *, devices: int, passes: int = 1) -> Estimate:
    """Return the simplest sharding that fits and is as quick as any; if none fits, the smallest."""
    chances = [
        estimate(step, hardware, devices=devices, sharding=sharding, passes=passes)
        for sharding in SHARDINGS
    ]
    fitting = [chance for chance in chances if chance.fits]
    if not fitting:
        return min(chances, key=lambda chance: chance.memory.total)
    quickest = min(chance.seconds for chance in fitting)
    return next(chance for chance in fitting if chance.seconds <= _AS_QUICK * quickest)


def _by_blocks(step: Footprint, parts: int, hardware: Hardware) -> float:
    """Return the time of gathering all blocks once."""
    return step.units * collectives.all_gather(step.weights / step.units, parts, hardware)
