"""Measurements of a run that take a while, kept in its folder `report`.

Each is one file, `report/likelihood-ema.safetensors`: arrays, and in the header the figures, the
options of the measurement, the digest of the weights that were measured, and where it was done. A
file that is damaged, of an older layout, of other weights or of other options counts as missing:
it can be measured again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from variational_diffusion.errors import InputError
from variational_diffusion.escaping import json_text
from variational_diffusion.run.directory import Run
from variational_diffusion.storage.files import cached
from variational_diffusion.storage.tensors import read_metadata, read_tensors, write_tensors

_LAYOUT = 2
"""Of the contents; files of another are measured again."""


class Section(NamedTuple):
    """One measurement.

    arrays: by name. values, options: what JSON can hold. digest: of the file that it was read from.
    """

    arrays: dict[str, Tensor]
    values: dict[str, Any]
    options: dict[str, Any]
    digest: str = ""


def read_section(
    run: Run, name: str, weights: str, options: Mapping[str, Any] | None = None
) -> Section | None:
    """Return a measurement of the weights as they are now; None where there is none.

    options: what it has to be measured with; those that are None are left to the measurement.
    """
    path = _path(run, name, weights)
    if not path.exists():
        return None
    try:
        arrays, metadata = read_tensors(path)
    except InputError:
        return None
    layout, of = metadata.get("layout"), metadata.get("weights")
    if layout != str(_LAYOUT) or of != _digest_of_weights(run, weights):
        return None
    values, measured_with = json.loads(metadata["values"]), json.loads(metadata["options"])
    asked = {key: value for key, value in (options or {}).items() if value is not None}
    if any(measured_with.get(key) != value for key, value in asked.items()):
        return None
    return Section(arrays, values, measured_with, metadata["digest"])


def write_section(run: Run, name: str, weights: str, section: Section) -> None:
    """Write a measurement, if the run can be written; an earlier one of the name is replaced."""
    path = _path(run, name, weights)
    header = {
        "layout": str(_LAYOUT),
        "weights": _digest_of_weights(run, weights),
        "values": json_text(section.values),
        "options": json_text(section.options),
    }
    with cached(f"the measurement '{name}'"):
        path.parent.mkdir(exist_ok=True)
        write_tensors(path, section.arrays, header)


def _path(run: Run, name: str, weights: str) -> Path:
    return run.path / "report" / f"{name}-{weights}.safetensors"


def _digest_of_weights(run: Run, weights: str) -> str:
    return read_metadata(run.weights_path(weights)).get("digest", "")
