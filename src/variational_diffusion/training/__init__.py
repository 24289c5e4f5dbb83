"""Training: steps that minimise the bound, and what they take: optimizers, averages, sharding."""

from variational_diffusion.training.steps import Engine as Engine
from variational_diffusion.training.steps import StepRecord as StepRecord
from variational_diffusion.training.steps import TrainingState as TrainingState
from variational_diffusion.training.steps import fit as fit
from variational_diffusion.training.steps import make_optimizers as make_optimizers
