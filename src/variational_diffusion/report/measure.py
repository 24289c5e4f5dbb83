"""What a report measures: one function a section, in a table."""

from __future__ import annotations

import logging
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from variational_diffusion.compression.baselines import code_lengths
from variational_diffusion.data import Dataset, Split
from variational_diffusion.errors import InputError
from variational_diffusion.images.pictures import is_image
from variational_diffusion.likelihood import bits_of_entries
from variational_diffusion.likelihood.loss_profile import measured_variances, profile
from variational_diffusion.machine.environment import processor, version
from variational_diffusion.machine.execution import Execution
from variational_diffusion.machine.progress import Listener, nothing, telling
from variational_diffusion.model import VDM
from variational_diffusion.quality import nearest
from variational_diffusion.report.page import check_replaceable, render, write_page
from variational_diffusion.run import evaluations as run_evaluations
from variational_diffusion.run.comparison import compare
from variational_diffusion.run.directory import Run
from variational_diffusion.run.evaluation import evaluate
from variational_diffusion.run.examples import own_data
from variational_diffusion.run.learned_schedule import BINS, measure_split
from variational_diffusion.run.measurements import Section, read_section, write_section
from variational_diffusion.run.samples import sample
from variational_diffusion.run.trained import Trained
from variational_diffusion.sampling import DEFAULT_STEPS, default_for, named
from variational_diffusion.storage.files import expanded
from variational_diffusion.storage.tensors import read_metadata

LOG = logging.getLogger(__name__)

_SEED = 0
_TIMES = 401
_FRAMES = 32
_FILM_WIDTH = 240
"""Pixels that the images of an animation take side by side, if one is not wider."""
_NEIGHBOURS = 3
_CARDS = 12
_EXTREMES = 8
_CANDIDATES = 32
"""Of which the most and least likely are taken, once more draws have told which they are."""
_POINTS = 1000
_TOGETHER = 1024
"""Training examples that are compared at once."""
_DRAWS_OF_MAPS = 16


class Subject:
    """The run that a report is about; its model and its data are opened when they are needed."""

    def __init__(
        self,
        run: Run,
        weights: str,
        execution: Execution,
        progress: bool | Listener = False,
    ) -> None:
        self.run, self.weights, self.execution = run, weights, execution
        self.progress = progress

    @cached_property
    def trained(self) -> Trained:
        return Trained.open(self.run, self.weights, self.execution)

    @property
    def vdm(self) -> VDM:
        """The model alone."""
        return self.trained.vdm

    @cached_property
    def device(self) -> torch.device:
        """The device that it computes on."""
        return self.execution.target()

    @cached_property
    def data(self) -> Dataset:
        """The data; raises InputError where they are gone."""
        return own_data(self.run)

    @property
    def images(self) -> bool:
        """Whether the examples are images."""
        return is_image(self.run.config.model.shape)


Options = dict[str, Any]
Before = Mapping[str, Section]


class Part(NamedTuple):
    """A section of a report, and how it is measured.

    defaults: of its options, values or functions of an example's shape; None: the section is made
        where somebody asked for it. follows: the section that
        it is made of, and not without.
    """

    measure: Callable[[Subject, Options, Before], Section]
    defaults: Options
    follows: str | None = None


def measured_sections(
    subject: Subject, asked: Options, *, refresh: bool = False
) -> tuple[dict[str, Section], list[str], list[str]]:
    """Return the sections that there are, those measured now, and a line for each left out.

    asked: option → value, None for what was measured before, or else the default.
    refresh: measure everything again.
    """
    found: dict[str, Section] = {}
    new: list[str] = []
    missing: dict[str, list[str]] = {}
    for name, part in PARTS.items():
        if part.follows is not None and part.follows not in found:
            continue
        own = {key: asked[key] for key in part.defaults}
        if part.follows is not None:
            own["of"] = found[part.follows].digest
        section = None if refresh else _stored(subject, name, own)
        if section is None:
            defaults = {
                key: value(subject.run.config.model.shape) if callable(value) else value
                for key, value in part.defaults.items()
            }
            options = {k: defaults[k] if v is None else v for k, v in own.items() if k != "of"}
            if None in options.values():
                continue
            start = time.monotonic()
            try:
                section = part.measure(subject, options, found)
            except InputError as error:
                missing.setdefault(str(error), []).append(name)
                continue
            values = section.values | {
                "seconds": time.monotonic() - start,
                "environment": _place(subject.device),
            }
            section = Section(section.arrays, values, options | _only_of(own))
            write_section(subject.run, name, subject.weights, section)
            section = _stored(subject, name, own)
            assert section is not None
            new.append(name)
        found[name] = section
    return found, new, [f"{', '.join(names)} left out: {why}" for why, names in missing.items()]


