"""The kinds of data that a name or a path can stand for: a table."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from variational_diffusion.config import DataConfig
from variational_diffusion.data.arrays import array_source, open_array
from variational_diffusion.data.dataset import Dataset
from variational_diffusion.data.decoding import Decoded
from variational_diffusion.data.digits import open_digits
from variational_diffusion.data.folder import image_files, kind_of, open_folder
from variational_diffusion.data.formats import extensions, told
from variational_diffusion.data.idx import (
    FASHION_MNIST,
    is_idx_folder,
    open_fashion_mnist,
    open_idx_folder,
)
from variational_diffusion.data.memory import MEMORY
from variational_diffusion.data.originals import Originals
from variational_diffusion.data.source import Split
from variational_diffusion.data.survey import survey
from variational_diffusion.errors import InputError
from variational_diffusion.storage.files import expanded

Opener = Callable[[DataConfig], Dataset]

DATASETS: dict[str, Opener] = {
    "digits": open_digits,
    "fashion-mnist": open_fashion_mnist,
}
"""Data that have a name of ours."""


class Kind(NamedTuple):
    """One kind of data.

    fits: whether a source, as typed and as a path, is of it; kinds are asked in their order.
    opener: makes three splits. options: fields of `DataConfig` that not all kinds have. originals:
    opens all examples with what it takes to bring them back exactly: see `Originals`.
    """

    fits: Callable[[str, Path], bool]
    opener: Opener
    options: frozenset[str]
    originals: Callable[[DataConfig], Originals]


def _open_hub(config: DataConfig) -> Dataset:
    from variational_diffusion.data import hub  # noqa: PLC0415 (it imports datasets: a second)

    return hub.open_hub(config)


def _open_files(config: DataConfig) -> Dataset:
    from variational_diffusion.data import hub  # noqa: PLC0415 (as above)

    return hub.open_files(config)


def _of_dataset(opener: Opener, config: DataConfig) -> Originals:
    dataset = opener(config)
    examples = dataset.everything().source
    return Originals(Split(examples, np.arange(len(examples))), dataset.notes)


def _of_folder(config: DataConfig) -> Originals:
    files, notes = image_files(config)
    decoder, kept, found, *_ = survey({"train": files}, config)
    examples = Decoded(files, kept["train"], decoder)
    return Originals(Split(examples, np.arange(len(examples))), (*found, *notes))


def _of_array(config: DataConfig) -> Originals:
    return Originals.of_array(array_source(config))


def _is_file(ending: str, source: str, path: Path) -> bool:
    return os.path.isfile(path) and path.suffix.lower() == ending


_STORED = frozenset({"resize", "channels", "skip_damaged", "skip_sizes", "max_pixels", "group"})
_SHARDED = _STORED | {"value_range", "column", "streaming"}


def _is_called(name: str, source: str, path: Path) -> bool:
    return source == name


KINDS: dict[str, Kind] = {
    **{
        name: Kind(
            partial(_is_called, name),
            opener,
            frozenset(),
            partial(_of_dataset, opener),
        )
        for name, opener in DATASETS.items()
    },
    "hf:NAME": Kind(
        lambda source, path: source.startswith("hf:"),
        _open_hub,
        _SHARDED,
        partial(_of_dataset, _open_hub),
    ),
    "a folder of IDX files": Kind(
        lambda source, path: os.path.isdir(path) and is_idx_folder(path),
        open_idx_folder,
        frozenset(),
        partial(_of_dataset, open_idx_folder),
    ),
    "parquet or tar files": Kind(
        lambda source, path: os.path.exists(path) and bool(kind_of(path)),
        _open_files,
        _SHARDED,
        partial(_of_dataset, _open_files),
    ),
    "a folder of images": Kind(
        lambda source, path: os.path.isdir(path),
        open_folder,
        _STORED | {"frames"},
        _of_folder,
    ),
    ".npy": Kind(partial(_is_file, ".npy"), open_array, frozenset({"value_range"}), _of_array),
    ".npz": Kind(
        partial(_is_file, ".npz"), open_array, frozenset({"value_range", "array"}), _of_array
    ),
}
"""Name → kind."""


def kind_named(source: str) -> Kind:
    """Return the kind of a source; raise InputError where it is of none."""
    if source.startswith(MEMORY):
        raise InputError(
            f"data = '{source}' were given in memory, and a run does not keep them: pass "
            "them again as data, as in evaluate(run, data)"
        )
    path = expanded(source)
    for kind in KINDS.values():
        if kind.fits(source, path):
            return kind
    for remedy in told([source]) if os.path.exists(path) else ():
        raise InputError(f"data = '{source}' is not read: {remedy.removeprefix('1 of them ')}")
    if path.suffix.lower() in extensions() and os.path.isfile(path):
        raise InputError(f"data = '{source}' is one image; give the folder that it is in")
    problem = "is a file of no known kind"
    if not os.path.exists(path):
        problem = "is no known name, and no such file or folder exists"
    raise InputError(
        f"data = '{source}' {problem}; give {', '.join(DATASETS)}, hf:NAME, a folder of "
        "images, of IDX files, of parquet or of tar files, or an .npy, .npz, .parquet or .tar file"
    )


def is_there(source: str) -> bool:
    """Tell whether data of a name or a path are there; of the hub's it is not known before."""
    known = source in DATASETS or source.startswith("hf:")
    return known or os.path.exists(expanded(source))


def at_hand() -> list[str]:
    """Return the names of `DATASETS` that can be opened without another download."""
    here = is_idx_folder(FASHION_MNIST)
    return [name for name in DATASETS if name != "fashion-mnist" or here]
