"""What the tasks of `vdm edit` share: their examples, the drawing, and the writing of results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from variational_diffusion import editing
from variational_diffusion.cli.devices import use_device
from variational_diffusion.cli.shared.console import Meter, print_json
from variational_diffusion.cli.shared.examples import examples_options
from variational_diffusion.cli.shared.options import device_options, weights_option
from variational_diffusion.conditions import parted
from variational_diffusion.decoders import Discretized
from variational_diffusion.errors import InputError
from variational_diffusion.images.pictures import is_image, save_sheet
from variational_diffusion.model import VDM
from variational_diffusion.numerics import derived_seed
from variational_diffusion.run.conditions import Given, given_by, given_options
from variational_diffusion.run.directory import Run
from variational_diffusion.run.examples import chosen_examples, other_examples
from variational_diffusion.storage.files import atomic, unused

Command = TypeVar("Command", bound=Callable[..., Any])
Steps = Callable[[VDM, Tensor, torch.Generator], Iterator[Tensor]]
"""(model, examples, generator) → z after every step."""

_EXAMPLES = 8
_BATCH = 100
_WHITE = 128  # a mask's grey value from which it is white


def task_options(task: Command) -> Command:
    """Add the options that all tasks share; `Job.start` takes them."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
        click.option("--out", help="A .png sheet or an .npy array; default: in the run."),
        click.option("--seed", type=click.IntRange(0), default=0, help="Seed of the draws."),
        weights_option,
        device_options,
        given_options,
        examples_options,
    ):
        task = option(task)
    return task


@dataclass(frozen=True)
class Job:
    """One task: the model, what it is given, and where the results go."""

    task: str
    run: Run
    vdm: VDM
    out: Path
    seed: int
    as_json: bool
    data: str | None
    split: str | None
    limit: int
    options: dict[str, Any]

    @classmethod
    def start(
        cls,
        task: str,
        *,
        run: str,
        data: str | None,
        split: str | None,
        limit: int | None,
        seed: int,
        out: str | None,
        as_json: bool,
        weights: str,
        device: str,
        threads: int | None,
        **options: Any,
    ) -> Job:
        """Open the run, load the model, and refuse a target that could not be written.

        options: those of `given_options`.
        """
        target = use_device(device, threads)
        opened = Run.open(run)
        vdm = opened.load(weights).to(target).eval()
        pictured = is_image(vdm.shape)
        name = f"{task}-seed-{seed}{'.png' if pictured else '.npy'}"
        path = unused(opened.path / "samples" / name) if out is None else Path(out)
        if path.suffix not in (".png", ".npy"):
            raise InputError(f"out = '{path}': give a .png sheet or an .npy array")
        if path.suffix == ".png" and not pictured:
            raise InputError(f"out = '{path}': these data are no images; give --out FILE.npy")
        if path.exists():
            raise InputError(f"out = '{path}' exists: give another --out")
        return cls(task, opened, vdm, path, seed, as_json, data, split, limit or _EXAMPLES, options)

    @property
    def device(self) -> torch.device:
        return self.vdm.schedule.initial_end_points.device

    def examples(self, *, free: bool = False) -> tuple[Tensor, Given]:
        """Return the examples to be changed, and what the model is given for each.

        That is what the options ask for; otherwise the examples' own conditions, or with `free`
        nothing.
        """
        kind = "none" if free or self._asked() else self.options["condition"]
        chosen = chosen_examples(self.run, self.data, self.split, self.limit, condition=kind)
        x, own = parted(chosen.batch(range(len(chosen))))
        return x.to(self.device), self._given(len(x), own, free)

    def _asked(self) -> bool:
        return bool(self.options["labels"]) or self.options["conditions"] is not None

    def _given(self, count: int, own: Tensor | None, free: bool) -> Given:
        options = dict(self.options)
        if free and not self._asked() and self.vdm.condition is not None:
            options["condition"] = "none"
        given = given_by(self.run, self.vdm, count, self.seed, options)
        if given.values is None or self._asked():
            return given
        if own is None:
            raise InputError(
                "label = none: measurements come without conditions; give --label, --conditions "
                "or --condition none"
            )
        return replace(given, values=own, drawn=False)

    def measurements(self, function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Given]:
        """Return the examples of DATA, which have the shape of measurements; as `examples`."""
        if self.data is None:
            raise InputError("data = none: with --measured, name the data that were measured")
        shape = tuple(function(torch.zeros(1, *self.vdm.shape)).shape[1:])
        shape = shape if len(shape) == len(self.vdm.shape) else self.vdm.shape
        chosen = other_examples(self.run, self.data, shape).sample(self.limit)
        x, _ = parted(chosen.batch(range(len(chosen))))
        return x.to(self.device), self._given(len(x), None, False)

    def generator(self, *numbers: int) -> torch.Generator:
        """Return a source of randomness for one part of the work."""
        return torch.Generator(self.device).manual_seed(derived_seed(self.seed, *numbers))

    def drawn(self, x: Tensor, given: Given, path: Steps, *, steps: int, draws: int) -> Tensor:
        """Return results for every example, shape (n, draws, *shape), with a progress bar."""
        parts = x.split(_BATCH)
        total = len(parts) * draws * steps
        results: list[list[Tensor]] = [[] for _ in range(draws)]
        done = 0
        with Meter(self.task, "steps") as meter:
            for i, part in enumerate(parts):
                model = given.to(self.vdm, slice(i * _BATCH, i * _BATCH + len(part)))
                for draw, column in enumerate(results):
                    for z in path(model, part, self.generator(1 + i, draw)):
                        done, z_0 = done + 1, z
                        meter.update(done / total, done, lambda: "")
                    column.append(editing.to_data(self.vdm, z_0))
        return torch.stack([torch.cat(column) for column in results], 1)

    def write(
        self,
        originals: Tensor | None,
        degraded: Tensor | None,
        results: Tensor,
        *,
        last: Tensor | None = None,
        **figures: float,
    ) -> None:
        """Write the results, in a sheet with what they were made of before and after them."""
        if self.out.suffix == ".npy":
            values = results.cpu().numpy()
            levels = self.run.config.data.levels
            with atomic(self.out) as temporary, temporary.open("wb") as file:
                small = values if levels is None else values.astype(np.min_scalar_type(levels - 1))
                np.save(file, small)
        else:
            columns = [x[:, None] for x in (originals, degraded) if x is not None]
            columns += [results] + ([] if last is None else [last[:, None]])
            rows = torch.cat([column.to(results.dtype) for column in columns], 1)
            save_sheet(
                rows.flatten(0, 1).cpu().numpy(),
                self.run.config.data.levels,
                self.out,
                columns=rows.shape[1],
            )
        if self.as_json:
            counts = {"examples": results.shape[0], "results": results.shape[1]}
            print_json({"task": self.task, "out": str(self.out), **counts, **figures})
            return
        click.echo(self.out)
        for name, value in figures.items():
            click.echo(f"{name.replace('_', ' ')}: {value:.4g}")


