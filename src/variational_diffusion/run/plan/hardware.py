"""Devices: figures of data sheets, and what of them is reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ACHIEVED = {"float32": 0.7, "tf32": 0.4, "bfloat16": 0.4}
"""Share of a peak that convolutions reach. Assumed; `vdm plan --measure` shows this machine's."""


@dataclass(frozen=True)
class Hardware:
    """One device.

    peak: precision → operations a second of dense products of matrices, as the vendor states it.
        "tf32" is what torch's convolutions of float32 use by default; its other products do not.
    achieved: precision → share of the peak that convolutions and products reach, memory not being
        what limits them.
    memory: bytes. bandwidth: of the memory, in bytes a second.
    watts: rated power of the device alone; None: not known.
    operation_seconds: the least time that an operation takes, started one after the other by
        Python.
    """

    peak: Mapping[str, float]
    achieved: Mapping[str, float]
    memory: float
    bandwidth: float
    watts: float | None
    operation_seconds: float = 6e-6
    on_cpu: bool = False


HARDWARE = {
    # NVIDIA H100 data sheet, SXM: float32 66.9, TF32 494.7 and bfloat16 989.4 TFLOP/s without
    # sparsity, 80 GB, 3.35 TB/s, 700 W
    "h100": Hardware(
        peak={"float32": 66.9e12, "tf32": 494.7e12, "bfloat16": 989.4e12},
        achieved=ACHIEVED,
        memory=80e9,
        bandwidth=3.35e12,
        watts=700.0,
    ),
    # NVIDIA H200 data sheet: the H100 with 141 GB and 4.8 TB/s
    "h200": Hardware(
        peak={"float32": 66.9e12, "tf32": 494.7e12, "bfloat16": 989.4e12},
        achieved=ACHIEVED,
        memory=141e9,
        bandwidth=4.8e12,
        watts=700.0,
    ),
    # NVIDIA HGX B200 data sheet, an eighth of it: float32 80 TFLOP/s, TF32 1.1 and bfloat16 2.25
    # PFLOP/s without sparsity, 180 GB, 8 TB/s, 1,000 W
    "b200": Hardware(
        peak={"float32": 80e12, "tf32": 1.1e15, "bfloat16": 2.25e15},
        achieved=ACHIEVED,
        memory=180e9,
        bandwidth=8e12,
        watts=1000.0,
    ),
    # NVIDIA A100 data sheet, 80 GB SXM: float32 19.5, TF32 156 and bfloat16 312 TFLOP/s, 2.039
    # TB/s, 400 W
    "a100": Hardware(
        peak={"float32": 19.5e12, "tf32": 156e12, "bfloat16": 312e12},
        achieved=ACHIEVED,
        memory=80e9,
        bandwidth=2.039e12,
        watts=400.0,
    ),
    # NVIDIA L4 data sheet: float32 30.3, TF32 60 and bfloat16 121 TFLOP/s without sparsity, 24 GB,
    # 300 GB/s, 72 W
    "l4": Hardware(
        peak={"float32": 30.3e12, "tf32": 60e12, "bfloat16": 121e12},
        achieved=ACHIEVED,
        memory=24e9,
        bandwidth=300e9,
        watts=72.0,
    ),
    # NVIDIA Ada architecture white paper, RTX 4090: float32 and TF32 82.6, bfloat16 165.2 TFLOP/s
    # without sparsity, 24 GB, 1,008 GB/s, 450 W
    "rtx-4090": Hardware(
        peak={"float32": 82.6e12, "tf32": 82.6e12, "bfloat16": 165.2e12},
        achieved=ACHIEVED,
        memory=24e9,
        bandwidth=1.008e12,
        watts=450.0,
    ),
}
"""Named hardware. The time of an operation is assumed, not measured."""
