"""What a run will take before it is begun: operations, memory, time and energy.

`footprint` counts a training step without running it, `Hardware` holds a device's figures, and
`estimate` puts the two together. `plan` is all of that for a configuration.
"""

from variational_diffusion.run.plan.counting import Footprint, footprint
from variational_diffusion.run.plan.estimates import Estimate, Memory, estimate, memory
from variational_diffusion.run.plan.hardware import HARDWARE, Hardware
from variational_diffusion.run.plan.measure import Measured, measured, this_machine
from variational_diffusion.run.plan.planning import Plan, plan

__all__ = [
    "HARDWARE",
    "Estimate",
    "Footprint",
    "Hardware",
    "Measured",
    "Memory",
    "Plan",
    "estimate",
    "footprint",
    "measured",
    "memory",
    "plan",
    "this_machine",
]
