"""--label, --conditions, --condition and --guidance: what a model is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
import torch
from torch import Tensor

from variational_diffusion.cli.examples import condition_option
from variational_diffusion.conditions import Arrays, Labels, parted
from variational_diffusion.conditions.guidance import EVERYWHERE
from variational_diffusion.data import open_dataset
from variational_diffusion.data.arrays import read_npy
from variational_diffusion.data.source import as_tensor
from variational_diffusion.errors import InputError
from variational_diffusion.model import VDM
from variational_diffusion.numerics import derived_seed
from variational_diffusion.run.directory import Run
from variational_diffusion.run.examples import check_free

Command = TypeVar("Command", bound=Callable[..., Any])

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

    def columns(self, vdm: VDM) -> dict[str, np.ndarray]:
        """Return the labels of all samples, as columns of a table."""
        assert isinstance(vdm.condition, Labels)
        assert self.values is not None
        names = np.array(vdm.condition.names)[self.values.numpy()]
        return {"example": np.arange(len(names)), "label": names}


NOTHING = Given()


def given_options(command: Command) -> Command:
    """Add the options that say what samples are given; `given_by` acts on them."""
    for option in (
        click.option(
            "--guidance-interval",
            type=float,
            nargs=2,
            metavar="LOW HIGH",
            help="γ at which the guidance applies; default: everywhere.",
        ),
        click.option(
            "--guidance",
            type=click.FloatRange(0),
            default=1.0,
            help="Weight of the condition: 1, the default, is the model's own; 2 is sharper.",
        ),
        click.option("--conditions", help="Vectors or images to condition on, as an .npy array."),
        click.option(
            "--label",
            "labels",
            multiple=True,
            help="Class of the samples, or several that take turns; default: drawn by their "
            "shares of the training data.",
        ),
        condition_option,
    ):
        command = option(command)
    return command


def given_by(run: Run, vdm: VDM, count: int, seed: int, options: dict[str, Any]) -> Given:
    """Return what the options ask for, for so many samples; takes them out of the options.

    Without --label or --conditions, labels are drawn by their shares of the training data, and
    vectors and images are those of the run's own test examples.
    """
    condition, labels = options.pop("condition"), options.pop("labels")
    file, guidance = options.pop("conditions"), options.pop("guidance")
    interval = options.pop("guidance_interval")
    asked = {
        "condition": condition == "none",
        "label": bool(labels),
        "conditions": file is not None,
        "guidance": guidance != 1,
        "guidance_interval": interval is not None,
    }
    found = [name for name, given in asked.items() if given]
    if found and vdm.condition is None:
        raise InputError(
            f"{found[0]}: the model in '{run.path}' is unconditional; train another with "
            "vdm train DATA --condition label"
        )
    if vdm.condition is None:
        return Given()
    if condition == "none":
        if found[1:]:
            raise InputError(f"condition = 'none' leaves nothing for {found[1]}; leave one out")
        check_free(run)
        return Given()
    if guidance != 1:
        check_free(run)
    values, drawn = _values(run, vdm.condition, count, seed, labels, file)
    return Given(values, guidance, EVERYWHERE if interval is None else interval, drawn)


def own_conditions(run: Run, vdm: VDM, count: int, seed: int) -> Given:
    """Return what samples of a model are given when nothing is asked for; see `given_by`."""
    if vdm.condition is None:
        return Given()
    values, drawn = _values(run, vdm.condition, count, seed, (), None)
    return Given(values, drawn=drawn)


def _values(
    run: Run,
    condition: Labels | Arrays,
    count: int,
    seed: int,
    labels: tuple[str, ...],
    file: str | None,
) -> tuple[Tensor, bool]:
    rows = torch.arange(count)
    if isinstance(condition, Labels):
        if file is not None:
            raise InputError(f"conditions = '{file}': this model takes labels; give --label NAME")
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
        values = as_tensor(np.array(read_npy(Path(file))))
        if tuple(values.shape[1:]) != condition.value_shape or not len(values):
            raise InputError(
                f"conditions = '{file}' has shape {tuple(values.shape)}: the model takes one or "
                f"more of shape {condition.value_shape}"
            )
        return values[rows % len(values)], False
    test = open_dataset(run.config.data).splits["test"].sample(count)
    _, own = parted(test.batch(range(len(test))))
    assert own is not None
    return own[rows % len(own)], False