def _stored(subject: Subject, name: str, options: Options) -> Section | None:
    return read_section(subject.run, name, subject.weights, options)


def _place(device: torch.device) -> dict[str, str]:
    """Return what a measurement ran on, and when."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "variational-diffusion": version(),
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": f"{device.type}, {name}",
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()}",
    }


def _only_of(options: Options) -> Options:
    return {key: value for key, value in options.items() if key == "of"}


def _schedule(subject: Subject, options: Options, before: Before) -> Section:
    vdm = subject.vdm
    t = torch.linspace(0, 1, _TIMES, device=subject.device)
    with torch.no_grad():
        gamma, rate = vdm.schedule.gamma_and_rate(t)
    parameters = sum(parameter.numel() for parameter in vdm.network.parameters())
    arrays = {"t": t.cpu(), "gamma": gamma.cpu(), "rate": rate.cpu()}
    return Section(arrays, {"parameters": parameters}, {})


def _samples(subject: Subject, options: Options, before: Before) -> Section:
    shape, n = subject.run.config.model.shape, options["samples"]
    found = sample(
        subject.trained,
        n,
        sampler=options["sampler"],
        steps=options["steps"],
        seed=_SEED,
        frames=_FRAMES if subject.images else 0,
        progress=subject.progress,
    )
    side = max(1, min(3, _FILM_WIDTH // shape[-1], math.isqrt(n)))
    levels = subject.vdm.levels
    frames = found.frames[:, :, : side**2]  # z_t and its estimate of x, of the first samples
    arrays = {"samples": _small(found.values, levels), "frames": _small(frames, levels)}
    return Section(arrays, {}, {})


def _likelihood(subject: Subject, options: Options, before: Before) -> Section:
    split = subject.data.splits["test"].sample(options["examples"])
    found = evaluate(subject.vdm, split, seed=_SEED, progress=subject.progress)
    levels = subject.vdm.levels
    values = {
        "summary": found.summary.as_json(),
        "classical": {} if levels is None else code_lengths(split.read(), levels),
        "described": split.description,
    }
    columns = {
        name: torch.from_numpy(column)
        for name, column in found.table.items()
        if name not in ("example", "file")
    }
    return Section({"example": torch.arange(len(split)), **columns}, values, {})


def compared(subject: Subject, paths: Sequence[str]) -> list[list[str]] | None:
    """Return each run of --compare with the digest of its weights; None where there is none.

    paths: where none is given, those of the page before, as far as they are still there.
    """
    if paths:
        return [[path, _weights_digest(Run.open(path), subject.weights)] for path in paths]
    before = _stored(subject, "comparison", {})
    if before is None:
        return None
    found = []
    for path, digest in before.options["compare"]:
        try:
            found.append([path, _weights_digest(Run.open(path), subject.weights)])
        except InputError:
            found.append([path, digest])
    return found


def _weights_digest(run: Run, weights: str) -> str:
    return read_metadata(run.weights_path(weights)).get("digest", "")


def _comparison(subject: Subject, options: Options, before: Before) -> Section:
    others = [Run.open(path) for path, _ in options["compare"]]
    found = compare(
        subject.run,
        *others,
        limit=options["examples"],
        weights=subject.weights,
        device=subject.execution.device,
        seed=_SEED,
        progress=subject.progress,
    )
    verdicts = [pair.verdict(found.names) for pair in found.pairs]
    values = found.as_json() | {"verdicts": verdicts, "interval_name": found.interval_name}
    return Section({"bits": found.bits}, values, {})


def _profile(subject: Subject, options: Options, before: Before) -> Section:
    schedule = subject.vdm.schedule
    test = subject.data.splits["test"]
    errors = measure_split(
        subject.vdm,
        test,
        evaluations=options["evaluations"],
        seed=_SEED,
        progress=subject.progress,
    )
    gamma_0, gamma_1 = schedule.end_points.tolist()
    found = profile(errors, (gamma_0, gamma_1), bins=BINS)
    measured = measured_variances(errors, (gamma_0, gamma_1), schedule, bins=BINS)
    names = ("mean", "mean_square", "low", "high")
    values = {
        "gamma_0": gamma_0,
        "gamma_1": gamma_1,
        "evaluations": found.evaluations,
        "variance": measured.values._asdict(),
        "variance_error": measured.errors._asdict(),
    }
    return Section({name: torch.from_numpy(getattr(found, name)) for name in names}, values, {})


def _neighbours(subject: Subject, options: Options, before: Before) -> Section:
    samples = before["samples"].arrays["samples"]
    train = subject.data.splits["train"]
    searched = train.sample(options["training_examples"])
    test = subject.data.splits["test"].sample(len(samples))
    both = _rows(torch.cat([samples, test.__getitems__(np.arange(len(test)))]))
    centre = both.mean(0)  # about which large offsets cost no digits
    positions, distances = nearest(
        both - centre, _parts(searched, centre, subject.progress), _NEIGHBOURS
    )
    rms = torch.from_numpy(distances / math.sqrt(both.shape[1]))
    own, of_test = rms[: len(samples)], rms[len(samples) :]
    closest = own[:, 0].argsort()[: _CARDS if subject.images else 0]
    shown = [
        torch.cat([samples[i : i + 1], searched.__getitems__(positions[i])])
        for i in closest.tolist()
    ]
    arrays = {
        "distances": own,
        "test_distances": of_test,
        "shown": torch.stack(shown) if shown else torch.empty(0),
        "shown_distances": own[closest],
    }
    return Section(arrays, {"searched": searched.description}, {})


def _parts(split: Split, centre: np.ndarray, progress: bool | Listener) -> Iterator[np.ndarray]:
    """Yield a split's examples as rows."""
    with telling(progress, "searching", "examples") as tell:
        for first in range(0, len(split), _TOGETHER):
            last = min(first + _TOGETHER, len(split))
            yield _rows(split.__getitems__(np.arange(first, last))) - centre
            tell(last / len(split), last, nothing)


