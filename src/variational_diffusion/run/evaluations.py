"""What was measured of a run's weights: the figures of `vdm evaluate`, kept in `evaluations.jsonl`.

A model card, a report or a table of runs can then state a likelihood with the command that gave it.
A line belongs to the weights that were measured, by the digest of their file: figures of weights
that training has replaced since are not taken for those of the new ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from variational_diffusion.run.directory import Run
from variational_diffusion.storage import json_lines
from variational_diffusion.storage.files import cached
from variational_diffusion.storage.tensors import read_metadata

_FILE = "evaluations.jsonl"


def record(run: Run, weights: str, values: Mapping[str, Any], *, data: str, command: str) -> None:
    """Append what was measured of these weights, if the run can be written.

    values: what `vdm evaluate --json` prints. data: the examples' source. command: what to type for
        the same figures, with RUN in the place of the directory.
    """
    entry = {**values, "data": _name(data), "command": command, "digest": _digest(run, weights)}
    with cached("the record of these figures, for the model card and reports,"):
        json_lines.append(run.path / _FILE, entry)


def of_weights(run: Run, weights: str = "ema") -> list[dict[str, Any]]:
    """Return what was recorded of these weights as they are now, the last of each command."""
    digest = _digest(run, weights)
    found = [entry for entry in json_lines.read(run.path / _FILE) if entry.get("digest") == digest]
    return list({entry["command"]: entry for entry in found}.values())


def _name(source: str) -> str:
    """Return the name of a data set, or the last part of a path: no folders of this machine."""
    return source if source.startswith("hf:") else Path(source).name


def _digest(run: Run, weights: str) -> str | None:
    return read_metadata(run.weights_path(weights)).get("digest")
