"""Presets: complete configurations for a kind of data, each with what it gave.

A preset is a function of the data's shape and number of levels. `configure` picks one for the
data, unless it is named, and lays the user's settings over it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel

from variational_diffusion.conditions import CONDITIONS, parted
from variational_diffusion.config import (
    Component,
    DataConfig,
    ModelConfig,
    RunConfig,
    TrainingConfig,
    validated,
)
from variational_diffusion.data import Dataset
from variational_diffusion.data.reals import constant_columns
from variational_diffusion.data.source import mean_and_std
from variational_diffusion.errors import InputError, one_of
from variational_diffusion.model import complete
from variational_diffusion.networks import NETWORKS
from variational_diffusion.networks.own import Factory, path_of
from variational_diffusion.schedules import SCHEDULES
from variational_diffusion.weightings import weighting_named

Shape = tuple[int, ...]

_MEASURED = 4096
"""Examples whose conditions, where they are arrays, give location and scale."""


class Preset(BaseModel):
    """The network, the schedule and the way of training for one kind of data.

    training: settings of `TrainingConfig` that differ from its defaults.
    """

    network: Component
    schedule: Component
    prediction: str = "velocity"
    training: dict[str, Any] = {}


def noise_range(levels: int | None) -> tuple[float, float]:
    """Return (γ_0, γ_1) to start from.

    γ_0 = −13.3 for 256 levels, shifted by 2 ln(256/L) so that the noise keeps its ratio to the
    spacing of L levels: p(x|z_0) then costs 0.01 bits per dimension. Real-valued data have no
    spacing; −10 puts noise of 0.7 % of their standard deviation on them. `configure` starts where
    the floor of γ_0 is if that is higher.
    """
    gamma_min = -10.0 if levels is None else -13.3 + 2 * math.log(256 / levels)
    return round(gamma_min, 4), 5.0


def tiny(shape: Shape, levels: int | None) -> Preset:
    """Images of up to 16×16 pixels on a CPU.

    `vdm demo`: 1.708 ± 0.014 bits per dimension on the 297 test digits, 2.5 minutes on one thread.
    Dropout, because such data are few: test images cost 0.14 bits more than training images without
    it, in a smaller network, and 0.09 with it.
    """
    return Preset(
        network=_part("network", NETWORKS, "unet", levels, widths=[32, 48], dropout=0.1),
        schedule=_part("schedule", SCHEDULES, "adaptive", levels),
        training={"batch_size": 64},
    )


def small(shape: Shape, levels: int | None) -> Preset:
    """Images of 17 to 48 pixels on a side, on a CPU.

    5,000 steps of Fashion-MNIST, 20 minutes of one core with units for bfloat16: 2.817 ± 0.009 bits
    per dimension on test images 1,001 to 10,000 (docs/benchmarks.md).
    """
    return Preset(
        network=_part("network", NETWORKS, "unet", levels, widths=[48, 64, 64]),
        schedule=_part("schedule", SCHEDULES, "adaptive", levels),
        training={"batch_size": 32},
    )


def medium(shape: Shape, levels: int | None) -> Preset:
    """Images of more than 48 pixels on a side, on a CPU.

    Noto emoji at 64×64 in colour, 190 test images: 1.614 ± 0.038 bits per dimension after 4 minutes
    on two cores with units for bfloat16 (experiments/speedrun.md). Its settings are not searched.
    """
    return Preset(
        network=_part("network", NETWORKS, "unet", levels, widths=[32, 48, 64, 64]),
        schedule=_part("schedule", SCHEDULES, "adaptive", levels),
        training={"batch_size": 16},
    )


def gpu(shape: Shape, levels: int | None) -> Preset:
    """Images on one GPU: 27 times the operations an image of `small`, in large batches.

    Not trained to a figure yet; `benchmarks/gpu.py` says what a device makes of it.
    """
    return Preset(
        network=_part(
            "network", NETWORKS, "unet", levels, widths=[128, 192, 256], blocks=2, attention=True
        ),
        schedule=_part("schedule", SCHEDULES, "adaptive", levels),
        training={"batch_size": 128, "learning_rate": 1e-3},
    )


def vector(shape: Shape, levels: int | None) -> Preset:
    """Vectors, and arrays of any other rank. Not tuned yet."""
    return Preset(
        network=_part("network", NETWORKS, "mlp", levels),
        schedule=_part("schedule", SCHEDULES, "adaptive", levels),
        training={"batch_size": 128, "learning_rate": 2e-3},
    )


def paper(shape: Shape, levels: int | None) -> Preset:
    """The network and recipe of the paper's CIFAR-10 model, for any size of image.

    Kingma et al. (2021) report 2.65 bits per dimension on CIFAR-10 after ten million steps of 128
    images on a TPU pod; not run here. Give `--steps`; on one CPU it is a matter of weeks.
    """
    return Preset(
        network=_part("network", NETWORKS, "paper-unet", levels, width=128, blocks=32),
        schedule=_part("schedule", SCHEDULES, "fixed-linear", levels),
        prediction="noise",
        training={
            "batch_size": 128,
            "optimizer": "adamw",
            "learning_rate": 2e-4,
            "weight_decay": 0.01,
            "warmup_steps": 100,
            "decay_from": 1.0,
            "ema_decay": 0.9999,
        },
    )


PRESETS: dict[str, Callable[[Shape, int | None], Preset]] = {
    "tiny": tiny,
    "small": small,
    "medium": medium,
    "gpu": gpu,
    "vector": vector,
    "paper": paper,
}


def default_preset(shape: Shape) -> str:
    """Return the name of the preset for data of this shape."""
    if len(shape) != 3:
        return "vector"
    side = max(shape[1:])
    return "tiny" if side <= 16 else "small" if side <= 48 else "medium"


def configure(
    data: DataConfig,
    dataset: Dataset,
    *,
    preset: str | None = None,
    schedule: str | None = None,
    network: str | Factory | None = None,
    settings: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Return the configuration of a run: the preset's, with the user's settings over it.

    data, dataset: how the data are read, and the data. preset: None chooses by their shape.
    schedule, network: names that replace the preset's; the options of a replaced part are the
        defaults, with the range of γ and the levels of the data. A network may also be one's own: a
        class or function, shape → module.
    settings: "section.field" → value, with the sections training, model, network and schedule.
    """
    model, training = parts(
        dataset.shape,
        dataset.levels,
        _decoder(dataset),
        condition=_condition(dataset),
        floor=None if dataset.real_values is None else dataset.real_values.least_gamma,
        preset=preset,
        schedule=schedule,
        network=network,
        settings=settings,
    )
    found = {"levels": dataset.levels, "source": dataset.source, "splits": dataset.rule}
    return RunConfig(
        data=data.model_copy(update=found),
        model=model,
        training=training,
        fingerprint=dataset.fingerprint,
    )


