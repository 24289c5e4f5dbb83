"""Variational diffusion models with learned noise schedules: likelihoods, samples.

The names below are the public surface, and every module of the package is an attribute. They are
imported when first used, so that the command line answers before torch is loaded.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from variational_diffusion.anomaly import Scored as Scored
    from variational_diffusion.conditions import Labels as Labels
    from variational_diffusion.config import RunConfig as RunConfig
    from variational_diffusion.config import TrainingConfig as TrainingConfig
    from variational_diffusion.data import Dataset as Dataset
    from variational_diffusion.data import Split as Split
    from variational_diffusion.data import open_dataset as open_dataset
    from variational_diffusion.decoders import Discretized as Discretized
    from variational_diffusion.decoders import Gaussian as Gaussian
    from variational_diffusion.errors import InputError as InputError
    from variational_diffusion.images.show import show as show
    from variational_diffusion.likelihood import Comparison as Comparison
    from variational_diffusion.likelihood import ContinuousBound as ContinuousBound
    from variational_diffusion.likelihood import DiscreteBound as DiscreteBound
    from variational_diffusion.likelihood import ImportanceWeighted as ImportanceWeighted
    from variational_diffusion.likelihood import Likelihood as Likelihood
    from variational_diffusion.likelihood import ODELikelihood as ODELikelihood
    from variational_diffusion.likelihood import Summary as Summary
    from variational_diffusion.likelihood import summarize as summarize
    from variational_diffusion.model import VDM as VDM
    from variational_diffusion.model import build as build
    from variational_diffusion.networks import MLP as MLP
    from variational_diffusion.networks import PaperUNet as PaperUNet
    from variational_diffusion.networks import Transformer as Transformer
    from variational_diffusion.networks import UNet as UNet
    from variational_diffusion.objective import Bound as Bound
    from variational_diffusion.run.classes import Classified as Classified
    from variational_diffusion.run.classes import classify as classify
    from variational_diffusion.run.comparison import compare as compare
    from variational_diffusion.run.compression import Compressed as Compressed
    from variational_diffusion.run.compression import compress as compress
    from variational_diffusion.run.compression import decompress as decompress
    from variational_diffusion.run.directory import Run as Run
    from variational_diffusion.run.editing import Edited as Edited
    from variational_diffusion.run.editing import inpaint as inpaint
    from variational_diffusion.run.editing import interpolate as interpolate
    from variational_diffusion.run.editing import restore as restore
    from variational_diffusion.run.editing import vary as vary
    from variational_diffusion.run.evaluation import evaluate as evaluate
    from variational_diffusion.run.learned_schedule import LearnedSchedule as LearnedSchedule
    from variational_diffusion.run.learned_schedule import schedule as schedule
    from variational_diffusion.run.scoring import score as score
    from variational_diffusion.run.training import overfit_check as overfit_check
    from variational_diffusion.run.training import train as train
    from variational_diffusion.run.training import training_events as training_events
    from variational_diffusion.schedules import Adaptive as Adaptive
    from variational_diffusion.schedules import Cosine as Cosine
    from variational_diffusion.schedules import FixedLinear as FixedLinear
    from variational_diffusion.schedules import LearnedLinear as LearnedLinear
    from variational_diffusion.schedules import Monotone as Monotone
    from variational_diffusion.training import TrainingState as TrainingState
    from variational_diffusion.training import fit as fit
    from variational_diffusion.training.optimizers import Muon as Muon
    from variational_diffusion.training.overfit import OverfitCheck as OverfitCheck

_HOMES = {
    "Adaptive": "schedules",
    "Bound": "objective",
    "Classified": "run.classes",
    "Comparison": "likelihood",
    "Compressed": "run.compression",
    "ContinuousBound": "likelihood",
    "Cosine": "schedules",
    "Dataset": "data",
    "DiscreteBound": "likelihood",
    "Discretized": "decoders",
    "Edited": "run.editing",
    "FixedLinear": "schedules",
    "Gaussian": "decoders",
    "ImportanceWeighted": "likelihood",
    "InputError": "errors",
    "Labels": "conditions",
    "LearnedLinear": "schedules",
    "LearnedSchedule": "run.learned_schedule",
    "Likelihood": "likelihood",
    "MLP": "networks",
    "Monotone": "schedules",
    "Muon": "training.optimizers",
    "ODELikelihood": "likelihood",
    "OverfitCheck": "training.overfit",
    "PaperUNet": "networks",
    "Run": "run.directory",
    "RunConfig": "config",
    "Scored": "anomaly",
    "Split": "data",
    "Summary": "likelihood",
    "TrainingConfig": "config",
    "TrainingState": "training",
    "Transformer": "networks",
    "UNet": "networks",
    "VDM": "model",
    "build": "model",
    "classify": "run.classes",
    "compare": "run.comparison",
    "compress": "run.compression",
    "decompress": "run.compression",
    "evaluate": "run.evaluation",
    "fit": "training",
    "inpaint": "run.editing",
    "interpolate": "run.editing",
    "open_dataset": "data",
    "overfit_check": "run.training",
    "restore": "run.editing",
    "schedule": "run.learned_schedule",
    "score": "run.scoring",
    "show": "images.show",
    "summarize": "likelihood",
    "train": "run.training",
    "training_events": "run.training",
    "vary": "run.editing",
}

__all__ = list(_HOMES)


@cache
def _modules() -> frozenset[str]:
    return frozenset(module.name for module in iter_modules(__path__) if module.name[0] != "_")


def __dir__() -> list[str]:
    return sorted({*__all__, *_modules()})


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name == "__version__":
        return import_module(f"{__name__}.machine.environment").version()
    if name in _modules():
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
