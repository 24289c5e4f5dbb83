"""The whole of a plan: what `vdm plan` says."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from variational_diffusion.config import ModelConfig, TrainingConfig
from variational_diffusion.errors import InputError, one_of
from variational_diffusion.machine.execution import PRECISIONS, Execution, multiplies_bfloat16
from variational_diffusion.run.plan.counting import Footprint, footprint
from variational_diffusion.run.plan.estimates import Estimate, estimate, memory
from variational_diffusion.run.plan.hardware import HARDWARE, Hardware
from variational_diffusion.run.plan.measure import measured, this_machine

Count = Callable[..., Footprint]


@dataclass(frozen=True)
class Plan:
    """What training takes. Bytes, seconds, operations of a multiplication and an addition each.

    parameters: of the model. flops: operations for one example: "forward" and "training".
    batch_size: examples in a step; batch_of_a_pass: in one pass of it. precision: of the network's
    products. memory: by part, for batches about that size. hardware: name → memory, time, energy.
    measured: this machine's rates, and a step of the whole batch as estimated and as measured;
    None where it was not asked for.
    """

    parameters: int
    flops: dict[str, float | int]
    batch_size: int
    batch_of_a_pass: int
    precision: str
    memory: list[dict[str, Any]]
    hardware: dict[str, dict[str, Any]]
    measured: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the plan for a JSON object."""
        values = dataclasses.asdict(self)
        if self.measured is None:
            del values["measured"]
        return values


def plan(
    model: ModelConfig,
    training: TrainingConfig,
    *,
    hardware: Sequence[str] = tuple(HARDWARE),
    accumulate: int = 1,
    precision: str = "auto",
    checkpointing: bool = False,
    measure: bool = False,
    device: str = "auto",
    threads: int | None = None,
) -> Plan:
    """Say what training takes: operations, memory, time and energy.

    Estimates are of operations that are counted and of figures of data sheets; energy is of the
    devices alone, at their rated power.

    Args:
        model: The model, as of `presets.configure` or `presets.parts`.
        training: The training; its budget has to be in steps.
        hardware: Names of `HARDWARE` to plan for.
        accumulate: Passes of a step, one after the other.
        precision: Of the network's products; "auto": bfloat16, or for this machine what it has.
        checkpointing: Whether activations are computed again in backward.
        measure: Train a few steps on this machine, for comparison.
        device: The device of this machine, as of `Execution`.
        threads: CPU threads of this machine.

    Returns:
        The plan.

    Raises:
        InputError: For fewer examples in a step than passes, and for unknown names.

    Examples:
        >>> from variational_diffusion.config import Component
        >>> from variational_diffusion.run.plan import plan
        >>> from variational_diffusion.presets import parts
        >>> levels = Component(name="discretized", options={"levels": 256})
        >>> model, training = parts((1, 8, 8), 256, levels, settings={"training.steps": 1000})
        >>> h100 = plan(model, training, hardware=["h100"]).hardware["h100"]
        >>> h100["fits"]
        True
    """
    _check(hardware, precision)
    if accumulate > training.batch_size:
        raise InputError(
            f"batch_size = {training.batch_size}: {accumulate} passes take at least {accumulate}; "
            f"give --batch-size {accumulate}"
        )
    if training.steps is None:
        raise InputError("steps = none: a plan is of a number of steps; give --steps 100000")
    batch = math.ceil(training.batch_size / accumulate)

    def count(precision: str, batch: int, *, on_cpu: bool = False) -> Footprint:
        return footprint(
            model, training, batch, precision=precision, checkpointing=checkpointing, on_cpu=on_cpu
        )

    chosen = "bfloat16" if precision == "auto" else precision
    step = count(chosen, batch)
    found = {name: estimate(step, HARDWARE[name], passes=accumulate) for name in hardware}
    compared = None
    if measure:
        with Execution(device, threads).begun() as target:
            compared = _compared(model, training, target, precision, checkpointing, count)
    return Plan(
        parameters=step.parameters,
        flops={"forward": step.forward_flops, "training": step.training_flops},
        batch_size=training.batch_size,
        batch_of_a_pass=batch,
        precision=chosen,
        memory=_by_batch(step, count(chosen, 2 * batch), accumulate),
        hardware={
            name: _summary(each, HARDWARE[name], training.steps) for name, each in found.items()
        },
        measured=compared,
    )


def _check(hardware: Sequence[str], precision: str) -> None:
    for name, value, known in (
        *(("hardware", each, HARDWARE) for each in hardware),
        ("precision", precision, PRECISIONS),
    ):
        one_of(name, value, known)


def _by_batch(step: Footprint, twice: Footprint, passes: int) -> list[dict[str, Any]]:
    """Return the memory for a half, once, twice and four times the planned batch.

    Activations grow in proportion to the batch, so two counts give all.
    """
    one, two = (dataclasses.asdict(memory(each, passes=passes)) for each in (step, twice))
    sizes = sorted({max(1, step.batch // 2), step.batch, 2 * step.batch, 4 * step.batch})
    return [
        {
            "batch": size,
            **{name: one[name] + (size / step.batch - 1) * (two[name] - one[name]) for name in one},
        }
        for size in sizes
    ]


def _summary(found: Estimate, hardware: Hardware, steps: int) -> dict[str, Any]:
    hours = steps * found.seconds / 3600
    watts = hardware.watts
    return {
        "memory": found.memory.total,
        "fits": found.fits,
        "steps_per_second": 1 / found.seconds,
        "images_per_second": found.images_per_second,
        "hours": hours,
        "kilowatt_hours": None if watts is None else hours * watts / 1000,
    }


def _compared(
    model: ModelConfig,
    training: TrainingConfig,
    device: torch.device,
    precision: str,
    checkpointing: bool,
    count: Count,
) -> dict[str, Any]:
    """Return estimate and measurement of a step of the whole batch on this machine."""
    here = this_machine(device)
    if precision == "auto":
        precision = "bfloat16" if multiplies_bfloat16(device) else "float32"
    step = count(precision, training.batch_size, on_cpu=here.on_cpu)
    expected = estimate(step, here)
    found = measured(
        model,
        training,
        device,
        precision=precision,
        threads=torch.get_num_threads(),
        checkpointing=checkpointing,
    )
    ends = step.end_passes * step.forward_flops  # which the measured step does not have
    return {
        "precision": precision,
        "peak": here.peak[precision],
        "achieved": here.achieved["tf32" if precision == "float32" else precision],
        "bandwidth": here.bandwidth,
        "estimate": {
            "flops": step.batch * (step.training_flops - ends),
            "memory": expected.memory.total,
            "seconds": expected.seconds,
        },
        "measurement": dataclasses.asdict(found),
    }
