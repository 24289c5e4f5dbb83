"""What samples of a run's model are given: labels, vectors, images, and how strongly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from variational_diffusion.conditions import Arrays, Labels, parted
from variational_diffusion.conditions.guidance import EVERYWHERE
from variational_diffusion.data.arrays import read_npy
from variational_diffusion.data.source import as_tensor
from variational_diffusion.errors import InputError
from variational_diffusion.model import VDM
from variational_diffusion.numerics import derived_seed
from variational_diffusion.run.directory import Run
from variational_diffusion.run.examples import check_free, own_data
from variational_diffusion.storage.files import expanded

_DRAW = 3  # of the seeds derived from --seed


@dataclass(frozen=True)
class Given:
    """What samples are conditioned on.

    values: of all samples, in the order of the samples; None: nothing. drawn: whether labels among
    them were drawn by their shares.
    """

    values: Tensor | None = None
    guidance: float = 1.0
    interval: tuple[float, float] = EVERYWHERE
    drawn: bool = False

    def to(self, vdm: VDM, rows: slice) -> VDM:
        """Return the model given the conditions of some of the samples."""
        if self.values is None:
            return vdm
        return vdm.given(self.values[rows], guidance=self.guidance, interval=self.interval)

    def labels(self, vdm: VDM) -> np.ndarray | None:
        """Return the labels of all samples, by name; None where they have none."""
        if not isinstance(vdm.condition, Labels) or self.values is None:
            return None
        return np.array(vdm.condition.names)[self.values.numpy()]


NOTHING = Given()


def given_by(
    run: Run,
    vdm: VDM,
    count: int,
    seed: int,
    *,
    condition: str = "own",
    labels: Sequence[str] = (),
    conditions: str | Path | np.ndarray | Tensor | None = None,
    guidance: float = 1.0,
    guidance_interval: tuple[float, float] | None = None,
) -> Given:
    """Return what so many samples of a run's model are given.

    condition: "own", or "none" for samples of p(x). labels: of classes, which take turns.
    conditions: vectors or images, in an array or an .npy file, which take turns. guidance,
    guidance_interval: see `conditions.Guided`.

    Without labels and conditions, labels are drawn by their shares of the training data, and
    vectors and images are those of the run's own test examples.
    """
    asked = {
        "condition": condition == "none",
        "label": bool(labels),
        "conditions": conditions is not None,
        "guidance": guidance != 1,
        "guidance_interval": guidance_interval is not None,
    }
    found = [name for name, given in asked.items() if given]
    if found and vdm.condition is None:
        raise InputError(
            f"{found[0]}: the model in '{run.path}' is unconditional; train another with "
            "vdm train DATA --condition label"
        )
    if vdm.condition is None:
        return NOTHING
    if condition == "none":
        if found[1:]:
            raise InputError(f"condition = 'none' leaves nothing for {found[1]}; leave one out")
        check_free(run)
        return NOTHING
    if guidance != 1:
        check_free(run)
    values, drawn = _values(run, vdm.condition, count, seed, tuple(labels), conditions)
    return Given(values, guidance, guidance_interval or EVERYWHERE, drawn)


def _values(
    run: Run,
    condition: Labels | Arrays,
    count: int,
    seed: int,
    labels: tuple[str, ...],
    file: str | Path | np.ndarray | Tensor | None,
) -> tuple[Tensor, bool]:
    rows = torch.arange(count)
    if isinstance(condition, Labels):
        if file is not None:
            raise InputError(
                f"conditions = {_named(file)}: this model takes labels; give --label NAME"
            )
        if labels:
            return condition.values(labels)[rows % len(labels)], False
        generator = torch.Generator().manual_seed(derived_seed(seed, _DRAW))
        return condition.draw(count, generator), True
    if labels:
        raise InputError(
            f"label = '{labels[0]}': this model is conditioned on arrays of shape "
            f"{condition.value_shape}; give --conditions FILE.npy"
        )
    if file is not None:
        array = file if isinstance(file, np.ndarray | Tensor) else read_npy(expanded(file))
        values = as_tensor(np.array(array))
        if tuple(values.shape[1:]) != condition.value_shape or not len(values):
            raise InputError(
                f"conditions = {_named(file)} has shape {tuple(values.shape)}: the model takes one "
                f"or more of shape {condition.value_shape}"
            )
        return values[rows % len(values)], False
    test = own_data(run).splits["test"].sample(count)
    _, own = parted(test.batch(range(len(test))))
    assert own is not None
    return own[rows % len(own)], False


def _named(file: str | Path | np.ndarray | Tensor) -> str:
    return f"'{file}'" if isinstance(file, str | Path) else "an array"
