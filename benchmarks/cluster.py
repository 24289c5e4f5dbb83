"""A training step on many devices: how they are joined, who holds what, and what exchanges take.

What one device computes is counted and reckoned by `variational_diffusion.run.plan`; here are the
exchange between devices, in closed forms of bytes, bandwidth and latency, and the state in parts.

Source: Thakur, Rabenseifner, Gropp, "Optimization of Collective Communication Operations in MPICH"
(2005); the two trees are Sanders, Speck, Träff, "Two-tree algorithms for full bandwidth broadcast,
reduction and scan" (2009), which NCCL follows.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from torch._subclasses.fake_tensor import FakeTensorMode

from variational_diffusion.config import ModelConfig
from variational_diffusion.model import build
from variational_diffusion.run.plan import HARDWARE, Footprint, Hardware
from variational_diffusion.run.plan.estimates import USABLE, seconds
from variational_diffusion.training.sharding import blocks

LINE_SHARE = 0.8
"""Share of a stated bandwidth that large messages reach; assumed."""

_AS_QUICK = 1.05
_BUCKET = 25.0 * 2**20  # of gradients that are exchanged together, as torch's data parallel does


@dataclass(frozen=True)
class Lines:
    """What joins devices. Bandwidths are per device and in one direction.

    node: devices in a node. link: bandwidth between them. network: between nodes. All of a node
    are taken to be joined to all others by a switch.
    link_latency, network_latency: seconds until the first byte of a message arrives; assumed.
    """

    node: int = 8
    link: float = 450e9
    network: float = 50e9
    link_latency: float = 2e-6
    network_latency: float = 8e-6


@dataclass(frozen=True)
class Cluster:
    """Devices of one kind and their lines."""

    hardware: Hardware
    lines: Lines


LINES = {
    # DGX H100: NVLink 900 GB/s both ways, eight 400 Gb/s adapters a node
    "h100": Lines(),
    "h200": Lines(),
    # HGX B200: NVLink 1.8 TB/s both ways
    "b200": Lines(link=900e9),
    # DGX A100: NVLink 600 GB/s both ways, eight 200 Gb/s adapters a node
    "a100": Lines(link=300e9, network=25e9),
    # PCIe 4 x16; taken to be joined by 100 Gb/s Ethernet for the node
    "l4": Lines(link=32e9, network=1.6e9, link_latency=1e-5, network_latency=2e-5),
    # PCIe 4 x16; 10 Gb/s Ethernet for two devices
    "rtx-4090": Lines(node=2, link=32e9, network=0.6e9, link_latency=1e-5, network_latency=3e-5),
}
CLUSTERS = {name: Cluster(hardware, LINES[name]) for name, hardware in HARDWARE.items()}


@dataclass(frozen=True)
class Blocks:
    """A network's repeated blocks, which sharded weights are gathered by.

    largest: bytes of the largest block's weights.
    """

    number: int
    largest: int


def blocks_of(model: ModelConfig) -> Blocks:
    """Count a network's blocks, without memory."""
    with FakeTensorMode():
        network = build(model).network
        units = list(blocks(network)) or [network]
        return Blocks(len(units), max(sum(p.nbytes for p in unit.parameters()) for unit in units))


def ring_all_reduce(size: float, n: int, bandwidth: float, latency: float) -> float:
    """Return the time of 2(n − 1) rounds of size/n bytes."""
    return 2 * (n - 1) * (size / n / bandwidth + latency)


def tree_all_reduce(size: float, n: int, bandwidth: float, latency: float) -> float:
    """Return the time up and down two binary trees, each of which carries half of the message."""
    return 0.0 if n == 1 else 2 * (size / bandwidth + math.ceil(math.log2(n)) * latency)


def ring_all_gather(size: float, n: int, bandwidth: float, latency: float) -> float:
    """Return the time of n − 1 rounds of size/n bytes; a reduce-scatter takes as long."""
    return (n - 1) * (size / n / bandwidth + latency)


def all_reduce(size: float, devices: int, lines: Lines) -> float:
    """Return the time of adding up over all devices: in the nodes, between them, in the nodes."""
    inside, nodes = _nodes(devices, lines)
    return 2 * _inside(size, inside, lines) + _between(size / inside, nodes, lines)


def all_gather(size: float, devices: int, lines: Lines) -> float:
    """Return the time to put together `size` bytes of which every device has 1/devices."""
    inside, nodes = _nodes(devices, lines)
    latency = min(nodes - 1, math.ceil(math.log2(nodes))) * lines.network_latency
    between = ring_all_gather(size / inside, nodes, LINE_SHARE * lines.network, 0.0) + latency
    return between + _inside(size, inside, lines)


def reduce_among_nodes(size: float, devices: int, lines: Lines) -> float:
    """Return the time of adding up what the devices of each node hold 1/node of."""
    inside, nodes = _nodes(devices, lines)
    return _between(size / inside, nodes, lines)


