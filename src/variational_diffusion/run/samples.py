"""Samples of a run's model: what `vdm sample` draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from variational_diffusion.conditions import Batch
from variational_diffusion.decoders import Discretized
from variational_diffusion.errors import InputError, whole
from variational_diffusion.grids import Gammas
from variational_diffusion.images.pictures import (
    animation,
    check_animation,
    is_image,
    save_sheet,
    to_pil,
)
from variational_diffusion.likelihood import ContinuousBound, evaluate, example_columns
from variational_diffusion.machine.distributed import here, sum_over_processes
from variational_diffusion.machine.execution import execution_of
from variational_diffusion.machine.memory import check_room
from variational_diffusion.machine.progress import Listener, telling
from variational_diffusion.machine.signals import until
from variational_diffusion.model import VDM
from variational_diffusion.numerics import derived_seed
from variational_diffusion.run.conditions import NOTHING, Given, given_by
from variational_diffusion.run.directory import Run
from variational_diffusion.run.noise_errors import reverse_chain
from variational_diffusion.run.trained import Trained
from variational_diffusion.sampling import (
    DEFAULT_STEPS,
    SAMPLERS,
    Multistep,
    Sampler,
    default_for,
    named,
)
from variational_diffusion.storage.columns import write_columns
from variational_diffusion.storage.files import atomic, atomic_folder, check_target, expanded

_BATCH = 250


class Sampling(NamedTuple):
    """What is sampled, by what, on which grid; name: of the sampler."""

    model: VDM
    sampler: Sampler
    gammas: Gammas
    name: str


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of a model.

    Attributes:
        values: the samples in the data's own domain, shape (n, *shape).
        frames: stages of the way, shape (stages, 2, n, *shape): z, and beside it x̂(z).
        given: what they were conditioned on. vdm: the model. seed: of the draw.
        stopped: whether the work was ended before all were drawn.
    """

    values: np.ndarray
    frames: np.ndarray
    given: Given
    vdm: VDM
    seed: int
    stopped: bool = False

    @property
    def labels(self) -> np.ndarray | None:
        """Names of the samples' classes; None where they have none."""
        return self.given.labels(self.vdm)

    @cached_property
    def bits(self) -> dict[str, np.ndarray]:
        """The bound of every sample, term by term in bits per dimension, as columns.

        Of samples with conditions it is the bound on −log p(x|c).
        """
        generator = torch.Generator(self.vdm.device).manual_seed(derived_seed(self.seed, 1))
        examples = torch.from_numpy(self.values).split(_BATCH)
        parts: Sequence[Batch] = examples
        if self.given.values is not None:
            parts = list(zip(examples, self.given.values.split(_BATCH), strict=True))
        bound = ContinuousBound(8)
        rounds = [list(evaluate(self.vdm, parts, bound, generator=generator)) for _ in range(2)]
        columns = example_columns(*rounds, dimensions=self.vdm.dimensions)
        return {name: column.numpy() for name, column in columns.items()}

    def write(self, path: str | Path) -> None:
        """Write a .png sheet, with labels if there are any, an .npy array, or single images."""
        path, levels = expanded(path), self.vdm.levels
        if path.suffix == ".npy":
            with atomic(path) as temporary, temporary.open("wb") as file:
                np.save(file, _smallest(self.values, levels))
        elif path.suffix == ".png":
            labels = None if self.labels is None else self.labels.tolist()
            save_sheet(self.values, levels, path, captions=labels)
        else:
            with atomic_folder(path) as folder:
                for i, sample in enumerate(self.values):
                    to_pil(sample, levels).save(folder / f"{i:05}.png")

    def write_labels(self, path: str | Path) -> None:
        """Write the labels as a .csv or .parquet table."""
        assert self.labels is not None
        write_columns(path, {"example": np.arange(len(self.labels)), "label": self.labels})

    @property
    def table(self) -> dict[str, np.ndarray]:
        """Columns by name, a row a sample: its number, its label if it has one, and its bits."""
        labels = {} if self.labels is None else {"label": self.labels}
        return {"example": np.arange(len(self.values)), **labels} | {
            name: column for name, column in self.bits.items() if name != "example"
        }

    def write_animation(self, path: str | Path) -> None:
        """Write the stages of the way as a .gif, .webp or .mp4."""
        animation(self.frames, self.vdm.levels, path)


