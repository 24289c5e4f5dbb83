"""What decoding a file takes of a model: all numbers that its reverse process depends on."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from variational_diffusion.grids import NoiseErrors, PredictedErrors
from variational_diffusion.model import VDM

Module = TypeVar("Module", bound=nn.Module)


def model_state(vdm: VDM) -> dict[str, Tensor]:
    """Return the weights, the errors by which reverse steps are widened, and their network's."""
    tensors = dict(vdm.state_dict())
    errors = vdm.reverse_errors
    if isinstance(errors, PredictedErrors):
        if isinstance(errors.head, nn.Module):
            tensors |= {f"head.{name}": value for name, value in errors.head.state_dict().items()}
        errors = errors.mean
        tensors["predicted"] = torch.ones(())
    if errors is not None:
        tensors |= {"errors.gamma": errors.gamma, "errors.error": errors.error}
    return tensors


def with_state(vdm: VDM, tensors: Mapping[str, Tensor], head: nn.Module | None = None) -> VDM:
    """Return a model with what `model_state` returned of one of the same configuration.

    head: a network like the one that predicts the errors, where there is one. Weights are loaded
    in place. Raises RuntimeError for tensors of another model.
    """
    others = ("predicted", "errors.", "head.")
    vdm.load_state_dict({k: v for k, v in tensors.items() if not k.startswith(others)})
    if "errors.gamma" not in tensors:
        return vdm.widened(None)
    errors = NoiseErrors(tensors["errors.gamma"], tensors["errors.error"])
    if head is None:
        return vdm.widened(errors)
    of_head = {k.removeprefix("head."): v for k, v in tensors.items() if k.startswith("head.")}
    head.load_state_dict(of_head)
    return vdm.widened(PredictedErrors(errors, head))


def model_digest(vdm: VDM) -> str:
    """Return 32 hexadecimal digits of `model_state`, and of what else the reverse process is of."""
    tensors = model_state(vdm)
    digest = hashlib.sha256(f"{vdm.shape} {vdm.prediction}".encode())
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def converted(vdm: VDM, dtype: torch.dtype) -> VDM:
    """Return a copy of a model in another precision, in evaluation mode, with its errors."""
    errors = vdm.reverse_errors
    model = _copied(vdm.widened(None), dtype)
    if isinstance(errors, PredictedErrors):
        head = errors.head
        if isinstance(head, nn.Module):
            head = _copied(head, dtype)
        return model.widened(PredictedErrors(_cast(errors.mean, dtype), head))
    return model.widened(None if errors is None else _cast(errors, dtype))


def _copied(module: Module, dtype: torch.dtype) -> Module:
    return copy.deepcopy(module).to(dtype).eval().requires_grad_(False)


def _cast(errors: NoiseErrors, dtype: torch.dtype) -> NoiseErrors:
    return NoiseErrors(errors.gamma.to(dtype), errors.error.to(dtype))
