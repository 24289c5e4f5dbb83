"""`vdm quality`: how good samples are, in numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from variational_diffusion.cli.columns import check_target
from variational_diffusion.cli.conditioning import own_conditions
from variational_diffusion.cli.console import Meter, print_json, print_table
from variational_diffusion.cli.devices import use_device
from variational_diffusion.cli.options import device_options, weights_option
from variational_diffusion.cli.sample import draw
from variational_diffusion.cli.samplers import sampling_of, sampling_options
from variational_diffusion.config import DataConfig
from variational_diffusion.data import Split, open_dataset
from variational_diffusion.data.source import Standardised, standardised
from variational_diffusion.errors import InputError
from variational_diffusion.images.pictures import is_image, save_sheet
from variational_diffusion.quality import (
    Estimate,
    Features,
    Inception,
    Pixels,
    Reference,
    features_of,
    fit_classifier,
    labels_of,
    load_classifier,
    nearest,
    new_classifier,
    save_classifier,
)
from variational_diffusion.quality.classifier import STEPS
from variational_diffusion.run.directory import Run
from variational_diffusion.run.examples import chosen_examples

_CLASSIFIER = "quality-classifier.safetensors"
_SHOWN, _NEAREST = 8, 7
_TOGETHER = 1000


@click.command()
@click.argument("run")
@click.argument("data", required=False)
@click.option("--samples", "given", help="An .npy file or a folder of images, not the model's.")
@click.option("--n", "count", type=click.IntRange(1), default=1000, help="How many (default 1000).")
@click.option(
    "--features",
    "wanted",
    help="classifier (default for images), inception, pixels, or another run's classifier file.",
)
@sampling_options
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of the draw.")
@click.option(
    "--nearest",
    "sheet",
    help="Write the samples that are closest to training images, and these, as this .png.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@weights_option
@device_options
def command(
    run: str,
    data: str | None,
    given: str | None,
    count: int,
    wanted: str | None,
    seed: int,
    sheet: str | None,
    as_json: bool,
    weights: str,
    device: str,
    threads: int | None,
    **options: Any,
) -> None:
    """Measure how far samples of the model in RUN are from its test data, or from DATA.

    Real values are standardised as the model's are, so that distances do not depend on the units.

    Beside them stand the same numbers of as many training and validation examples: no model can be
    expected to do better. The first time, a small classifier is trained on the training data and
    kept in RUN; only numbers of the same features and of equally many examples can be compared.
    """
    check_target("nearest", sheet, (".png", ".webp"))
    target = use_device(device, threads)
    opened = Run.open(run)
    splits = {
        name: in_units(opened, split)
        for name, split in open_dataset(opened.config.data).splits.items()
    }
    levels = opened.config.data.levels
    if sheet is not None and not is_image(splits["train"].shape):
        raise InputError(f"nearest = '{sheet}': these examples are no images; leave it out")
    features = features_for(opened, wanted, target)
    against = in_units(opened, chosen_examples(opened, data, None, count))
    test = _shuffled(against)
    reference = Reference(test, features, levels=levels)
    sets = {name: _shuffled(splits[name].sample(count)) for name in ("train", "validation")}
    if given is not None:
        what, samples = f"samples in {given}", _given(given, opened, count)
    else:
        vdm = opened.load(weights).to(target)
        own = own_conditions(opened, vdm, count, seed)
        sampled, sampler, gammas = sampling_of(opened, vdm, weights, options)
        what = f"samples of {options['sampler']} in {options['steps']} steps, seed {seed}"
        samples, _ = draw(sampled, count, sampler=sampler, gammas=gammas, seed=seed, given=own)
        if levels is None:
            samples = standardised(samples, *_units(opened))
    found = {name: reference.distances(x) for name, x in {"samples": samples, **sets}.items()}
    copies = None
    if sheet is not None:
        copies = _write_nearest(Path(sheet), samples, test, splits["train"], levels)
        click.echo(f"nearest training images: {sheet}", err=True)
    name = f"{features.name} {features.digest[:8]}"
    if as_json:
        print_json(
            {
                "samples": len(samples),
                "source": what,
                "reference": {"data": data or opened.config.data.source, **against.as_json()},
                "features": {"name": features.name, "digest": features.digest},
                "distances": {of: _as_json(distances) for of, distances in found.items()},
                "nearest": copies,
            }
        )
        return
    measures = found["samples"]
    print_table(
        f"{len(samples)} {what}, against {against.description}; features: {name}",
        ["", "samples", *(f"{len(examples)} {of}" for of, examples in sets.items())],
        [(measure, *(_as_text(of[measure]) for of in found.values())) for measure in measures],
    )
    if copies is not None:
        click.echo(
            f"median distance to the nearest training image: samples {copies['samples']:.3f}, test "
            f"images {copies['test']:.3f}; nearer than 1 % of the test images: "
            f"{copies['share']:.1%} of the samples"
        )


def in_units(run: Run, split: Split) -> Split:
    """Return a split of real values as the run's model sees them: distances have no unit then."""
    if split.levels is not None:
        return split
    return replace(split, source=Standardised(split.source, *_units(run)))


