"""The command that trains a run again, from its configuration."""

from __future__ import annotations

import json
from typing import Any

from variational_diffusion.config import DataConfig, ModelConfig, RunConfig, TrainingConfig
from variational_diffusion.errors import InputError
from variational_diffusion.escaping import typed
from variational_diffusion.presets import PRESETS, default_preset, parts

_SHORTHANDS = ("steps", "minutes", "seed", "batch_size", "learning_rate")


def training_command(config: RunConfig, run: str) -> str | None:
    """Return the shortest `vdm train` that gives this configuration; None if there is none.

    It is verified: preset and settings are laid over each other and compared with what the run
    has. A run of an earlier version, or of a network of one's own, may have no such command.
    """
    found = [words for name in PRESETS if (words := _words(config, name)) is not None]
    if not found:
        return None
    first = ["vdm", "train", config.data.source, "--run", run]
    return typed(*first, *_data_options(config.data), *min(found, key=len))


def _words(config: RunConfig, preset: str) -> list[str] | None:
    """Return the options that make the model and the training of a preset."""
    model, training = config.model, config.training
    settings: dict[str, Any] = {
        f"training.{field}": value
        for field in ("steps", "minutes")
        if (value := getattr(training, field)) is not None
    }
    names: dict[str, str] = {}

    def laid_over() -> tuple[ModelConfig, TrainingConfig]:
        levels = config.data.levels
        return parts(
            model.shape,
            levels,
            model.decoder,
            condition=model.condition,
            preset=preset,
            settings=settings,
            schedule=names.get("schedule"),
            network=names.get("network"),
        )

    try:
        plain, _ = laid_over()
        for kind in ("schedule", "network"):
            name = getattr(model, kind).name
            if getattr(plain, kind).name != name:
                names[kind] = name
        theirs, ours = (_by_section(*pair) for pair in (laid_over(), (model, training)))
        settings |= {key: value for key, value in ours.items() if theirs.get(key) != value}
        if laid_over() != (model, training):
            return None
    except InputError:
        return None
    words = [] if preset == default_preset(model.shape) else ["--preset", preset]
    for kind, name in names.items():
        words += [f"--{kind}", name]
    for key, value in settings.items():
        words += _option(key, value)
    return words


def _by_section(model: ModelConfig, training: TrainingConfig) -> dict[str, Any]:
    """Return "section.field" → value, as --set takes them."""
    sections = {
        "training": training.model_dump(mode="json"),
        "model": {"prediction": model.prediction},
        "network": model.network.options,
        "schedule": model.schedule.options,
    }
    return {f"{name}.{k}": v for name, fields in sections.items() for k, v in fields.items()}


def _option(key: str, value: Any) -> list[str]:
    section, _, field = key.partition(".")
    if section == "training" and field in _SHORTHANDS:
        return [f"--{field.replace('_', '-')}", f"{value:.10g}"]
    return ["--set", f"{key}={json.dumps(value)}"]


def _data_options(data: DataConfig) -> list[str]:
    """Return the options that say how the data are read, those with their default left out."""
    words: list[str] = []
    for field, info in DataConfig.model_fields.items():
        value = getattr(data, field)
        if field in ("source", "splits") or value == info.default:
            continue
        flag = "--range" if field == "value_range" else f"--{field.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif field in ("resize", "crop"):
            words += [flag, "x".join(map(str, value))]
        elif isinstance(value, tuple):
            words += [flag, *(repr(each) for each in value)]
        else:
            words += [flag, str(value)]
    return words