def sample(
    trained: Trained,
    n: int,
    *,
    label: str | Sequence[str] | None = None,
    conditions: str | Path | np.ndarray | Tensor | None = None,
    condition: str = "own",
    guidance: float = 1.0,
    guidance_interval: tuple[float, float] | None = None,
    seed: int = 0,
    frames: int = 0,
    progress: bool | Listener = False,
    stopped: Callable[[], bool] = lambda: False,
    **sampling: Any,
) -> Samples:
    """Draw samples of a run's model; see `Run.sample`.

    frames: how many stages of the way are kept, beside the last. stopped: as of `draw`. sampling:
    for `sampling_of`.
    """
    whole("n", n)
    whole("seed", seed, 0)
    labels = () if label is None else (label,) if isinstance(label, str) else tuple(label)
    given = given_by(
        trained.run,
        trained.vdm,
        n,
        seed,
        condition=condition,
        labels=labels,
        conditions=conditions,
        guidance=guidance,
        guidance_interval=guidance_interval,
    )
    by = sampling_of(trained, progress=progress, **sampling)
    values, stages = draw(
        by, n, seed=seed, frames=frames, given=given, progress=progress, stopped=stopped
    )
    if len(values) < n and given.values is not None:
        given = replace(given, values=given.values[: len(values)])
    return Samples(values, stages, given, trained.vdm, seed, stopped=len(values) < n)


def sample_run(
    run: Run, n: int, *, weights: str = "ema", progress: bool | Listener = False, **options: Any
) -> Samples:
    """Draw samples of a run; the options are those of `sample` and of `Execution`."""
    execution, options = execution_of(options)
    with execution.begun():
        trained = Trained.open(run, weights, execution)
        return sample(trained, n, progress=progress, **options)


def check_outputs(path: Path, animate: str | None, shape: tuple[int, ...]) -> None:
    """Refuse before drawing what could not be written after it."""
    if not is_image(shape) and (path.suffix != ".npy" or animate):
        raise InputError(f"out = '{path}': these samples are not images; give --out FILE.npy")
    if path.suffix not in (".png", ".npy", ""):
        raise InputError(f"out = '{path}': give a .png sheet, an .npy array or a folder")
    check_target(path, folder=not path.suffix)
    if animate:
        check_animation(animate)


def sampling_of(
    trained: Trained,
    *,
    sampler: str | None = None,
    steps: int = DEFAULT_STEPS,
    grid: str = "gamma",
    variance: str = "posterior",
    eta: float | None = None,
    stop_early: float | None = None,
    clip: float | None = None,
    progress: bool | Listener = False,
) -> Sampling:
    """Return how a run's model is sampled; the arguments are those of `Run.sample`."""
    vdm = trained.vdm
    name = sampler or default_for(vdm.shape)
    carry = named(name)
    if eta is not None:
        if not isinstance(carry, Multistep):
            with_eta = [key for key, value in SAMPLERS.items() if isinstance(value, Multistep)]
            raise InputError(f"eta = {eta}: {name} has none; it is for {', '.join(with_eta)}")
        carry = replace(carry, eta=eta)
    if variance != "posterior" and name != "ancestral":
        raise InputError(
            f"variance = '{variance}': {name} does not draw with it; type --sampler ancestral"
        )
    stop = _stop(vdm, stop_early, steps)
    model, gammas = reverse_chain(trained, steps, grid, variance, stop=stop, progress=progress)
    return Sampling(model if clip is None else model.clipped(clip), carry, gammas, name)