def parts(
    shape: Shape,
    levels: int | None,
    decoder: Component,
    *,
    condition: Component | None = None,
    floor: float | None = None,
    preset: str | None = None,
    schedule: str | None = None,
    network: str | Factory | None = None,
    settings: Mapping[str, Any] | None = None,
) -> tuple[ModelConfig, TrainingConfig]:
    """Return the model and the training of `configure`, for data of which the shape is known.

    floor: of γ_0, for real-valued data (`RealValues.least_gamma`).
    """
    chosen = _entry("preset", PRESETS, preset or default_preset(shape))(shape, levels)
    if schedule is not None:
        chosen.schedule = _part("schedule", SCHEDULES, schedule, levels)
    table: Mapping[str, Any] = NETWORKS
    own = None if network is None or isinstance(network, str) else network
    name = network if isinstance(network, str) else None
    if own is not None:
        name = path_of(own)
        table = {name: own}
    if name is not None:
        chosen.network = _part("network", table, name, levels)
    sections: dict[str, dict[str, Any]] = {
        "training": dict(chosen.training),
        "model": {"shape": shape, "prediction": chosen.prediction},
        "network": dict(chosen.network.options),
        "schedule": dict(chosen.schedule.options),
    }
    if floor is not None:
        for options in (sections["network"], sections["schedule"]):
            if "gamma_min" in options:
                options["gamma_min"] = max(options["gamma_min"], floor)
        if "floor" in inspect.signature(SCHEDULES[chosen.schedule.name]).parameters:
            sections["schedule"]["floor"] = floor
    for key, value in (settings or {}).items():
        section, _, field = key.partition(".")
        _entry("section", sections, section)[field] = value
    if condition is not None:
        sections["network"] |= _conditioned(chosen.network.name, table, condition)
    model = {
        **sections["model"],
        "decoder": decoder,
        "condition": condition,
        "network": Component(name=chosen.network.name, options=sections["network"]),
        "schedule": Component(name=chosen.schedule.name, options=sections["schedule"]),
    }
    training = validated(TrainingConfig, sections["training"])
    weighting_named(training.weighting)  # refused here, before a run is begun
    return complete(validated(ModelConfig, model), own), training


