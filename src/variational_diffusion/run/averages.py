"""Snapshots of the averages in a run directory, and the averages of any width made of them.

    averages/00001200.safetensors    the averages of all widths after step 1200, and the buffers

One is written every 50 steps, then, as the run grows, every 100, 200, 400, …; those between are
removed, so that 15 to 30 stay. Which steps stay depends on the length of the run alone.

The averages are stored in half precision. That changed the bound by no more than 0.0001 bits per
dimension, and bfloat16 by 0.015, as narrow widths are differences of snapshots
(experiments/LOG.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from variational_diffusion.errors import InputError
from variational_diffusion.likelihood import ContinuousBound, evaluate_rounds, example_columns
from variational_diffusion.machine.distributed import gathered, here, largest_over_processes, local
from variational_diffusion.machine.execution import Execution
from variational_diffusion.machine.progress import Listener, telling
from variational_diffusion.model import VDM
from variational_diffusion.run.directory import Run
from variational_diffusion.run.examples import chosen_examples
from variational_diffusion.training import TrainingState
from variational_diffusion.training.posthoc import NARROWEST, WIDEST, WIDTHS, Profile, mixture

WIDTHS_COMPARED = (0.03, 0.05, 0.07, 0.1, 0.15, 0.2)
"""What is compared unless other widths are given."""

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


@dataclass(frozen=True)
class WrittenAverage:
    """An average that `write_average` wrote. name: for `weights=`. step, rest: as above."""

    name: str
    path: Path
    width: float
    step: int
    rest: float

    def as_json(self) -> dict[str, Any]:
        """Return what was written for a JSON object."""
        values = asdict(self)
        return {"weights": values.pop("name"), **values, "path": str(self.path)}


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
    run.write(path, "snapshot", averages | buffers, {"step": str(state.step)})
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
            tensors, _ = run.read(path, "snapshot")
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


@dataclass(frozen=True)
class WidthBound:
    """The bound with one average: bits per dimension, and their difference to those of "ema".

    rest: of the average's profile, see `Reconstruction`; 0 for "ema" itself.
    """

    width: float | None
    bits_per_dim: float
    standard_error: float
    difference: float
    difference_error: float
    rest: float


@dataclass(frozen=True)
class WidthComparison:
    """Averages of several widths, compared by the bound on the same examples with the same draws.

    step: after which the averages are. ema: that of training. examples: what they are.
    """

    step: int
    ema: WidthBound
    widths: tuple[WidthBound, ...]
    examples: str

    @property
    def best(self) -> float:
        """The width with the least bound."""
        best = min(self.widths, key=lambda found: found.bits_per_dim)
        assert best.width is not None
        return best.width

    def as_json(self) -> dict[str, Any]:
        """Return the comparison for a JSON object."""
        ema = asdict(self.ema)
        del ema["width"], ema["rest"]
        widths = [asdict(found) for found in self.widths]
        return {"step": self.step, "ema": ema, "widths": widths, "best": self.best}


def compare_widths(
    run: Run | str | Path,
    widths: Sequence[float] = WIDTHS_COMPARED,
    *,
    data: str | None = None,
    limit: int = 1000,
    draws: int = 4,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    progress: bool | Listener = False,
) -> WidthComparison:
    """Compare averages of a run's weights by the bound of validation examples: `vdm ema`.

    Args:
        run: The run, or its directory; trained with `training.posthoc_ema`.
        widths: Of the averages: standard deviations in time as shares of the run, 0.02 to 0.25.
        data: What the command line calls DATA; None: the run's own.
        limit: Examples at most.
        draws: Of the bound for each example.
        seed: Of the draws, which are the same for all weights.
        device: The device, as of `Execution`.
        threads: CPU threads, as of `Execution`.
        progress: See `machine.progress`.

    Returns:
        The bound of every width, and its difference to that of "ema", example by example.

    Raises:
        InputError: For a width out of range, and for a run without snapshots.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    with Execution(device, threads).begun() as target:
        examples = chosen_examples(run, data, "validation", limit)

        def bits_of(vdm: VDM) -> Tensor:
            with telling(progress, "evaluating", "examples") as tell:
                done = evaluate_rounds(
                    vdm.to(target),
                    examples,
                    ContinuousBound(draws),
                    rounds=1,
                    seed=seed,
                    progress=tell,
                )
            assert done.summary.examples == len(examples)  # and it refuses what is not finite
            return example_columns(*done.rounds, dimensions=vdm.dimensions)["bits_per_dim"]

        reference = bits_of(run.load("ema"))
        found = []
        for width in widths:
            made = reconstruct(run, width)
            found.append(_bound(width, bits_of(made.vdm), reference, made.rest))
    ema = _bound(None, reference, reference, 0.0)
    return WidthComparison(made.step, ema, tuple(found), examples.description)


def write_average(run: Run | str | Path, width: float, name: str | None = None) -> WrittenAverage:
    """Write the average of a width into the run, for `weights=`: `vdm ema --width`.

    name: begins with "ema-"; None: that and the width.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    made, name = reconstruct(run, width), name or f"ema-{width:g}"
    about = {"step": str(made.step), "width": str(width), "rest": repr(made.rest)}
    path = run.save_weights(name, made.vdm, about)
    return WrittenAverage(name, path, width, made.step, made.rest)


def _bound(width: float | None, bits: Tensor, reference: Tensor, rest: float) -> WidthBound:
    n, difference = len(bits), bits - reference
    return WidthBound(
        width,
        float(bits.mean()),
        float(bits.std()) / math.sqrt(n),
        float(difference.mean()),
        float(difference.std()) / math.sqrt(n),
        rest,
    )


def _halved(values: Tensor) -> Tensor:
    """Return the values in half precision, unless one is too large for it."""
    half = values.half()
    (too_large,) = largest_over_processes([float(not local(half).isfinite().all())], values.device)
    return values if too_large else half
