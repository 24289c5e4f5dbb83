"""Data: one module per kind of source, all opened as a `Dataset` of three splits."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from variational_diffusion.config import DataConfig
from variational_diffusion.data.arrays import open_array
from variational_diffusion.data.digits import open_digits
from variational_diffusion.data.folder import open_folder
from variational_diffusion.data.idx import is_idx_folder, open_fashion_mnist, open_idx_folder
from variational_diffusion.data.source import SPLITS, Dataset, Source, Split
from variational_diffusion.errors import InputError

__all__ = ["DATASETS", "SPLITS", "Dataset", "Source", "Split", "open_dataset"]

Opener = Callable[[DataConfig], Dataset]

DATASETS: dict[str, Opener] = {
    "digits": open_digits,
    "fashion-mnist": open_fashion_mnist,
}

_ONLY_FOR = {
    "array": "an .npz file",
    "value_range": "an .npy or .npz file of floats",
    "resize": "a folder of images",
    "channels": "a folder of images",
    "skip_damaged": "a folder of images",
}
"""Options that some kinds of data do not have, and the kind that has them."""


def open_dataset(config: DataConfig) -> Dataset:
    """Open what `config.source` names: an entry of `DATASETS`, else a path.

    A file or folder that is called like an entry is opened by writing ./ before its name.
    Raises InputError when there is nothing of the name, when it is of no known kind, when an option
    is set that its kind does not have, and for what the kinds themselves refuse.
    """
    opener, options = _kind(config)
    for name, kind in _ONLY_FOR.items():
        value = getattr(config, name)
        if value != DataConfig.model_fields[name].default and name not in options:
            flag = "range" if name == "value_range" else name.replace("_", "-")
            raise InputError(
                f"{name} = {value!r} is for {kind}, and '{config.source}' is none; "
                f"leave out --{flag}"
            )
    return opener(config)


def _kind(config: DataConfig) -> tuple[Opener, set[str]]:
    """Return the opener and the options of `_ONLY_FOR` that it knows."""
    if config.source in DATASETS:
        return DATASETS[config.source], set()
    path = Path(config.source).expanduser()
    if os.path.isdir(path):
        if is_idx_folder(path):
            return open_idx_folder, set()
        return open_folder, {"resize", "channels", "skip_damaged"}
    if os.path.isfile(path) and path.suffix.lower() == ".npy":
        return open_array, {"value_range"}
    if os.path.isfile(path) and path.suffix.lower() == ".npz":
        return open_array, {"value_range", "array"}
    problem = "is a file of no known kind"
    if not os.path.exists(path):
        problem = "is no known name, and no such file or folder exists"
    raise InputError(
        f"data = '{config.source}' {problem}; give {', '.join(DATASETS)}, a folder of images, a "
        "folder of IDX files, an .npy file or an .npz file"
    )
