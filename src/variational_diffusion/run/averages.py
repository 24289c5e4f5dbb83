"""Snapshots of the averages in a run directory, and the averages of any width made of them.

    averages/00001200.safetensors    the averages of all widths after step 1200, and the buffers

One is written every 50 steps, then, as the run grows, every 100, 200, 400, …; those between are
removed, so that 15 to 30 stay. Which steps stay depends on the length of the run alone.

The averages are stored in half precision. That changed the bound by no more than 0.0001 bits per
dimension, and bfloat16 by 0.015, as narrow widths are differences of snapshots
(experiments/LOG.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from variational_diffusion.errors import InputError
from variational_diffusion.machine.distributed import gathered, here, largest_over_processes, local
from variational_diffusion.model import VDM
from variational_diffusion.run.directory import Run
from variational_diffusion.storage.tensors import read_tensors, write_tensors
from variational_diffusion.training import TrainingState
from variational_diffusion.training.posthoc import NARROWEST, WIDEST, WIDTHS, Profile, mixture

_FOLDER = "averages"
_MOST = 30
_LEAST_INTERVAL = 50


@dataclass(frozen=True)
class Reconstruction:
    """The average of one width. step: after which. rest: of its profile, as of `mixture`."""

    width: float
    step: int
    rest: float
    vdm: VDM


def interval(step: int) -> int:
    """Return the number of steps between two snapshots in a run of so many."""
    steps = _LEAST_INTERVAL
    while step > _MOST * steps:
        steps *= 2
    return steps


def keep(run: Run, state: TrainingState, *, last: bool) -> None:
    """Write a snapshot if this step is one for it, or the last of the run; thin out the others.

    With several processes, all of them call this and the leading one writes.
    """
    every = interval(state.step)
    if state.power_averages is None or not (last or state.step % every == 0):
        return
    halved = {name: _halved(value) for name, value in state.power_averages.state_dict().items()}
    averages = gathered(halved)
    if not here().leads:
        return
    buffers = {f"buffer.{name}": buffer for name, buffer in state.vdm.named_buffers()}
    folder = run.path / _FOLDER
    folder.mkdir(exist_ok=True)
    path = folder / f"{state.step:08}.safetensors"
    write_tensors(path, averages | buffers, {"step": str(state.step)})
    for step, path in stored(run).items():
        if step % every and step != state.step:
            path.unlink()


def forget_after(run: Run, step: int) -> None:
    """Remove the snapshots of steps that were not saved and will be done again."""
    for later, path in stored(run).items():
        if later > step:
            path.unlink()


def stored(run: Run) -> dict[int, Path]:
    """Return the files of the snapshots by step, in their order."""
    files = (run.path / _FOLDER).glob("[0-9]*.safetensors")
    return dict(sorted((int(path.stem), path) for path in files))


def reconstruct(run: Run, width: float) -> Reconstruction:
    """Return the average of a width after the last snapshot, as a model to evaluate.

    Snapshots are read one after the other and added up in float64; the buffers are the last one's.
    Raises InputError for a width outside [NARROWEST, WIDEST], where there are no snapshots, and for
    a damaged one.
    """
    if not NARROWEST <= width <= WIDEST:
        raise InputError(
            f"width = {width}: the standard deviation of an average as a share of the run, from "
            f"{NARROWEST} to {WIDEST}; give --width 0.1"
        )
    files = stored(run)
    if not files:
        raise InputError(
            f"run = '{run.path}' has no snapshots of averages: they are kept in training with "
            "training.posthoc_ema = true; train another --run with --set training.posthoc_ema=true"
        )
    last = max(files)
    profiles = [Profile(step, kept) for step in files for kept in WIDTHS]
    coefficients, rest = mixture(profiles, Profile(last, width))
    vdm = run.build()
    sums = {name: p.detach().double().zero_() for name, p in vdm.named_parameters()}
    for path, shares in zip(files.values(), coefficients.reshape(len(files), -1), strict=True):
        try:
            tensors, _ = read_tensors(path)
        except InputError as error:
            raise InputError(f"{error}; or remove this snapshot: the others do without") from error
        for kept, share in zip(WIDTHS, shares.tolist(), strict=True):
            for name, value in sums.items():
                value.add_(tensors[f"{kept}.{name}"], alpha=share)
    with torch.no_grad():
        for name, parameter in vdm.named_parameters():
            parameter.copy_(sums[name])
        for name, buffer in vdm.named_buffers():
            buffer.copy_(tensors[f"buffer.{name}"])
    return Reconstruction(width, last, rest, vdm.eval().requires_grad_(False))


def _halved(values: Tensor) -> Tensor:
    """Return the values in half precision, unless one is too large for it."""
    half = values.half()
    (too_large,) = largest_over_processes([float(not local(half).isfinite().all())], values.device)
    return values if too_large else half
