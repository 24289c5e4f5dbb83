"""Examples changed by the model of a run: inpainted, restored, varied, interpolated.

The methods are those of `editing`; here they get a run's examples, conditions and schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from variational_diffusion import editing, grids
from variational_diffusion.conditions import parted
from variational_diffusion.decoders import Discretized
from variational_diffusion.editing.masks import Mask, mask_of
from variational_diffusion.editing.operators import Function, Measurement, measurement_named
from variational_diffusion.errors import InputError
from variational_diffusion.images.pictures import is_image, save_sheet
from variational_diffusion.machine.execution import Execution
from variational_diffusion.machine.progress import Listener, nothing, telling
from variational_diffusion.model import VDM
from variational_diffusion.numerics import derived_seed
from variational_diffusion.run.conditions import Given, given_by
from variational_diffusion.run.directory import Run
from variational_diffusion.run.examples import Data, examples_for, other_examples
from variational_diffusion.run.trained import Trained
from variational_diffusion.sampling import Sampler, named
from variational_diffusion.storage.files import atomic, check_target, expanded

EXAMPLES = 8
"""Examples that are changed if nothing else is asked for."""

REPEATS, JUMP = 5, 5
"""Of inpainting: times that each step is done, and steps that are repeated together."""

_BATCH = 100
_ENDINGS = (".png", ".npy")

Steps = Callable[[VDM, Tensor, torch.Generator], Iterator[Tensor]]
"""(model, examples, generator) → z after every step."""


@dataclass(frozen=True, eq=False)
class Edited:
    """Examples that were changed, in the data's own domain.

    Attributes:
        task: Its name.
        results: Shape (examples, results of each, *shape).
        levels: Of the data; None for real values.
        before: What stands to the left of the results on a sheet, shape (examples, n, *shape):
            originals, and what was hidden or measured of them.
        after: What stands to the right.
        figures: Numbers by name.
    """

    task: str
    results: np.ndarray
    levels: int | None
    before: np.ndarray
    after: np.ndarray
    figures: dict[str, float] = field(default_factory=dict)

    def write(self, path: str | Path) -> Path:
        """Write the results as an .npy array, or as a .png sheet, a row for each example."""
        path = expanded(path)
        check_output(path, self.results.shape[2:])
        if path.suffix == ".npy":
            small = None if self.levels is None else np.min_scalar_type(self.levels - 1)
            with atomic(path) as temporary, temporary.open("wb") as file:
                np.save(file, self.results.astype(small or self.results.dtype))
        else:
            rows = np.concatenate([self.before, self.results, self.after], 1)
            rows, columns = rows.reshape(-1, *rows.shape[2:]), rows.shape[1]
            save_sheet(rows, self.levels, path, columns=columns)
        return path

    def as_json(self) -> dict[str, Any]:
        """Return the counts and the figures for a JSON object."""
        examples, results = self.results.shape[:2]
        return {"task": self.task, "examples": examples, "results": results, **self.figures}


def check_output(path: Path, shape: tuple[int, ...]) -> None:
    """Raise `InputError` where results of this shape cannot be written."""
    if path.suffix not in _ENDINGS:
        raise InputError(f"out = '{path}': give a .png sheet or an .npy array")
    if path.suffix == ".png" and not is_image(shape):
        raise InputError(f"out = '{path}': these data are no images; give --out FILE.npy")
    check_target(path)


def inpaint(
    run: Run | str | Path,
    mask: Mask,
    data: Data | None = None,
    *,
    steps: int = 100,
    draws: int = 4,
    repeats: int = REPEATS,
    jump: int = JUMP,
    **chosen: Any,
) -> Edited:
    """Paint the masked part of examples anew; all else comes back as it was: `vdm edit inpaint`.

    Args:
        run: The run, or its directory.
        mask: What is painted anew: booleans of an example's shape, or the path of such an .npy file
            or of a picture, of which the white part is painted.
        data: What the command line calls DATA, an array, a tensor or a `Split`; None: the run's own
            test examples.
        steps: Steps of the chain.
        draws: Results for each example.
        repeats: Times that each step is done; see `editing.inpaint`.
        jump: Steps that are repeated together.
        **chosen: split, limit (8), seed, weights, device, threads, progress; and what the model is
            given: condition ("own" or "none"), label, conditions, guidance, guidance_interval.

    Returns:
        The results, which `Edited.write` writes as a sheet or an array.

    Raises:
        InputError: For a mask of another size, and for examples and conditions that the model does
            not take.

    Source: Lugmayr et al., "RePaint" (2022), algorithm 1.

    Examples:
        >>> mask = np.zeros((1, 8, 8), bool)
        >>> mask[:, :, 4:] = True
        >>> edited = vd.inpaint(run, mask, limit=2, draws=3, steps=4, repeats=1)
        >>> edited.results.shape
        (2, 3, 1, 8, 8)
        >>> original = run.data.splits["test"].sample(2).read()
        >>> bool((edited.results[:, 0, :, :, :4] == original[:, :, :, :4]).all())
        True
    """
    with _job("inpaint", run, **chosen) as job:
        hole = mask_of(mask, job.vdm.shape).to(job.device)
        gammas = job.grid(steps)

        def path(model: VDM, x: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
            return editing.inpaint(
                model, x, hole, gammas, repeats=repeats, jump=jump, generator=generator
            )

        x, given = job.examples(data)
        middle = job.vdm.decoder.decode(torch.zeros(1, *job.vdm.shape, device=job.device))[0]
        hidden = torch.where(hole, middle, x).to(x.dtype)
        return job.edited(job.drawn(x, given, path, steps=steps, draws=draws), [x, hidden])


def restore(
    run: Run | str | Path,
    measurement: str | Function,
    data: Data | None = None,
    *,
    noise: float = 0.02,
    measured: bool = False,
    steps: int = 100,
    draws: int = 4,
    factor: int | None = None,
    width: float | None = None,
    mask: Mask | None = None,
    **chosen: Any,
) -> Edited:
    """Draw examples that agree with a measurement of them: `vdm edit restore`.

    Args:
        run: As at `inpaint`.
        measurement: A name of `MEASUREMENTS`, or a function of encoded examples.
        data: As at `inpaint`; the examples are measured first, unless they are `measured`.
        noise: Standard deviation of the measurement's noise, where data span 2.
        measured: Whether `data` are measurements already.
        steps: Steps of the chain.
        draws: Results for each example.
        factor: Of "downsample": side of the squares.
        width: Of "blur": standard deviation in pixels.
        mask: Of "mask": what is not seen, as at `inpaint`.
        **chosen: As at `inpaint`.

    Returns:
        As `inpaint`, with the figure "residual": root-mean-square distance of the results'
        measurements from those given.

    Raises:
        InputError: As `inpaint`, and for options that the measurement does not have.

    Examples:
        >>> edited = vd.restore(run, "downsample", factor=2, limit=2, draws=1, steps=4)
        >>> edited.results.shape, sorted(edited.figures)
        ((2, 1, 1, 8, 8), ['residual'])
    """
    with _job("restore", run, **chosen) as job:
        hole = None if mask is None else mask_of(mask, job.vdm.shape)
        function = measurement
        if isinstance(function, str):
            function = measurement_named(
                function, job.vdm.shape, factor=factor, width=width, mask=hole
            )
        seen, masked = Measurement(function, noise), measurement == "mask"
        if measured:
            degraded, given = job.measurements(data, function)
            encoded = job.vdm.encode(degraded)
            x, y = None, function(encoded) if masked else encoded
        else:
            x, given = job.examples(data)
            y = seen(job.vdm.encode(x), job.generator())
        gammas = job.grid(steps)

        def path(model: VDM, y: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
            return editing.posterior_samples(model, y, seen, gammas, generator=generator)

        results = job.drawn(y, given, path, steps=steps, draws=draws)
        residual = function(job.vdm.encode(results[:, 0])) - y
        before = [part for part in (x, _visible(job.vdm, y)) if part is not None]
        return job.edited(results, before, residual=float(residual.square().mean().sqrt()))


def vary(
    run: Run | str | Path,
    gamma: float,
    data: Data | None = None,
    *,
    sampler: str | Sampler = "ancestral",
    steps: int = 100,
    draws: int = 4,
    **chosen: Any,
) -> Edited:
    """Put noise on examples up to a level γ and take it off again: `vdm edit vary`.

    Args:
        run: As at `inpaint`.
        gamma: The level: more noise, more change.
        data: As at `inpaint`.
        sampler: A name of `SAMPLERS`.
        steps: Steps of the whole chain; those below γ are taken.
        draws: Results for each example.
        **chosen: As at `inpaint`.

    Returns:
        As `inpaint`.

    Raises:
        InputError: As `inpaint`, and for a γ that is not on the chain.

    Examples:
        >>> vd.vary(run, gamma=0.0, limit=2, draws=3, steps=8).results.shape
        (2, 3, 1, 8, 8)
    """
    carry = named(sampler) if isinstance(sampler, str) else sampler
    with _job("vary", run, **chosen) as job:
        gammas = editing.below(job.grid(steps), gamma)

        def path(model: VDM, x: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
            return editing.variations(model, x, gammas, sampler=carry, generator=generator)

        x, given = job.examples(data)
        results = job.drawn(x, given, path, steps=len(gammas) - 1, draws=draws)
        return job.edited(results, [x])


def interpolate(
    run: Run | str | Path,
    data: Data | None = None,
    *,
    between: int = 6,
    tolerance: float = 1e-4,
    **chosen: Any,
) -> Edited:
    """Go from one example to the next, by pairs, along the ODE: `vdm edit interpolate`.

    Args:
        run: As at `inpaint`.
        data: As at `inpaint`: the first and the second example are a pair, the third and the
            fourth, and so on.
        between: Images between two.
        tolerance: Of the ODE's solver.
        **chosen: As at `inpaint`; a model with conditions goes without them unless label or
            conditions are given.

    Returns:
        As `inpaint`, with the figures "round_trip_exact", the share of the values of the ends that
        come back, and "round_trip_largest", the largest difference.

    Raises:
        InputError: As `inpaint`, and for fewer than two examples.

    Examples:
        >>> edited = vd.interpolate(run, limit=2, between=3, tolerance=1e-2)
        >>> edited.results.shape
        (1, 5, 1, 8, 8)
    """
    with _job("interpolate", run, **chosen) as job:
        x, given = job.examples(data, free=True)
        if len(x) < 2:
            raise InputError("limit = 1: an interpolation takes two examples or more")
        first, second = x[0 : len(x) // 2 * 2 : 2], x[1::2]
        shares = np.linspace(0, 1, between + 2).tolist()
        model = given.to(job.vdm, slice(0, len(first)))
        stages = []
        with telling(job.progress, "interpolating", "images") as tell:
            path = editing.interpolate(
                model, first, second, shares, tolerance=tolerance, generator=job.generator()
            )
            for done, stage in enumerate(path, 1):
                stages.append(stage)
                tell(done / len(shares), done, nothing)
        results = torch.stack(stages, 1)
        difference = (results[:, [0, -1]].double() - torch.stack([first, second], 1).double()).abs()
        return job.edited(
            results,
            [first],
            [second],
            round_trip_exact=float((difference == 0).double().mean()),
            round_trip_largest=float(difference.max()),
        )


@dataclass(frozen=True)
class _Job:
    """One task: the model, its examples, and what it is given. asked: arguments of `given_by`."""

    task: str
    trained: Trained
    split: str | None
    limit: int
    seed: int
    asked: dict[str, Any]
    progress: bool | Listener

    @property
    def vdm(self) -> VDM:
        return self.trained.vdm

    @property
    def device(self) -> torch.device:
        return self.trained.device

    def grid(self, steps: int) -> grids.Gammas:
        """Return the grid of a chain, uniform in time."""
        return grids.uniform_in_time(self.vdm.schedule, steps).detach()

    def generator(self, *numbers: int) -> torch.Generator:
        """Return a source of randomness for one part of the work."""
        return torch.Generator(self.device).manual_seed(derived_seed(self.seed, *numbers))

    def examples(self, data: Data | None, *, free: bool = False) -> tuple[Tensor, Given]:
        """Return the examples to be changed, and what the model is given for each.

        That is what was asked for; otherwise the examples' own conditions, or with `free` nothing.
        """
        kind = "none" if free or self._named() else self.asked["condition"]
        chosen = examples_for(self.trained.run, data, self.split, self.limit, condition=kind)
        x, own = parted(chosen.batch(range(len(chosen))))
        return x.to(self.device), self._given(len(x), own, free)

    def measurements(self, data: Data | None, function: Function) -> tuple[Tensor, Given]:
        """Return the examples of DATA, which have the shape of measurements; as `examples`."""
        if not isinstance(data, str | Path):
            raise InputError(
                f"data = {'none' if data is None else 'an array'}: with --measured, name the data "
                "that were measured"
            )
        shape = tuple(function(torch.zeros(1, *self.vdm.shape)).shape[1:])
        shape = shape if len(shape) == len(self.vdm.shape) else self.vdm.shape
        chosen = other_examples(self.trained.run, str(data), shape).sample(self.limit)
        x, _ = parted(chosen.batch(range(len(chosen))))
        return x.to(self.device), self._given(len(x), None, False)

    def drawn(self, x: Tensor, given: Given, path: Steps, *, steps: int, draws: int) -> Tensor:
        """Return results for every example, shape (n, draws, *shape)."""
        parts = x.split(_BATCH)
        total = len(parts) * draws * steps
        results: list[list[Tensor]] = [[] for _ in range(draws)]
        done = 0
        with telling(self.progress, self.task, "steps") as tell:
            for i, part in enumerate(parts):
                model = given.to(self.vdm, slice(i * _BATCH, i * _BATCH + len(part)))
                for draw, column in enumerate(results):
                    for z in path(model, part, self.generator(1 + i, draw)):
                        done, z_0 = done + 1, z
                        tell(done / total, done, nothing)
                    column.append(editing.to_data(self.vdm, z_0))
        return torch.stack([torch.cat(column) for column in results], 1)

    def edited(
        self,
        results: Tensor,
        before: Sequence[Tensor],
        after: Sequence[Tensor] = (),
        **figures: float,
    ) -> Edited:
        """Return the results with what stands beside them on a sheet."""
        values = results.cpu().numpy()

        def columns(parts: Sequence[Tensor]) -> np.ndarray:
            if not parts:
                return values[:, :0]
            return torch.stack(list(parts), 1).to(results.dtype).cpu().numpy()

        levels = self.vdm.levels
        return Edited(self.task, values, levels, columns(before), columns(after), figures)

    def _named(self) -> bool:
        return bool(self.asked["labels"]) or self.asked["conditions"] is not None

    def _given(self, count: int, own: Tensor | None, free: bool) -> Given:
        asked = dict(self.asked)
        if free and not self._named() and self.vdm.condition is not None:
            asked["condition"] = "none"
        given = given_by(self.trained.run, self.vdm, count, self.seed, **asked)
        if given.values is None or self._named():
            return given
        if own is None:
            raise InputError(
                "label = none: the examples come without conditions; give --label, --conditions "
                "or --condition none"
            )
        return replace(given, values=own, drawn=False)


@contextmanager
def _job(
    task: str,
    run: Run | str | Path,
    *,
    split: str | None = None,
    limit: int | None = None,
    condition: str = "own",
    label: str | Sequence[str] | None = None,
    conditions: str | Path | np.ndarray | Tensor | None = None,
    guidance: float = 1.0,
    guidance_interval: tuple[float, float] | None = None,
    seed: int = 0,
    weights: str = "ema",
    device: str = "auto",
    threads: int | None = None,
    progress: bool | Listener = False,
) -> Iterator[_Job]:
    run = run if isinstance(run, Run) else Run.open(run)
    asked = {
        "condition": condition,
        "labels": (label,) if isinstance(label, str) else tuple(label or ()),
        "conditions": conditions,
        "guidance": guidance,
        "guidance_interval": guidance_interval,
    }
    execution = Execution(device, threads)
    with execution.begun():
        trained = Trained.open(run, weights, execution)
        yield _Job(task, trained, split, limit or EXAMPLES, seed, asked, progress)


def _visible(vdm: VDM, y: Tensor) -> Tensor | None:
    """Return measurements as images of the model's size, or None where they are none."""
    if y.ndim != 4 or not is_image(vdm.shape) or not isinstance(vdm.decoder, Discretized):
        return None
    height, width = vdm.shape[1] // y.shape[2], vdm.shape[2] // y.shape[3]
    large = y.repeat_interleave(height, 2).repeat_interleave(width, 3)
    return vdm.decoder.decode(large.clamp(-1, 1)).expand(-1, vdm.shape[0], -1, -1)
