"""`vdm sample`: draw examples from a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from variational_diffusion.cli.columns import ENDINGS, check_target, write_columns
from variational_diffusion.cli.conditioning import NOTHING, Given, given_by, given_options
from variational_diffusion.cli.console import Meter
from variational_diffusion.cli.devices import speed_options, speed_up, use_device
from variational_diffusion.cli.options import device_options, weights_option
from variational_diffusion.cli.samplers import sampling_of, sampling_options
from variational_diffusion.conditions import Batch, Labels
from variational_diffusion.errors import InputError
from variational_diffusion.grids import Gammas, uniform_in_time
from variational_diffusion.images.pictures import animation, check_animation, save_image, save_sheet
from variational_diffusion.likelihood import ContinuousBound, evaluate, example_columns
from variational_diffusion.machine.distributed import (
    ALONE,
    DAYS,
    Place,
    processes,
    sum_over_processes,
)
from variational_diffusion.model import VDM
from variational_diffusion.numerics import derived_seed
from variational_diffusion.run.directory import Run
from variational_diffusion.sampling import Sampler, default_for
from variational_diffusion.storage.files import atomic, unused

_FRAMES = 48
_BATCH = 250


@click.command()
@click.argument("run")
@click.option("--n", "count", type=click.IntRange(1), default=64, help="How many.")
@sampling_options
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of the draw.")
@click.option(
    "--out",
    help="A .png sheet, an .npy array, or a folder for single files; default: in the run.",
)
@click.option(
    "--with-likelihood",
    "likelihood",
    is_flag=True,
    help="Also write the bits per dimension of every sample, as .csv beside it.",
)
@click.option("--animate", help="Also write z_t and x̂ on the way as this .gif, .webp or .mp4.")
@given_options
@weights_option
@speed_options
@device_options
def command(
    run: str,
    count: int,
    seed: int,
    out: str | None,
    animate: str | None,
    likelihood: bool,
    weights: str,
    compile_mode: str,
    channels_last: bool,
    device: str,
    threads: int | None,
    **options: Any,
) -> None:
    """Draw examples from the model in RUN.

    Started by torchrun, the processes share the examples out; they are the same for any number.
    """
    target = use_device(device, threads)
    opened = Run.open(run)
    vdm = opened.load(weights).to(target)
    speed_up(vdm, compile_mode=compile_mode, channels_last=channels_last)
    is_image = len(vdm.shape) == 3 and vdm.shape[0] in (1, 3, 4)
    if out is None:
        by = options["sampler"] or default_for(vdm.shape)
        name = f"{by}-{options['steps']}-seed-{seed}{'.png' if is_image else '.npy'}"
        path = unused(opened.path / "samples" / name)
    else:
        path = Path(out)
    _check_targets(path, animate, is_image)
    table = path.with_suffix(".csv") if path.suffix else path / "likelihood.csv"
    if likelihood:
        check_target("with_likelihood", str(table), ENDINGS)
    given = given_by(opened, vdm, count, seed, options)
    drawn_labels = path.with_suffix(".labels.csv") if path.suffix else path / "labels.csv"
    if given.drawn:
        check_target("out", str(drawn_labels), ENDINGS)
    with processes(target, DAYS) as place:
        sampled, sampler, gammas = sampling_of(opened, vdm, weights, options)
        samples, frames = draw(
            sampled,
            count,
            sampler=sampler,
            gammas=gammas,
            seed=seed,
            frames=_FRAMES if animate else 0,
            place=place,
            given=given,
        )
        if not place.leads:
            return
    levels = opened.config.data.levels
    labels = None
    if isinstance(vdm.condition, Labels) and given.values is not None:
        labels = given.columns(vdm)["label"].tolist()
    write_samples(path, samples, levels, labels)
    click.echo(path)
    if given.drawn:
        write_columns(drawn_labels, given.columns(vdm))
        click.echo(f"labels drawn by their shares of the training data: {drawn_labels}")
    if likelihood:
        columns = likelihoods(vdm, samples, seed=seed, condition=given.values)
        write_columns(table, columns)
        bits = columns["bits_per_dim"]
        click.echo(f"{table}   (mean {bits.mean():.3f}, from {bits.min():.3f} to {bits.max():.3f})")
    if animate:
        animation(frames, levels, Path(animate))
        click.echo(animate)


def draw(
    vdm: VDM,
    count: int,
    *,
    sampler: str | Sampler,
    steps: int | None = None,
    gammas: Gammas | None = None,
    seed: int,
    frames: int = 0,
    place: Place = ALONE,
    given: Given = NOTHING,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw examples with a progress bar; return them and up to `frames` + 1 stages of the way.

    A stage is of shape (2, n, *shape): z, and beside it x̂(z), which takes one more evaluation of
    the network.

    They are drawn in parts of 250, each with its own generator, which several processes share out;
    all of them get all examples. The stages are those of the first part, in the leading process.
    sampler, steps, gammas: as in `VDM.trajectory`.
    """
    if gammas is None:
        assert steps is not None
        gammas = uniform_in_time(vdm.schedule, steps)
    steps = len(gammas) - 1
    sizes = [min(_BATCH, count - first) for first in range(0, count, _BATCH)]
    own = range(place.rank, len(sizes), place.processes)
    like = vdm.schedule.initial_end_points
    kept: list[Tensor] = []
    whole = torch.zeros(count, *vdm.shape, dtype=vdm.decoder.dtype, device=like.device)
    with (
        torch.no_grad(),
        Meter("sampling", "steps") if place.leads else nullcontext() as meter,
    ):
        for done, part in enumerate(own):
            generator = torch.Generator(like.device).manual_seed(derived_seed(seed, part))
            rows = slice(part * _BATCH, part * _BATCH + sizes[part])
            model = given.to(vdm, rows)
            path = model.trajectory(
                sizes[part], gammas=gammas, sampler=sampler, generator=generator
            )
            for step, (gamma, z) in enumerate(path):
                if frames and part == 0 and step * frames // steps > (step - 1) * frames // steps:
                    estimate = model.denoise(z, gamma).x
                    shown = [vdm.decoder.decode(values) for values in (z, estimate)]
                    kept.append(torch.stack(shown))
                if meter is not None:
                    share = (done + step / steps) / len(own)
                    note = partial("γ = {:.1f}".format, float(gamma))
                    meter.update(share, done * steps + step, note)
            whole[rows] = vdm.decoder.sample(z, gamma, generator)
    samples = sum_over_processes(whole).cpu().numpy()
    stages = [stage.cpu().numpy() for stage in kept]
    stages += [np.stack([samples[: sizes[0]]] * 2)] if kept else []
    return samples, np.stack(stages) if stages else np.empty((0, 2, *samples.shape))