def _units(run: Run) -> tuple[list[float], list[float]]:
    """Return location and scale of the run's data, for each entry of the first axis."""
    options, m = run.config.model.decoder.options, run.config.model.shape[0]
    location, scale = (np.broadcast_to(options[key], m).tolist() for key in ("location", "scale"))
    return location, scale


def features_for(run: Run, wanted: str | None, device: torch.device) -> Features:
    """Return the features that are asked for; train and keep a classifier where there is none."""
    levels = run.config.data.levels
    path = run.path / _CLASSIFIER
    if wanted is None:
        wanted = "classifier" if len(run.config.model.shape) == 3 else "pixels"
    if wanted == "pixels":
        return Pixels(levels)
    if wanted == "inception":
        return Inception(levels)
    if wanted != "classifier":
        path = Path(wanted)
        if not path.is_file():
            raise InputError(
                f"features = '{wanted}': known are classifier, inception, pixels and the file "
                f"{_CLASSIFIER} of another run"
            )
    elif not path.exists():
        split = in_units(run, open_dataset(run.config.data).splits["train"])
        labels = labels_of(run.config.data, "train")
        classifier = new_classifier(split, labels).to(device)
        right: list[float] = []
        with Meter("training the classifier", "steps") as meter:
            for share in fit_classifier(classifier, split, labels, steps=STEPS):
                right.append(share)
                meter.update(
                    len(right) / STEPS, len(right), lambda: f"{np.mean(right[-50:]):.0%} right"
                )
        learned = "turns" if labels is None else "labels"
        save_classifier(path, classifier, learned=learned, right=f"{np.mean(right[-50:]):.3f}")
    classifier = load_classifier(path).to(device)
    if classifier.options["shape"] != run.config.model.shape or classifier.levels != levels:
        raise InputError(
            f"features = '{wanted}': they are of shape {classifier.options['shape']} and levels "
            f"{classifier.levels}, the run's data of {run.config.model.shape} and {levels}"
        )
    return classifier


def _given(path: str, run: Run, count: int) -> np.ndarray:
    """Return examples of an .npy file or a folder, which must be of the model's kind."""
    levels, shape = run.config.data.levels, run.config.model.shape
    split = open_dataset(DataConfig(source=path)).everything()
    if split.shape != shape or (split.levels is None) != (levels is None):
        raise InputError(
            f"samples = '{path}' have shape {split.shape} and levels {split.levels}: the model in "
            f"'{run.path}' has shape {shape} and levels {levels}"
        )
    samples = _shuffled(in_units(run, split.sample(count)))
    if levels is not None and samples.max() >= levels:
        raise InputError(
            f"samples = '{path}' have the value {samples.max()}: the model in '{run.path}' has "
            f"levels 0 to {levels - 1}; save samples with vdm sample --out FILE.npy"
        )
    return samples


def _shuffled(split: Split) -> np.ndarray:
    """Return all examples in an order that is always the same.

    Data may be in the order of their classes, and errors come from blocks of examples.
    """
    return split.read(np.random.default_rng(0).permutation(len(split)))


def _write_nearest(
    path: Path, samples: np.ndarray, test: np.ndarray, train: Split, levels: int | None
) -> dict[str, float]:
    """Write the samples closest to training images, each followed by these; return how close.

    Distances are of the pixels, 0 to 1.
    """
    pixels = Pixels(levels)
    both = features_of(pixels, np.concatenate([samples, test]))
    rows, distances = nearest(both, _parts(train, pixels), _NEAREST)
    of_samples, of_test = np.split(distances[:, 0], [len(samples)])
    closest = np.argsort(of_samples)[:_SHOWN]
    found = train.read(rows[closest].ravel()).reshape(len(closest), -1, *train.shape)
    pictures = np.concatenate([samples[closest, None].astype(found.dtype), found], axis=1)
    save_sheet(pictures.reshape(-1, *train.shape), levels, path, columns=1 + _NEAREST)
    return {
        "samples": float(np.median(of_samples)),
        "test": float(np.median(of_test)),
        "share": float((of_samples < np.quantile(of_test, 0.01)).mean()),
    }


def _parts(split: Split, features: Features) -> Iterator[np.ndarray]:
    with Meter("comparing with training images", "images") as meter:
        for first in range(0, len(split), _TOGETHER):
            last = min(first + _TOGETHER, len(split))
            yield features_of(features, split.read(np.arange(first, last)))
            meter.update(last / len(split), last, lambda: "")


def _as_text(estimate: Estimate) -> str:
    return f"{estimate.value:.4f} ± {estimate.error:.4f}"


def _as_json(distances: dict[str, Estimate]) -> dict[str, dict[str, float]]:
    return {
        name: {"value": one.value, "standard_error": one.error} for name, one in distances.items()
    }
