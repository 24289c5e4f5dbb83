"""How good samples of a run's model are: what `vdm quality` measures."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from variational_diffusion.config import DataConfig
from variational_diffusion.data import Split, open_dataset
from variational_diffusion.data.source import Standardised, standardised
from variational_diffusion.errors import GoneError, InputError, whole
from variational_diffusion.images.pictures import PICTURES, is_image, save_sheet
from variational_diffusion.machine.execution import Execution
from variational_diffusion.machine.progress import Listener, nothing, telling
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
from variational_diffusion.run.conditions import given_by
from variational_diffusion.run.directory import Run
from variational_diffusion.run.examples import Data, examples_for, own_data
from variational_diffusion.run.samples import draw, sampling_of, sampling_options
from variational_diffusion.run.trained import Trained
from variational_diffusion.storage.files import check_targets, expanded

LOG = logging.getLogger(__name__)

_CLASSIFIER = "quality-classifier.safetensors"
_SHOWN, _NEAREST = 8, 7
_TOGETHER = 1000


@dataclass(frozen=True, eq=False)
class Quality:
    """How far samples are from test data.

    Attributes:
        source: what the samples are. samples: how many.
        distances: of "samples", and of as many "train" and "validation" examples: the name of a
            distance → its value with its error.
        counts: how many examples the others are.
        reference: the test data. data: their source. features: name and digest.
        nearest: median distances to the nearest training image; None where they were not asked for.
    """

    source: str
    samples: int
    distances: dict[str, dict[str, Estimate]]
    counts: dict[str, int]
    reference: Split
    data: str
    features: tuple[str, str]
    nearest: dict[str, float] | None

    def as_json(self) -> dict[str, Any]:
        """Return what `vdm quality --json` prints."""
        name, digest = self.features
        return {
            "samples": self.samples,
            "source": self.source,
            "reference": {"data": self.data, **self.reference.as_json()},
            "features": {"name": name, "digest": digest},
            "distances": {
                of: {
                    name: {"value": one.value, "standard_error": one.error}
                    for name, one in distances.items()
                }
                for of, distances in self.distances.items()
            },
            "nearest": self.nearest,
        }


def quality(
    run: Run | str | Path,
    data: Data | None = None,
    *,
    samples: str | Path | None = None,
    n: int = 1000,
    features: str | None = None,
    seed: int = 0,
    nearest: str | Path | None = None,
    weights: str = "ema",
    progress: bool | Listener = False,
    **options: Any,
) -> Quality:
    """Measure how far samples of a run's model are from its test data, or from other data.

    Real values are standardised as the model's are, so that distances do not depend on the units.
    As many training and validation examples are measured, too: no model can be expected to do
    better. The first time, a small classifier is trained on the training data and kept in the run.
    `vdm quality` gives the same figures.

    Args:
        run: A run, or its directory.
        data: As at `evaluate`; None: the run's own test examples.
        samples: An .npy file or a folder of images in place of the model's samples.
        n: Number of samples.
        features: "classifier", "inception", "pixels", or another run's classifier file; None: the
            classifier for images, else the values.
        seed: Of the draw.
        nearest: Write the samples that are closest to training images, and these, as this .png.
        weights: As at `evaluate`.
        progress: As at `evaluate`.
        **options: Those of `Run.sample` that say how samples are drawn, and of `Execution`.

    Returns:
        Distances with their errors, as in `.distances["samples"]["fid"]`.

    Raises:
        InputError: For samples or features that are not of the model's kind.
    """
    whole("seed", seed, 0)
    check_targets(nearest=(nearest, PICTURES))
    how = sampling_options(options)
    execution = Execution(**options)
    run = run if isinstance(run, Run) else Run.open(run)
    levels = run.config.data.levels
    with execution.begun() as device:
        try:
            own = own_data(run).splits
        except GoneError as error:
            if data is None or nearest is not None:
                raise
            LOG.info("%s; only the samples are compared with these data", error)
            own = {}
        splits = {name: in_units(run, split) for name, split in own.items()}
        if nearest is not None and not is_image(splits["train"].shape):
            raise InputError(f"nearest = '{nearest}': these examples are not images; leave it out")
        found_features = features_for(run, features, device, progress=progress)
        against = in_units(run, examples_for(run, data, None, n))
        test = _shuffled(against)
        reference = Reference(test, found_features, levels=levels)
        compared = [name for name in ("train", "validation") if name in splits]
        sets = {name: _shuffled(splits[name].sample(n)) for name in compared}
        if samples is not None:
            what, values = f"samples in {samples}", _given(str(samples), run, n)
        else:
            trained = Trained.open(run, weights, execution)
            given = given_by(run, trained.vdm, n, seed)
            by = sampling_of(trained, **how, progress=progress)
            what = f"samples of {by.name} in {len(by.gammas) - 1} steps, seed {seed}"
            values, _ = draw(by, n, seed=seed, given=given, progress=progress)
            if levels is None:
                values = standardised(values, *_units(run))
        every = {"samples": values} | sets
        copies = None
        if nearest is not None:
            copies = _write_nearest(
                expanded(nearest), values, test, splits["train"], levels, progress
            )
        return Quality(
            source=what,
            samples=len(values),
            distances={name: reference.distances(x) for name, x in every.items()},
            counts={name: len(x) for name, x in sets.items()},
            reference=against,
            data=run.config.data.source if data is None else _named(data),
            features=(found_features.name, found_features.digest),
            nearest=copies,
        )


def _named(data: Data) -> str:
    return str(data) if isinstance(data, str | Path) else type(data).__name__


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


def features_for(
    run: Run, wanted: str | None, device: torch.device, *, progress: bool | Listener = False
) -> Features:
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
        path = expanded(wanted)
        if not path.is_file():
            raise InputError(
                f"features = '{wanted}': known are classifier, inception, pixels and the file "
                f"{_CLASSIFIER} of another run"
            )
    elif not path.exists():
        try:
            split = in_units(run, own_data(run).splits["train"])
        except GoneError as error:
            raise GoneError(f"{error}; or type --features pixels, which learn nothing") from error
        labels = labels_of(run.config.data, "train")
        classifier = new_classifier(split, labels).to(device)
        right: list[float] = []
        with telling(progress, "training the classifier", "steps") as tell:
            for share in fit_classifier(classifier, split, labels, steps=STEPS):
                right.append(share)
                tell(len(right) / STEPS, len(right), lambda: f"{np.mean(right[-50:]):.0%} right")
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
    path: Path,
    samples: np.ndarray,
    test: np.ndarray,
    train: Split,
    levels: int | None,
    progress: bool | Listener,
) -> dict[str, float]:
    """Write the samples closest to training images, each followed by these; return how close.

    Distances are of the pixels, 0 to 1.
    """
    pixels = Pixels(levels)
    both = features_of(pixels, np.concatenate([samples, test]))
    rows, distances = nearest(both, _parts(train, pixels, progress), _NEAREST)
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


def _parts(split: Split, features: Features, progress: bool | Listener) -> Iterator[np.ndarray]:
    with telling(progress, "comparing with training images", "images") as tell:
        for first in range(0, len(split), _TOGETHER):
            last = min(first + _TOGETHER, len(split))
            yield features_of(features, split.read(np.arange(first, last)))
            tell(last / len(split), last, nothing)