def read_mask(path: str, shape: tuple[int, ...]) -> Tensor:
    """Return a mask of one example's shape; a picture's holds for all channels."""
    if not Path(path).is_file():
        raise InputError(f"mask = '{path}': there is no such file")
    if Path(path).suffix == ".npy":
        mask = np.load(path, allow_pickle=False)
        if mask.dtype != bool or mask.shape != shape:
            raise InputError(
                f"mask = '{path}' holds {mask.dtype} of shape {mask.shape}: "
                f"give booleans of the shape of an example, {shape}"
            )
        return torch.from_numpy(mask)
    if not is_image(shape):
        raise InputError(f"mask = '{path}': these data are no images; give booleans in an .npy")
    try:
        with Image.open(path) as picture:
            grey = np.asarray(picture.convert("L"))
    except OSError as error:
        raise InputError(f"mask = '{path}': this is no picture that can be read") from error
    if grey.shape != shape[1:]:
        height, width = grey.shape
        raise InputError(
            f"mask = '{path}' has {height}x{width} pixels: the model's images have "
            f"{shape[1]}x{shape[2]}; give a mask of that size"
        )
    return torch.from_numpy(grey >= _WHITE).expand(shape).clone()


def middle(vdm: VDM) -> Tensor:
    """Return the value in the middle of the data's range, to show what is hidden."""
    return vdm.decoder.decode(torch.zeros(1, *vdm.shape, device=vdm.schedule.gamma_0.device))[0]


def visible(vdm: VDM, y: Tensor) -> Tensor | None:
    """Return measurements as images of the model's size, or None where they are none."""
    if y.ndim != 4 or not is_image(vdm.shape) or not isinstance(vdm.decoder, Discretized):
        return None
    height, width = vdm.shape[1] // y.shape[2], vdm.shape[2] // y.shape[3]
    large = y.repeat_interleave(height, 2).repeat_interleave(width, 3)
    return vdm.decoder.decode(large.clamp(-1, 1)).expand(-1, vdm.shape[0], -1, -1)