def _rows(examples: torch.Tensor) -> np.ndarray:
    return examples.flatten(1).double().numpy()


def _examples(subject: Subject, options: Options, before: Before) -> Section:
    test = subject.data.splits["test"]
    if not subject.images:
        points = test.sample(_POINTS)
        return Section({"examples": points.__getitems__(np.arange(len(points)))}, {}, {})
    test = test.sample(before["likelihood"].options["examples"])
    order = before["likelihood"].arrays["bits_per_dim"].argsort()
    candidates = min(_CANDIDATES, len(order) // 2)
    generator = torch.Generator(subject.device).manual_seed(_SEED)
    ends = torch.cat([order[:candidates], order[-candidates:]])
    parts = []
    for part in ends.split(_EXTREMES):
        model, x = subject.vdm.given_in(test.batch(part.numpy()))
        parts.append(bits_of_entries(model, x, draws=_DRAWS_OF_MAPS, generator=generator).cpu())
    maps = torch.cat(parts)
    rows = maps.flatten(1).mean(1).argsort()  # the few draws of the likelihood do not decide
    n = min(_EXTREMES, candidates)
    rows = torch.cat([rows[:n], rows[-n:].flip(0)])
    images = test.__getitems__(ends[rows].numpy())
    return Section({"examples": images, "maps": maps[rows]}, {"draws": _DRAWS_OF_MAPS}, {})


def _small(values: np.ndarray, levels: int | None) -> torch.Tensor:
    """Return integers as bytes where these hold all levels."""
    small = values.astype(np.uint8) if levels is not None and levels <= 256 else values
    return torch.from_numpy(np.ascontiguousarray(small))


PARTS: dict[str, Part] = {
    "schedule": Part(_schedule, {}),
    "samples": Part(_samples, {"samples": 64, "sampler": default_for, "steps": DEFAULT_STEPS}),
    "likelihood": Part(_likelihood, {"examples": 1000}),
    "comparison": Part(_comparison, {"compare": None, "examples": 1000}),
    "profile": Part(_profile, {"evaluations": 20_000}),
    "neighbours": Part(_neighbours, {"training_examples": 60_000}, follows="samples"),
    "examples": Part(_examples, {}, follows="likelihood"),
}
"""In the order in which they are measured."""


class Report(NamedTuple):
    """A page about a run.

    measured: the sections that were measured for it. left_out: those that are missing. notes: why,
    a line each. seconds: that all of it took.
    """

    path: Path
    measured: list[str]
    left_out: list[str]
    notes: list[str]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Return what `vdm report --json` prints."""
        return {
            "report": str(self.path),
            "bytes": self.path.stat().st_size,
            "seconds": self.seconds,
            "measured": self.measured,
            "left_out": self.left_out,
        }


def report(
    run: Run | str | Path,
    out: str | Path | None = None,
    *,
    examples: int | None = None,
    samples: int | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    evaluations: int | None = None,
    training_examples: int | None = None,
    compare: Sequence[str] = (),
    refresh: bool = False,
    weights: str = "ema",
    progress: bool | Listener = False,
    **execution: Any,
) -> Report:
    """Write a page about a run's model: figures, samples, likelihoods, how to repeat them.

    The page is one file, which loads nothing and runs no script. What is measured for it is kept in
    the run, and measured again when the weights have changed or an argument asks for another
    number. An argument that is None takes what there is, or else the default.

    Args:
        run: A run, or its directory.
        out: Name of the page; None: report.html in the run.
        examples: Number of test examples that the bits per dimension are of (default 1000).
        samples: Number of samples (default 64).
        sampler: As at `Run.sample`.
        steps: As at `Run.sample`.
        evaluations: Of the network for the loss profile (default 20,000).
        training_examples: Number of training examples that the samples are compared with (default
            60,000).
        compare: Other runs to compare with, by the same test examples.
        refresh: Measure everything again.
        weights: As at `evaluate`.
        progress: As at `evaluate`.
        **execution: Those of `Execution`, as at `evaluate`.

    Returns:
        Where the page is, what was measured and what was left out.

    Raises:
        InputError: For a page that cannot be written there.
    """
    start = time.monotonic()
    run = run if isinstance(run, Run) else Run.open(run)
    path = run.path / "report.html" if out is None else expanded(out)
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"out = '{path}': give a name that ends in .html")
    check_replaceable(path)
    if sampler is not None:
        named(sampler)  # refused before the work
    carried = Execution(**execution)
    with carried.begun():
        subject = Subject(run, weights, carried, progress)
        if not run.weights_path(weights).exists():
            run.load(weights)  # it says what is there instead
        others = compared(subject, compare)
        asked = {
            "examples": examples,
            "samples": samples,
            "sampler": sampler,
            "steps": steps,
            "evaluations": evaluations,
            "training_examples": training_examples,
            "compare": others,
        }
        sections, measured, notes = measured_sections(subject, asked, refresh=refresh)
    for note in notes:
        LOG.info(note)
    recorded = run_evaluations.of_weights(run, weights)
    page = render(run, weights, sections, notes=notes, evaluations=recorded)
    write_page(page, path)
    left_out = [name for name in PARTS if name not in sections and (name != "comparison" or others)]
    return Report(path, measured, left_out, notes, time.monotonic() - start)
