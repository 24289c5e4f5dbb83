"""Data: one module per kind of source, all opened as a `Dataset` of three splits."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from variational_diffusion.config import DataConfig, validated
from variational_diffusion.data.arrays import ArraySource, array_source, open_array
from variational_diffusion.data.dataset import SPLITS, Dataset
from variational_diffusion.data.decoding import Decoded
from variational_diffusion.data.digits import open_digits
from variational_diffusion.data.folder import image_files, kind_of, open_folder
from variational_diffusion.data.idx import (
    FASHION_MNIST,
    is_idx_folder,
    open_fashion_mnist,
    open_idx_folder,
)
from variational_diffusion.data.images import CHANNELS
from variational_diffusion.data.memory import MEMORY, in_memory
from variational_diffusion.data.originals import Originals
from variational_diffusion.data.source import Source, Split
from variational_diffusion.data.survey import survey
from variational_diffusion.errors import InputError

__all__ = [
    "DATASETS",
    "SPLITS",
    "Dataset",
    "Originals",
    "Source",
    "Split",
    "in_memory",
    "open_dataset",
    "open_originals",
]

Opener = Callable[[DataConfig], Dataset]

DATASETS: dict[str, Opener] = {
    "digits": open_digits,
    "fashion-mnist": open_fashion_mnist,
}

_ONLY_FOR = {
    "array": "an .npz file",
    "value_range": "floats in .npy, .npz, .parquet or .tar files",
    "column": "parquet files, tar files or hf: data",
    "resize": "a folder of images, parquet files, tar files or hf: data",
    "channels": "a folder of images, parquet files, tar files or hf: data",
    "skip_damaged": "a folder of images, parquet files, tar files or hf: data",
    "streaming": "parquet files, tar files or hf: data",
}
"""Options that some kinds of data do not have, and the kinds that have them."""

_ARRAY = {".npy": {"value_range"}, ".npz": {"value_range", "array"}}
_STORED = {"resize", "channels", "skip_damaged"}
_SHARDED = {"value_range", "column", "streaming", *_STORED}
_CHANNELS = {3: "rgb", 4: "rgba"}
"""Channels of a model → those that images are read with: more than they have lose nothing."""

_STREAMED = ("shuffle_buffer", "lanes", "hold_out")


def open_dataset(source: Any, **options: Any) -> Dataset:
    """Open data as a data set of three splits.

    Args:
        source: what the command line calls DATA: a name of `DATASETS`, `hf:NAME`, or the path of a
            folder of images, of IDX, parquet or tar files, or of an .npy, .npz, .parquet or .tar
            file (a path that is called like a name begins with ./); or what `in_memory` takes: an
            array, a tensor, a torch data set of tensors, a loader; or a `DataConfig`.
        options: the other fields of `DataConfig`, such as levels=256, resize=(32, 32).

    Returns:
        The data set: `.splits`, `.shape`, `.levels`, `.notes`.

    Raises:
        InputError: when there is nothing of the name or it is of no known kind, for an option that
            its kind does not have, and for what the kinds themselves refuse.

    Example:
        >>> import variational_diffusion as vd
        >>> digits = vd.open_dataset("digits")
        >>> digits.shape, digits.levels
        ((1, 8, 8), 17)
    """
    if isinstance(source, DataConfig):
        return _opened(source)
    if isinstance(source, Dataset):
        for name, value in options.items():
            raise InputError(f"{name} = {value!r}: these data are opened; give it where they are")
        return source
    if isinstance(source, str | Path):
        return _opened(validated(DataConfig, {"source": str(source), **options}))
    return in_memory(source, **options)


def _opened(config: DataConfig) -> Dataset:
    opener, options = _kind(config)
    given = _given(config)
    if config.levels is not None:
        options = options | {"value_range"}  # of the levels of floats; what are no floats has none
    for name in (name for name in given if name in _ONLY_FOR and name not in options):
        value = getattr(config, name)
        flag = "range" if name == "value_range" else name.replace("_", "-")
        raise InputError(
            f"{name} = {value!r} is for {_ONLY_FOR[name]}, and '{config.source}' is none; "
            f"leave out --{flag}"
        )
    for name in (name for name in given if name in _STREAMED and not config.streaming):
        raise InputError(
            f"{name} = {getattr(config, name)} is for streaming; give --streaming, or leave out "
            f"--{name.replace('_', '-')}"
        )
    return opener(config).read_as(config)


def at_hand() -> list[str]:
    """Return the names of `DATASETS` that can be opened without another download."""
    here = is_idx_folder(FASHION_MNIST)
    return [name for name in DATASETS if name != "fashion-mnist" or here]


def open_originals(
    source: str | Path | np.ndarray | Tensor, like: DataConfig, shape: tuple[int, ...]
) -> Originals:
    """Open all examples of what `source` names, as they are stored and at sizes of their own.

    source: as at `open_dataset`, or an array or tensor with examples along its first axis.

    like: data whose levels, array and column these have, too. shape: of a model's examples; images
    are read with as many channels where that loses nothing. Of a source that has several parts, all
    are taken, the training part first.
    Raises InputError as `open_dataset` does, and for images that would not come back as they are.
    """
    if isinstance(source, np.ndarray | Tensor):
        values = source if isinstance(source, np.ndarray) else source.detach().cpu().numpy()
        return Originals.of_array(ArraySource(values, "the array", levels=like.levels))
    config = DataConfig(
        source=str(source), levels=like.levels, array=like.array, column=like.column
    )
    opener, options = _kind(config)
    if opener is open_array:
        return Originals.of_array(array_source(config))
    if "resize" in options:
        config = config.model_copy(update={"crop": (1, 1)})
    originals = _originals(config, opener)
    if originals.mode in ("1", "L", "RGB") and CHANNELS[originals.mode] < shape[0]:
        channels = _CHANNELS.get(shape[0], "auto")
        originals = _originals(config.model_copy(update={"channels": channels}), opener)
    originals.check_exact()
    return originals


def _originals(config: DataConfig, opener: Opener) -> Originals:
    if opener is open_folder:
        files, notes = image_files(config)
        decoder, kept, found, _ = survey({"train": files}, config)
        examples: Source = Decoded(files, kept["train"], decoder)
        notes = (*found, *notes)
    else:
        dataset = opener(config)
        examples, notes = dataset.everything().source, dataset.notes
    return Originals(Split(examples, np.arange(len(examples))), notes)


def _open_hub(config: DataConfig) -> Dataset:
    from variational_diffusion.data import hub  # noqa: PLC0415 (it imports datasets: a second)

    return hub.open_hub(config)


def _open_files(config: DataConfig) -> Dataset:
    from variational_diffusion.data import hub  # noqa: PLC0415 (as above)

    return hub.open_files(config)


def _given(config: DataConfig) -> list[str]:
    """Return the options that are not as they are by default."""
    fields = DataConfig.model_fields.items()
    return [name for name, field in fields if getattr(config, name) != field.default]


def _kind(config: DataConfig) -> tuple[Opener, set[str]]:
    """Return the opener and the options of `_ONLY_FOR` that it knows."""
    if config.source in DATASETS:
        return DATASETS[config.source], set()
    if config.source.startswith(MEMORY):
        raise InputError(
            f"data = '{config.source}' were given in memory, and a run does not keep them: pass "
            "them again as data, as in evaluate(run, data)"
        )
    if config.source.startswith("hf:"):
        return _open_hub, _SHARDED
    path = Path(config.source).expanduser()
    if os.path.isdir(path) and is_idx_folder(path):
        return open_idx_folder, set()
    if os.path.exists(path) and kind_of(path):
        return _open_files, _SHARDED
    if os.path.isdir(path):
        return open_folder, _STORED
    if os.path.isfile(path) and path.suffix.lower() in _ARRAY:
        return open_array, _ARRAY[path.suffix.lower()]
    problem = "is a file of no known kind"
    if not os.path.exists(path):
        problem = "is no known name, and no such file or folder exists"
    raise InputError(
        f"data = '{config.source}' {problem}; give {', '.join(DATASETS)}, hf:NAME, a folder of "
        "images, of IDX files, of parquet or of tar files, or an .npy, .npz, .parquet or .tar file"
    )
