"""Variational diffusion models with learned noise schedules: likelihoods, samples.

The names below are the public surface. They are imported when first used, so that the command line
answers before torch is loaded.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from variational_diffusion.conditions import Labels as Labels
    from variational_diffusion.config import RunConfig as RunConfig
    from variational_diffusion.config import TrainingConfig as TrainingConfig
    from variational_diffusion.data import open_dataset as open_dataset
    from variational_diffusion.decoders import Discretized as Discretized
    from variational_diffusion.decoders import Gaussian as Gaussian
    from variational_diffusion.errors import InputError as InputError
    from variational_diffusion.likelihood import ContinuousBound as ContinuousBound
    from variational_diffusion.likelihood import DiscreteBound as DiscreteBound
    from variational_diffusion.likelihood import ImportanceWeighted as ImportanceWeighted
    from variational_diffusion.likelihood import Likelihood as Likelihood
    from variational_diffusion.likelihood import ODELikelihood as ODELikelihood
    from variational_diffusion.likelihood import summarize as summarize
    from variational_diffusion.model import VDM as VDM
    from variational_diffusion.model import build as build
    from variational_diffusion.networks import MLP as MLP
    from variational_diffusion.networks import PaperUNet as PaperUNet
    from variational_diffusion.networks import Transformer as Transformer
    from variational_diffusion.networks import UNet as UNet
    from variational_diffusion.objective import Bound as Bound
    from variational_diffusion.run.comparison import compare as compare
    from variational_diffusion.run.compression import Compressed as Compressed
    from variational_diffusion.run.compression import compress as compress
    from variational_diffusion.run.compression import decompress as decompress
    from variational_diffusion.run.directory import Run as Run
    from variational_diffusion.run.evaluation import evaluate as evaluate
    from variational_diffusion.run.learned_schedule import schedule as schedule
    from variational_diffusion.run.scoring import score as score
    from variational_diffusion.schedules import Adaptive as Adaptive
    from variational_diffusion.schedules import Cosine as Cosine
    from variational_diffusion.schedules import FixedLinear as FixedLinear
    from variational_diffusion.schedules import LearnedLinear as LearnedLinear
    from variational_diffusion.schedules import Monotone as Monotone
    from variational_diffusion.training import TrainingState as TrainingState
    from variational_diffusion.training import fit as fit
    from variational_diffusion.training.optimizers import Muon as Muon

_HOMES = {
    "Likelihood": "likelihood",
    "schedule": "run.learned_schedule",
    "score": "run.scoring",
    "evaluate": "run.evaluation",
    "Adaptive": "schedules",
    "Bound": "objective",
    "DiscreteBound": "likelihood",
    "Compressed": "run.compression",
    "Cosine": "schedules",
    "Discretized": "decoders",
    "FixedLinear": "schedules",
    "ODELikelihood": "likelihood",
    "Gaussian": "decoders",
    "ImportanceWeighted": "likelihood",
    "ContinuousBound": "likelihood",
    "InputError": "errors",
    "Labels": "conditions",
    "LearnedLinear": "schedules",
    "MLP": "networks",
    "Monotone": "schedules",
    "Muon": "training.optimizers",
    "PaperUNet": "networks",
    "Run": "run.directory",
    "RunConfig": "config",
    "TrainingConfig": "config",
    "TrainingState": "training",
    "Transformer": "networks",
    "UNet": "networks",
    "VDM": "model",
    "build": "model",
    "compare": "run.comparison",
    "compress": "run.compression",
    "decompress": "run.compression",
    "fit": "training",
    "open_dataset": "data",
    "summarize": "likelihood",
}

__all__ = list(_HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
