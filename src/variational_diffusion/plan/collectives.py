"""How long devices take to exchange data: closed forms in bytes, bandwidth and latency.

Every function returns seconds for one message of `size` bytes, the same on all devices, and 0 for
one device. Between nodes each device sends by its own network adapter, so what the devices of a
node send is shared out between them. A large message takes (n − 1)/n · size/bandwidth once round.

Source: Thakur, Rabenseifner, Gropp, "Optimization of Collective Communication Operations in MPICH"
(2005); the two trees are Sanders, Speck, Träff, "Two-tree algorithms for full bandwidth broadcast,
reduction and scan" (2009), which NCCL follows.
"""

from __future__ import annotations

import math

from variational_diffusion.plan.hardware import Hardware

LINE_SHARE = 0.8
"""Share of a stated bandwidth that large messages reach; assumed."""


def ring_all_reduce(size: float, n: int, bandwidth: float, latency: float) -> float:
    """Return the time of 2(n − 1) rounds of size/n bytes.

    >>> ring_all_reduce(1e9, 4, 1e9, 0.0)
    1.5
    """
    return 2 * (n - 1) * (size / n / bandwidth + latency)


def tree_all_reduce(size: float, n: int, bandwidth: float, latency: float) -> float:
    """Return the time up and down two binary trees, each of which carries half of the message.

    >>> tree_all_reduce(1e9, 4, 1e9, 0.5)
    4.0
    """
    return 0.0 if n == 1 else 2 * (size / bandwidth + math.ceil(math.log2(n)) * latency)


def ring_all_gather(size: float, n: int, bandwidth: float, latency: float) -> float:
    """Return the time of n − 1 rounds of size/n bytes; a reduce-scatter takes as long.

    >>> ring_all_gather(1e9, 4, 1e9, 0.0)
    0.75
    """
    return (n - 1) * (size / n / bandwidth + latency)


def all_reduce(size: float, devices: int, hardware: Hardware) -> float:
    """Return the time of adding up over all devices: in the nodes, between them, in the nodes."""
    inside, nodes = _nodes(devices, hardware)
    return 2 * _inside(size, inside, hardware) + _between(size / inside, nodes, hardware)


def all_gather(size: float, devices: int, hardware: Hardware) -> float:
    """Return the time to put together `size` bytes of which every device has 1/devices."""
    inside, nodes = _nodes(devices, hardware)
    latency = min(nodes - 1, math.ceil(math.log2(nodes))) * hardware.network_latency
    network = LINE_SHARE * hardware.network
    between = ring_all_gather(size / inside, nodes, network, 0.0) + latency
    return between + _inside(size, inside, hardware)


def reduce_among_nodes(size: float, devices: int, hardware: Hardware) -> float:
    """Return the time of adding up what the devices of each node hold 1/node of."""
    inside, nodes = _nodes(devices, hardware)
    return _between(size / inside, nodes, hardware)


def _nodes(devices: int, hardware: Hardware) -> tuple[int, int]:
    inside = min(devices, hardware.node)
    return inside, math.ceil(devices / inside)


def _inside(size: float, n: int, hardware: Hardware) -> float:
    return ring_all_gather(size, n, LINE_SHARE * hardware.link, hardware.link_latency)


def _between(size: float, nodes: int, hardware: Hardware) -> float:
    way = size, nodes, LINE_SHARE * hardware.network, hardware.network_latency
    return min(ring_all_reduce(*way), tree_all_reduce(*way))