def draw(
    by: Sampling,
    count: int,
    *,
    seed: int,
    frames: int = 0,
    given: Given = NOTHING,
    progress: bool | Listener = False,
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw examples; return them and up to `frames` + 1 stages of the way.

    A stage is of shape (2, n, *shape): z, and beside it x̂(z), which takes one more evaluation of
    the network.

    They are drawn in parts of 250, each with its own generator, which several processes share out;
    all of them get all examples. The stages are those of the first part, in the leading process.

    stopped: asked between two steps; where it is true, the parts that are done are the result.
    Raises KeyboardInterrupt where there are none, or several processes share them.
    """
    vdm, place = by.model, here()
    check_room("n", count, 4 * count * vdm.dimensions, vdm.device)
    steps = len(by.gammas) - 1
    sizes = [min(_BATCH, count - first) for first in range(0, count, _BATCH)]
    own = range(place.rank, len(sizes), place.processes)
    kept: list[Tensor] = []
    whole = torch.zeros(count, *vdm.shape, dtype=vdm.decoder.dtype, device=vdm.device)
    shown = progress if place.leads else False
    with torch.no_grad(), telling(shown, "sampling", "steps") as tell:
        for done, part in enumerate(own):
            generator = torch.Generator(vdm.device).manual_seed(derived_seed(seed, part))
            rows = slice(part * _BATCH, part * _BATCH + sizes[part])
            model = given.to(vdm, rows)
            path = model.trajectory(
                sizes[part], gammas=by.gammas, sampler=by.sampler, generator=generator
            )
            for step, (gamma, z) in until(stopped, enumerate(path)):
                if frames and part == 0 and step * frames // steps > (step - 1) * frames // steps:
                    estimate = model.denoise(z, gamma).x
                    shown_now = [vdm.decoder.decode(values) for values in (z, estimate)]
                    kept.append(torch.stack(shown_now))
                share = (done + step / steps) / len(own)
                tell(share, done * steps + step, partial("γ = {:.1f}".format, float(gamma)))
            if stopped():
                if not done or place.processes > 1:
                    raise KeyboardInterrupt
                whole = whole[: rows.start]
                break
            whole[rows] = vdm.decoder.sample(z, gamma, generator)
    samples = sum_over_processes(whole).cpu().numpy()
    stages = [stage.cpu().numpy() for stage in kept]
    stages += [np.stack([samples[: sizes[0]]] * 2)] if kept else []
    return samples, np.stack(stages) if stages else np.empty((0, 2, *samples.shape))


def sampling_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take what `sampling_of` takes out of other arguments."""
    names = ("sampler", "steps", "grid", "variance", "eta", "stop_early", "clip")
    return {name: options.pop(name) for name in names if name in options}


def _stop(vdm: VDM, share: float | None, steps: int) -> float | None:
    """Return the γ from which the last step is taken; None for a grid that goes all the way."""
    if share == 0:
        return None
    if share is None:
        return vdm.stop_early(steps)
    if not isinstance(vdm.decoder, Discretized):
        raise InputError(f"stop_early = {share:g}: real-valued data have no range; leave it out")
    gamma = vdm.decoder.gamma_at(share)
    gamma_0, gamma_1 = (float(end) for end in vdm.schedule.end_points)
    if not gamma_0 < gamma < gamma_1:
        low, high = (vdm.decoder.noise_at(end) for end in (gamma_0, gamma_1))
        raise InputError(
            f"stop_early = {share:g}: this model's noise is {low:.2g} to {high:.2g} of the range; "
            "give a share between, or 0"
        )
    return gamma


def _smallest(samples: np.ndarray, levels: int | None) -> np.ndarray:
    """Return integers in the smallest unsigned type that holds all levels."""
    return samples if levels is None else samples.astype(np.min_scalar_type(levels - 1))
