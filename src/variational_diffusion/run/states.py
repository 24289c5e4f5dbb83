"""A state of training as tensors and a few numbers, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from variational_diffusion.errors import InputError
from variational_diffusion.machine.distributed import is_share, laid_out_as
from variational_diffusion.training import TrainingState


def tensors_of(state: TrainingState) -> dict[str, Tensor]:
    """Return all tensors of a state, by names that `restore` knows."""
    tensors = {
        f"optimizer.{kind}.{index}.{name}": value
        for kind, optimizer in state.optimizers.items()
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    tensors |= _prefixed("model", state.vdm.state_dict())
    tensors |= _prefixed("ema", state.average.module.state_dict())
    if state.power_averages is not None:
        tensors |= _prefixed("power", state.power_averages.state_dict())
    return tensors


def progress_of(state: TrainingState) -> dict[str, str]:
    """Return the numbers of a state as text."""
    return {
        "step": str(state.step),
        "seconds": repr(state.seconds),
        "skipped": str(state.skipped),
        "rate": repr(state.rate),
        "before_tail": str(state.before_tail),
    }


def restore(
    state: TrainingState, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path
) -> None:
    """Put a state back to what `tensors_of` and `progress_of` said of it, in place.

    state: a new one of the same configuration. path: of the file, for messages.
    """
    load_into(state.vdm, _without_prefix("model", tensors), path)
    load_into(state.average.module, _without_prefix("ema", tensors), path)
    for kind, optimizer in state.optimizers.items():
        values: dict[int, dict[str, Tensor]] = {}
        for key, value in _without_prefix(f"optimizer.{kind}", tensors).items():
            index, name = key.split(".")
            values.setdefault(int(index), {})[name] = value
        groups = optimizer.state_dict()["param_groups"]
        ordered = [p for group in optimizer.param_groups for p in group["params"]]
        for number, of_parameter in values.items():
            for name, value in of_parameter.items():
                of_parameter[name] = _distributed_as(ordered[number], value)
        optimizer.load_state_dict({"state": values, "param_groups": groups})
    take_progress(state, metadata)
    power_averages = _without_prefix("power", tensors)
    if not power_averages:
        state.power_averages = None
    if state.power_averages is not None:
        kept = state.power_averages.state_dict()
        placed = {k: _distributed_as(kept[k], v) for k, v in power_averages.items()}
        state.power_averages.load_state_dict(placed, updates=state.step)


def take_progress(state: TrainingState, metadata: Mapping[str, str]) -> None:
    """Set the numbers of a state to what `progress_of` said of it."""
    state.step, state.seconds = int(metadata["step"]), float(metadata["seconds"])
    state.skipped, state.rate = int(metadata["skipped"]), float(metadata["rate"])
    state.before_tail = int(metadata.get("before_tail", "0"))
    state.average.updates = state.step


def joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of all parts; those that several have are rows of one."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {
        name: found[0] if len(found) == 1 else torch.cat(found)
        for name in names
        for found in [[part[name] for part in parts if name in part]]
    }


def _distributed_as(like: Tensor, value: Tensor) -> Tensor:
    """Return a whole tensor laid out over the processes as `like` of its shape is, if it is."""
    if is_share(like) and value.shape == like.shape:
        return laid_out_as(like, value.to(like.device))
    return value


def load_into(module: torch.nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Give a module its tensors, of a file; raise `InputError` where they do not fit."""
    own = module.state_dict()
    placed = {k: _distributed_as(own[k], v) if k in own else v for k, v in tensors.items()}
    try:
        module.load_state_dict(placed)
    except RuntimeError as error:
        raise InputError(
            f"'{path}' does not fit the model of config.json beside it: "
            "the two belong to different runs, restore the pair"
        ) from error


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix += "."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
