"""What the noise schedule of a run has learned: what `vdm schedule` measures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from variational_diffusion.data import Split
from variational_diffusion.errors import whole
from variational_diffusion.likelihood.loss_profile import (
    GROUPS,
    Errors,
    MeasuredVariances,
    Profile,
    Variances,
    measure,
    measured_variances,
    profile,
)
from variational_diffusion.machine.execution import Execution
from variational_diffusion.machine.progress import Listener
from variational_diffusion.model import VDM
from variational_diffusion.run.directory import Run
from variational_diffusion.run.examples import Data, examples_for, own_data
from variational_diffusion.run.measurements import Section, read_section, write_section
from variational_diffusion.run.noise_errors import to_measure
from variational_diffusion.run.trained import Trained

BINS = 100
_BATCH = 200
_TIMES = 401


@dataclass(frozen=True, eq=False)
class LearnedSchedule:
    """The noise schedule of a run's model, and what it makes of the loss.

    Attributes:
        t: Times from 0 to 1, an array.
        gamma: γ(t) there.
        profile: The loss m(γ) of the model.
        measured: Variances of the diffusion term's estimate, (bits/dim)², under the learned
            schedule and others with the same end points, with errors and 95 % intervals.
        examples: The examples that it was measured on.
        vdm: The model.
        weights: Their name.
    """

    t: np.ndarray
    gamma: np.ndarray
    profile: Profile
    measured: MeasuredVariances
    examples: Split
    vdm: VDM
    weights: str

    @property
    def variances(self) -> Variances:
        return self.measured.values

    @property
    def end_points(self) -> tuple[float, float]:
        """γ_0 and γ_1."""
        gamma_0, gamma_1 = self.vdm.schedule.end_points.tolist()
        return gamma_0, gamma_1

    def plot(self, ax: Any = None) -> Any:
        """Draw γ(t) on matplotlib axes, new ones for None; return the axes."""
        if ax is None:
            from matplotlib import pyplot  # noqa: PLC0415 (only here)

            _, ax = pyplot.subplots()
        ax.plot(self.t, self.gamma)
        ax.set_xlabel("t")
        ax.set_ylabel("γ(t)")
        return ax

    def as_json(self) -> dict[str, Any]:
        """Return what `vdm schedule --json` prints."""
        gamma_0, gamma_1 = self.end_points
        return {
            "gamma_0": gamma_0,
            "gamma_1": gamma_1,
            "variance": self.variances._asdict(),
            "standard_error": self.measured.errors._asdict(),
            "interval": {
                name: [low, high]
                for name, low, high in zip(
                    self.variances._fields, self.measured.low, self.measured.high, strict=True
                )
            },
            "diffusion": self.profile.diffusion,
            "evaluations": self.profile.evaluations,
            "weights": self.weights,
            **self.examples.as_json(),
        }


def schedule(
    run: Run | str | Path,
    data: Data | None = None,
    *,
    evaluations: int = 20_000,
    split: str | None = None,
    limit: int | None = None,
    weights: str = "ema",
    seed: int = 0,
    progress: bool | Listener = False,
    **execution: Any,
) -> LearnedSchedule:
    """Measure the loss m(γ) of a run's model, and what its noise schedule makes of it.

    `vdm schedule` gives the same figures. What is measured on a run's own examples is kept in the
    run, in its folder `report`.

    Args:
        run: A run, or its directory.
        data: As at `evaluate`; None: the run's own test examples.
        evaluations: Of the network, 2,000 or more.
        split: As at `evaluate`.
        limit: As at `evaluate`.
        weights: As at `evaluate`.
        seed: As at `evaluate`.
        progress: As at `evaluate`.
        **execution: Those of `Execution`, as at `evaluate`.

    Returns:
        γ(t), the loss profile, and the variances of the bound's estimate.

    Raises:
        InputError: As `evaluate`.

    Examples:
        >>> s = vd.schedule(run, evaluations=2000)
        >>> bool((np.diff(s.gamma) > 0).all()), s.variances.learned > 0
        (True, True)
    """
    whole("seed", seed, 0)
    run = run if isinstance(run, Run) else Run.open(run)
    carried = Execution(**execution)
    with carried.begun():
        trained = Trained.open(run, weights, carried)
        vdm, examples = trained.vdm, examples_for(run, data, split, limit)
        measuring = measure_split if data is not None else partial(_kept, trained)
        found = measuring(vdm, examples, evaluations=evaluations, seed=seed, progress=progress)
        gamma_0, gamma_1 = vdm.schedule.end_points.tolist()
        measured = measured_variances(found, (gamma_0, gamma_1), vdm.schedule, bins=BINS)
        t = torch.linspace(0, 1, _TIMES, dtype=vdm.dtype, device=vdm.device)
        with torch.no_grad():
            gamma = vdm.schedule(t).cpu().numpy()
    return LearnedSchedule(
        t=t.cpu().numpy(),
        gamma=gamma,
        profile=profile(found, (gamma_0, gamma_1), bins=BINS),
        measured=measured,
        examples=examples,
        vdm=vdm,
        weights=weights,
    )


def _kept(
    trained: Trained,
    vdm: VDM,
    split: Split,
    *,
    evaluations: int,
    seed: int,
    progress: bool | Listener,
) -> list[Errors]:
    """Return what `measure_split` measures on a run's own examples: kept in the run, or now."""
    run = trained.run
    known = own_data(run).fingerprint
    options = {
        "evaluations": evaluations,
        "seed": seed,
        **split.as_json(),
        "data": None if known is None else known.digest,
        "arithmetic": f"{vdm.device.type} {vdm.autocast or vdm.dtype}",
    }
    section = read_section(run, "loss", trained.weights, options)
    if section is None:
        found = measure_split(vdm, split, evaluations=evaluations, seed=seed, progress=progress)
        arrays = dict(zip(Errors._fields, map(torch.stack, zip(*found, strict=True)), strict=True))
        section = Section(arrays, {}, options)
        write_section(run, "loss", trained.weights, section)
    batches = (section.arrays[name] for name in Errors._fields)
    return [Errors(*batch) for batch in zip(*batches, strict=True)]


def measure_split(
    vdm: VDM,
    split: Split,
    *,
    evaluations: int,
    seed: int = 0,
    progress: bool | Listener = False,
) -> list[Errors]:
    """Measure m(γ) on a split, as `measured_variances` takes it."""
    generator = torch.Generator(vdm.device).manual_seed(seed)
    size = min(_BATCH, -(-evaluations // GROUPS))
    count = -(-evaluations // size)
    batches = to_measure(split, size, count, "measuring", seed, GROUPS, progress=progress)
    return list(measure(vdm, batches, generator=generator))