def _decoder(dataset: Dataset) -> Component:
    """Return the decoder for the data; real values are standardised by the training split."""
    if dataset.levels is not None:
        return Component(name="discretized", options={"levels": dataset.levels})
    values = dataset.real_values
    assert values is not None
    if len(values.constant):
        raise InputError(constant_columns(values))
    return Component(
        name="gaussian",
        options={"location": values.location.tolist(), "scale": values.scale.tolist()},
    )


def _condition(dataset: Dataset) -> Component | None:
    """Return how conditions are encoded: labels with their shares, arrays standardised."""
    train = dataset.splits["train"]
    if dataset.labels is not None:
        assert train.conditions is not None
        counts = np.bincount(train.conditions[train.indices], minlength=len(dataset.labels))
        shares = (counts / counts.sum()).tolist()
        return Component(name="label", options={"names": list(dataset.labels), "shares": shares})
    _, values = parted(train.batch(range(min(_MEASURED, len(train)))))
    if values is None:
        return None
    location, scale = mean_and_std([values.numpy()])
    scale[scale == 0] = 1.0
    options = {"location": location.tolist(), "scale": scale.tolist()}
    return Component(name="array", options={"value_shape": list(values.shape[1:]), **options})


def _conditioned(network: str, table: Mapping[str, Any], condition: Component) -> dict[str, int]:
    """Return the options that let a network of the table take a condition."""
    shape = CONDITIONS[condition.name](**condition.options).shape
    known = inspect.signature(_entry("network", table, network)).parameters
    if "conditioning_channels" in known and len(shape) == 3:
        return {"conditioning_channels": shape[0]}
    if "conditioning_size" in known:
        return {"conditioning_size": math.prod(shape)}
    if table is not NETWORKS:  # of one's own: it is given the conditioning and does what it likes
        return {}
    raise InputError(
        f"network = '{network}' takes no condition but one number; choose another --network, or "
        "leave out --condition"
    )


def _entry(kind: str, table: Mapping[str, Any], name: str) -> Any:
    one_of(kind, name, table)
    return table[name]


def _part(
    kind: str, table: Mapping[str, Any], name: str, levels: int | None, **options: Any
) -> Component:
    """Return an entry of a table with these options, and those that follow from the data."""
    gamma_min, gamma_max = noise_range(levels)
    from_data = {"gamma_min": gamma_min, "gamma_max": gamma_max, "levels": levels}
    known = inspect.signature(_entry(kind, table, name)).parameters
    return Component(
        name=name, options={**{k: v for k, v in from_data.items() if k in known}, **options}
    )
