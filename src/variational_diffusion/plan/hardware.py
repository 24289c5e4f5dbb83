"""Devices and how they are joined: figures of data sheets, and what of them is reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

H100_ACHIEVED = {"float32": 0.7, "tf32": 0.4, "bfloat16": 0.4}
"""Share of an H100's peak that convolutions reach. Assumed; `vdm plan --measure` fits it."""

ASSUMED_ACHIEVED = {"float32": 0.7, "tf32": 0.4, "bfloat16": 0.4}
"""The same for devices that nobody has measured."""


@dataclass(frozen=True)
class Hardware:
    """One device, and what joins it to others. Bandwidths are per device and in one direction.

    peak: precision → operations a second of dense products of matrices, as the vendor states it.
        "tf32" is what torch's convolutions of float32 use by default; its other products do not.
    achieved: precision → share of the peak that convolutions and products reach, memory not being
        what limits them.
    memory: bytes. bandwidth: of the memory, in bytes a second.
    watts: rated power of the device alone; None: not known.
    operation_seconds: the least time that an operation takes, started one after the other by
        Python.
    node: devices in a node. link: bandwidth between them. network: between nodes. All of a node
        are taken to be joined to all others by a switch.
    link_latency, network_latency: seconds until the first byte of a message arrives.
    """

    peak: Mapping[str, float]
    achieved: Mapping[str, float]
    memory: float
    bandwidth: float
    watts: float | None
    operation_seconds: float = 6e-6
    node: int = 8
    link: float = 450e9
    network: float = 50e9
    link_latency: float = 2e-6
    network_latency: float = 8e-6
    on_cpu: bool = False


HARDWARE = {
    # NVIDIA H100 data sheet, SXM: float32 66.9, TF32 494.7 and bfloat16 989.4 TFLOP/s without
    # sparsity, 80 GB, 3.35 TB/s, 700 W, NVLink 900 GB/s both ways; DGX H100: eight 400 Gb/s
    # adapters a node
    "h100": Hardware(
        peak={"float32": 66.9e12, "tf32": 494.7e12, "bfloat16": 989.4e12},
        achieved=H100_ACHIEVED,
        memory=80e9,
        bandwidth=3.35e12,
        watts=700.0,
    ),
    # NVIDIA H200 data sheet: the H100 with 141 GB and 4.8 TB/s
    "h200": Hardware(
        peak={"float32": 66.9e12, "tf32": 494.7e12, "bfloat16": 989.4e12},
        achieved=H100_ACHIEVED,
        memory=141e9,
        bandwidth=4.8e12,
        watts=700.0,
    ),
    # NVIDIA HGX B200 data sheet, an eighth of it: float32 80 TFLOP/s, TF32 1.1 and bfloat16 2.25
    # PFLOP/s without sparsity, 180 GB, 8 TB/s, 1,000 W, NVLink 1.8 TB/s both ways
    "b200": Hardware(
        peak={"float32": 80e12, "tf32": 1.1e15, "bfloat16": 2.25e15},
        achieved=ASSUMED_ACHIEVED,
        memory=180e9,
        bandwidth=8e12,
        watts=1000.0,
        link=900e9,
    ),
    # NVIDIA A100 data sheet, 80 GB SXM: float32 19.5, TF32 156 and bfloat16 312 TFLOP/s, 2.039
    # TB/s, 400 W, NVLink 600 GB/s both ways; DGX A100: eight 200 Gb/s adapters a node
    "a100": Hardware(
        peak={"float32": 19.5e12, "tf32": 156e12, "bfloat16": 312e12},
        achieved=ASSUMED_ACHIEVED,
        memory=80e9,
        bandwidth=2.039e12,
        watts=400.0,
        link=300e9,
        network=25e9,
    ),
    # NVIDIA L4 data sheet: float32 30.3, TF32 60 and bfloat16 121 TFLOP/s without sparsity, 24 GB,
    # 300 GB/s, 72 W, PCIe 4 x16; taken to be joined by 100 Gb/s Ethernet for the node
    "l4": Hardware(
        peak={"float32": 30.3e12, "tf32": 60e12, "bfloat16": 121e12},
        achieved=ASSUMED_ACHIEVED,
        memory=24e9,
        bandwidth=300e9,
        watts=72.0,
        link=32e9,
        network=1.6e9,
        link_latency=1e-5,
        network_latency=2e-5,
    ),
    # NVIDIA Ada architecture white paper, RTX 4090: float32 and TF32 82.6, bfloat16 165.2 TFLOP/s
    # without sparsity, 24 GB, 1,008 GB/s, 450 W, PCIe 4 x16; 10 Gb/s Ethernet for two devices
    "rtx-4090": Hardware(
        peak={"float32": 82.6e12, "tf32": 82.6e12, "bfloat16": 165.2e12},
        achieved=ASSUMED_ACHIEVED,
        memory=24e9,
        bandwidth=1.008e12,
        watts=450.0,
        node=2,
        link=32e9,
        network=0.6e9,
        link_latency=1e-5,
        network_latency=3e-5,
    ),
}
"""Named hardware. Latencies and the time of an operation are assumed, not measured."""