def likelihoods(
    vdm: VDM, samples: np.ndarray, *, seed: int, condition: Tensor | None = None
) -> dict[str, np.ndarray]:
    """Return the bound of every sample, term by term in bits per dimension, as columns.

    condition: what they were given, one value for each; it is then the bound on −log p(x|c).
    """
    device = vdm.schedule.gamma_0.device
    generator = torch.Generator(device).manual_seed(derived_seed(seed, 1))
    examples = torch.from_numpy(samples).split(_BATCH)
    parts: Sequence[Batch] = examples
    if condition is not None:
        parts = list(zip(examples, condition.split(_BATCH), strict=True))
    rounds = [list(evaluate(vdm, parts, ContinuousBound(8), generator=generator)) for _ in range(2)]
    columns = example_columns(*rounds, dimensions=vdm.dimensions)
    return {name: column.numpy() for name, column in columns.items()}


def write_samples(
    path: Path, samples: np.ndarray, levels: int | None, captions: list[str] | None = None
) -> None:
    """Write a .png sheet, with captions if there are any, an .npy array, or single images."""
    if path.suffix == ".npy":
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.save(file, _smallest(samples, levels))
    elif path.suffix == ".png":
        save_sheet(samples, levels, path, captions=captions)
    else:
        path.mkdir(parents=True, exist_ok=True)
        for i, sample in enumerate(samples):
            save_image(sample, levels, path / f"{i:05}.png")


def _smallest(samples: np.ndarray, levels: int | None) -> np.ndarray:
    """Return integers in the smallest unsigned type that holds all levels."""
    return samples if levels is None else samples.astype(np.min_scalar_type(levels - 1))


def _check_targets(path: Path, animate: str | None, is_image: bool) -> None:
    """Refuse before drawing what could not be written after it."""
    if not is_image and (path.suffix != ".npy" or animate):
        raise InputError(f"out = '{path}': these samples are no images; give --out FILE.npy")
    if path.suffix not in (".png", ".npy", ""):
        raise InputError(f"out = '{path}': give a .png sheet, an .npy array or a folder")
    if path.suffix and path.exists():
        raise InputError(f"out = '{path}' exists: give another --out")
    if path.is_dir() and any(path.iterdir()):
        raise InputError(f"out = '{path}' is not empty: give another --out")
    if animate:
        check_animation(animate)
