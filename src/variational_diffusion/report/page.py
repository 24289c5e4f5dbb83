"""The page itself: one HTML file that loads nothing and runs no script."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from variational_diffusion.errors import InputError
from variational_diffusion.escaping import page_text, typed
from variational_diffusion.report import views
from variational_diffusion.report.commands import training_command
from variational_diffusion.report.curves import training_curves
from variational_diffusion.run.directory import Run
from variational_diffusion.run.measurements import Section
from variational_diffusion.storage.files import atomic, check_target
from variational_diffusion.storage.tensors import read_metadata

_GENERATOR = "variational-diffusion report"
_HEAD = 2000
"""Bytes at the beginning of a page that hold the name of what made it."""


def render(
    run: Run,
    weights: str,
    sections: Mapping[str, Section],
    *,
    notes: Sequence[str] = (),
    evaluations: Sequence[dict[str, Any]] = (),
) -> str:
    """Return the page of a run.

    sections: what was measured, by name; what is missing is left out of the page. notes: why, one
    line each. evaluations: what `vdm evaluate` recorded of these weights. Every text is escaped
    where it is put into the page.
    """
    environment = Environment(
        loader=PackageLoader("variational_diffusion.report", "."),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        generator=_GENERATOR,
        weights=weights,
        notes=list(notes),
        estimates=views.estimates(evaluations),
        **_context(run, weights, dict(sections)),
    )


def _shown(value: Any) -> Any:
    """Return what the template shows of a value; pictures are markup, and are as they are."""
    return page_text(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def check_replaceable(path: Path) -> None:
    """Raise InputError when a file is there that is no report, or none can be written there."""
    check_target(path, overwrite=True)
    if not path.exists():
        return
    with path.open("rb") as file:
        start = file.read(_HEAD)
    if f'content="{_GENERATOR}"'.encode() not in start:
        raise InputError(
            f"out = '{path}' exists and is no report: move it, or give another --out FILE.html"
        )


def write_page(text: str, path: Path) -> None:
    """Write a page; an earlier report is replaced, anything else is left alone."""
    check_replaceable(path)
    with atomic(path, overwrite=True) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _context(run: Run, weights: str, sections: dict[str, Section]) -> dict[str, Any]:
    """Return what the template shows; None or an empty list where there is nothing of a kind."""
    config = run.config
    images = views.shows_images(config)
    look = views.Look.of(config, sections)
    training = training_curves(run.metrics(), config.training.batch_size)
    schedule, profile, samples, likelihood, comparison, neighbours, examples = (
        sections.get(name)
        for name in (
            *("schedule", "profile", "samples", "likelihood"),
            *("comparison", "neighbours", "examples"),
        )
    )
    drawn, film = views.sample_pictures(samples, look) if samples and images else (None, None)
    rows, data_name = views.comparison(likelihood, config) if likelihood else ([], "")
    return {
        "name": run.path.resolve().name,
        "source": config.data.source,
        "data": _data(run),
        "config": config,
        "images": images,
        "likelihood": likelihood,
        "rows": rows,
        "data_name": data_name,
        "histogram": views.likelihood_plot(likelihood) if likelihood else None,
        "comparison": comparison,
        "models": views.model_rows(comparison) if comparison else [],
        "pairs": views.pair_rows(comparison) if comparison else [],
        "pair_plots": views.pair_plots(comparison) if comparison else [],
        "training": training,
        "training_plots": views.training_plots(training) if training else [],
        "floor_note": views.floor_note_of(schedule, config) if schedule else None,
        "schedule": schedule,
        "schedule_plots": views.schedule_plots(schedule, profile) if schedule else [],
        "variances": views.variance_rows(profile) if profile else [],
        "samples": samples,
        "sheet": drawn,
        "film": film,
        "cloud": views.cloud_plot(samples, examples) if samples and not images else None,
        "neighbours": neighbours,
        "cards": views.neighbour_cards(neighbours, look) if neighbours and images else [],
        "distances": views.neighbour_plot(neighbours, look) if neighbours else None,
        "extremes": views.extreme_pictures(examples, look) if examples and images else [],
        "settings": config.to_json().rstrip(),
        "progress": _progress(run, weights),
        "places": _places(sections),
        "commands": _commands(run, weights, sections),
        "duration": _duration(training.seconds) if training else None,
    }


def _places(sections: dict[str, Section]) -> list[dict[str, Any]]:
    """Return the environments that sections were measured in, each with its sections."""
    places: dict[str, dict[str, Any]] = {}
    for name, section in sections.items():
        environment = dict(section.values["environment"])
        date = environment.pop("date")
        place = places.setdefault(
            json.dumps(environment), {"environment": environment, "sections": []}
        )
        place["sections"].append((name, date, f"{section.values['seconds']:.1f}"))
    return list(places.values())


def _duration(seconds: float) -> tuple[str, str]:
    """Return a number and its unit."""
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f}", unit
    return f"{seconds:.0f}", "seconds"


def _data(run: Run) -> str:
    """Return what an example is, in words."""
    config = run.config
    shape = config.model.shape
    size = "×".join(map(str, shape))
    if views.shows_images(config):
        colours = {1: "grey", 3: "colour", 4: "colour with opacity"}[shape[0]]
        size = f"{shape[1]}×{shape[2]} {colours} images"
    else:
        size = f"arrays of {size} {'entries' if math.prod(shape) > 1 else 'entry'}"
    levels = config.data.levels
    return f"{size}, " + ("real values" if levels is None else f"{levels:,} levels")


def _progress(run: Run, weights: str) -> dict[str, str]:
    return read_metadata(run.weights_path(weights))


def _commands(run: Run, weights: str, sections: dict[str, Section]) -> list[tuple[str, str]]:
    """Return what to type to have a figure again, each with what it is for."""
    path = str(run.path)
    of_weights = [] if weights == "ema" else ["--weights", weights]
    commands: list[tuple[str, list[str]]] = []
    if "likelihood" in sections:
        limit = sections["likelihood"].options["examples"]
        commands.append(("the bits per dimension", ["evaluate", path, "--limit", str(limit)]))
    if "comparison" in sections:
        options = sections["comparison"].options
        others = [other for other, _ in options["compare"]]
        words = ["compare", path, *others, "--limit", str(options["examples"])]
        commands.append(("the comparison", words))
    if "profile" in sections:
        evaluations = sections["profile"].options["evaluations"]
        commands.append(("the loss profile", ["schedule", path, "--evaluations", str(evaluations)]))
    if "samples" in sections:
        options = sections["samples"].options
        how = ["--sampler", options["sampler"], "--steps", str(options["steps"])]
        words = ["sample", path, "--n", str(options["samples"]), *how]
        commands.append(("the samples", words))
    commands.append(("this page, measured again", ["report", path, "--refresh"]))
    lines = [(what, typed("vdm", *words, *of_weights)) for what, words in commands]
    train = training_command(run.config, path + "-again")
    return [("a run of this configuration", train), *lines] if train else lines