def _nodes(devices: int, lines: Lines) -> tuple[int, int]:
    inside = min(devices, lines.node)
    return inside, math.ceil(devices / inside)


def _inside(size: float, n: int, lines: Lines) -> float:
    return ring_all_gather(size, n, LINE_SHARE * lines.link, lines.link_latency)


def _between(size: float, nodes: int, lines: Lines) -> float:
    way = size, nodes, LINE_SHARE * lines.network, lines.network_latency
    return min(ring_all_reduce(*way), tree_all_reduce(*way))


SHARDINGS = ("replicated", "sharded in the node", "sharded")
"""Who holds what of weights, gradients, optimisers' states and average: every device all of it;
every node all of it, its devices a part; every device one part of the whole."""


def parts_of(sharding: str, devices: int, node: int) -> int:
    """Return the number of devices that share one copy of the state."""
    return {"replicated": 1, "sharded in the node": min(devices, node), "sharded": devices}[
        sharding
    ]


@dataclass(frozen=True)
class Simulated:
    """A training step on `devices` devices.

    batch: examples of a device in one pass. passes: passes of a step, one after the other.
    memory: bytes of a device at the most. compute: seconds of a step without the exchange.
    exchange: seconds that computing waits for it. fits: whether the memory is enough.
    """

    devices: int
    sharding: str
    batch: int
    passes: int
    memory: float
    compute: float
    exchange: float
    fits: bool

    @property
    def seconds(self) -> float:
        return self.compute + self.exchange

    @property
    def images_per_second(self) -> float:
        """Of all devices."""
        return self.batch * self.passes * self.devices / self.seconds


def memory(step: Footprint, units: Blocks, *, devices: int, parts: int, passes: int = 1) -> float:
    """Return the bytes of a device at the most.

    With several passes, and with several devices, all gradients are there while activations are.
    Of sharded weights, those of two blocks are put together for use.
    """
    most: float
    if devices == 1 and passes == 1:
        most = max(step.peak, step.update_peak)
    else:
        most = max(step.gradients / parts + step.peak_without_gradients, step.update_peak / parts)
    gathered = 2.0 * units.largest if parts > 1 else 0.0
    return (step.weights + step.optimizer + step.average) / parts + gathered + most


def simulate(
    step: Footprint,
    units: Blocks,
    cluster: Cluster,
    *,
    devices: int = 1,
    sharding: str = "replicated",
    passes: int = 1,
) -> Simulated:
    """Return time and memory of a training step.

    step: of one device's examples in one pass. passes: gradients of so many are added up before
        an update.

    Gradients are exchanged while backward goes on, in buckets of 25 MiB; the last has to be waited
    for. Sharded weights are gathered block by block in float32, in forward and in backward, while
    the block before is computed. An update by products, as Muon's, gathers its matrices once more.
    """
    hardware, lines = cluster.hardware, cluster.lines
    parts = parts_of(sharding, devices, lines.node)
    used = memory(step, units, devices=devices, parts=parts, passes=passes)
    forward, backward = seconds(step.forward, hardware), seconds(step.backward, hardware)
    # the devices share the traffic of the update; its products are of whole matrices
    shared = dataclasses.replace(hardware, bandwidth=parts * hardware.bandwidth)
    update = seconds(step.update, shared)
    if parts == 1:
        gradients = float(step.gradients)
        whole = all_reduce(gradients, devices, lines)
        waited = max(all_reduce(min(_BUCKET, gradients), devices, lines), whole - backward)
    else:
        gather = units.number * all_gather(step.weights / units.number, parts, lines)
        reduce = gather  # a reduce-scatter of the gradients takes as long
        if parts < devices:
            reduce += reduce_among_nodes(float(step.gradients), devices, lines)
        first = gather / units.number
        waited = passes * (first + max(0.0, gather - forward) + max(0.0, gather - backward))
        waited += max(reduce / units.number, reduce - max(0.0, backward - gather))
        if any(operation.flops for operation in step.update):
            waited += gather
    return Simulated(
        devices=devices,
        sharding=sharding,
        batch=step.batch,
        passes=passes,
        memory=used,
        compute=(passes + step.end_passes) * forward + passes * backward + update,
        exchange=waited,
        fits=used <= USABLE * hardware.memory,
    )


def recommended(
    step: Footprint, units: Blocks, cluster: Cluster, *, devices: int, passes: int = 1
) -> Simulated:
    """Return the simplest sharding that fits and is as quick as any; if none fits, the smallest."""
    chances = [
        simulate(step, units, cluster, devices=devices, sharding=sharding, passes=passes)
        for sharding in SHARDINGS
    ]
    fitting = [chance for chance in chances if chance.fits]
    if not fitting:
        return min(chances, key=lambda chance: chance.memory)
    quickest = min(chance.seconds for chance in fitting)
    return next(chance for chance in fitting if chance.seconds <= _AS_QUICK * quickest)
