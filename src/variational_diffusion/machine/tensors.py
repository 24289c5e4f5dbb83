"""What a caller gives in place of tensors: arrays, numbers and lists, of any type that fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from variational_diffusion.errors import InputError

_SELDOM = {torch.bool, torch.uint16, torch.uint32, torch.uint64}


def as_tensor(name: str, value: Any, like: Tensor, *, numbers: bool = False) -> Tensor:
    """Return a value as a tensor on the device of `like`; a tensor that fits is itself.

    name: of the argument. numbers: it holds real numbers, and gets the type of `like`; otherwise
    its type is kept.
    Raises InputError for what is no tensor, array, number or list of numbers.
    """
    if not isinstance(value, Tensor):
        try:
            array = np.ascontiguousarray(value)
            array = array.reshape(np.shape(value))  # of a number it makes a list of one
            value = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{name} = {type(value).__name__}: give a tensor, or an array or list of numbers"
            ) from error
    if numbers and not value.is_complex():
        return value.to(like)
    if value.dtype in _SELDOM:  # torch computes with few of them
        value = value.long()
    return value.to(like.device)


def check_rows(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """Raise `InputError` unless a tensor has the shape (batch, *shape), with one row or more."""
    if tuple(value.shape[1:]) != shape or value.shape[0] == 0:
        raise InputError(
            f"{name} has shape {tuple(value.shape)}: the model takes "
            f"(batch, {', '.join(map(str, shape))}), with one example or more"
        )
