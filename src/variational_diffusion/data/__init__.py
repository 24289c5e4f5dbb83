"""Data: one module per kind of source, all opened as a `Dataset` of three splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from variational_diffusion.config import DataConfig, validated
from variational_diffusion.data.arrays import ArraySource
from variational_diffusion.data.dataset import SPLITS, Dataset
from variational_diffusion.data.images import CHANNELS
from variational_diffusion.data.kinds import DATASETS, KINDS, at_hand, is_there, kind_named
from variational_diffusion.data.memory import in_memory
from variational_diffusion.data.originals import Originals
from variational_diffusion.data.source import Source, Split
from variational_diffusion.errors import InputError

__all__ = [
    "DATASETS",
    "KINDS",
    "SPLITS",
    "Dataset",
    "Originals",
    "Source",
    "Split",
    "at_hand",
    "in_memory",
    "is_there",
    "open_dataset",
    "open_originals",
]

_ONLY_FOR = {
    "array": "an .npz file",
    "value_range": "floats in .npy, .npz, .parquet or .tar files",
    "column": "parquet files, tar files or hf: data",
    "resize": "a folder of images, parquet files, tar files or hf: data",
    "channels": "a folder of images, parquet files, tar files or hf: data",
    "skip_sizes": "a folder of images, parquet files, tar files or hf: data",
    "group": "a folder of images or tar files",
    "skip_damaged": "a folder of images, parquet files, tar files or hf: data",
    "frames": "a folder of images",
    "max_pixels": "a folder of images, parquet files, tar files or hf: data",
    "streaming": "parquet files, tar files or hf: data",
}
"""Options that some kinds of data do not have, and the kinds that have them."""

_CHANNELS = {3: "rgb", 4: "rgba"}
"""Channels of a model → those that images are read with: more than they have lose nothing."""

_STREAMED = ("shuffle_buffer", "lanes", "hold_out")


def open_dataset(source: Any, **options: Any) -> Dataset:
    """Open data as a data set of three splits.

    Args:
        source: What the command line calls DATA: a name of `DATASETS`, `hf:NAME`, or the path of a
            folder of images, of IDX, parquet or tar files, or of an .npy, .npz, .parquet or .tar
            file (a path that is called like a name begins with ./); or what `in_memory` takes: an
            array, a tensor, a torch data set of tensors, a loader; or a `DataConfig`.
        **options: The other fields of `DataConfig`, such as levels=256, resize=(32, 32).

    Returns:
        The data set: `.splits`, `.shape`, `.levels`, `.notes`.

    Raises:
        InputError: When there is nothing of the name or it is of no known kind, for an option that
            its kind does not have, and for what the kinds themselves refuse.

    Examples:
        >>> vd.open_dataset("digits")
        Dataset('digits': 1,320 train, 180 validation, 297 test examples of 1×8×8, 17 levels)
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
    kind, given = kind_named(config.source), _given(config)
    options = kind.options
    if config.levels is not None:
        options |= {"value_range"}  # of the levels of floats; what are no floats has none
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
    if config.streaming and config.group is not None:
        raise InputError(
            f"group = '{config.group}': a stream is split by its shards; leave out --streaming, or "
            "--group"
        )
    return kind.opener(config).read_as(config)


def open_originals(
    source: str | Path | np.ndarray | Tensor, like: DataConfig, shape: tuple[int, ...]
) -> Originals:
    """Open all examples of what `source` names, as they are stored and at sizes of their own.

    source: what the command line calls DATA, or an array or tensor with examples along its first
    axis. like: data whose levels, array and column these have, too. shape: of a model's examples;
    images are read with as many channels where that loses nothing. Of a source that has several
    parts, all are taken, the training part first.
    Raises InputError as `open_dataset` does, and for images that would not come back as they are.
    """
    if isinstance(source, np.ndarray | Tensor):
        values = source if isinstance(source, np.ndarray) else source.detach().cpu().numpy()
        return Originals.of_array(ArraySource(values, "the array", levels=like.levels))
    config = DataConfig(
        source=str(source), levels=like.levels, array=like.array, column=like.column
    )
    kind = kind_named(config.source)
    if "resize" in kind.options:  # images: of their own sizes
        config = config.model_copy(update={"crop": (1, 1)})
    originals = kind.originals(config)
    if originals.mode in ("1", "L", "RGB") and CHANNELS[originals.mode] < shape[0]:
        channels = _CHANNELS.get(shape[0], "auto")
        originals = kind.originals(config.model_copy(update={"channels": channels}))
    originals.check_exact()
    return originals


def _given(config: DataConfig) -> list[str]:
    """Return the options that are not as they are by default."""
    fields = DataConfig.model_fields.items()
    return [name for name, field in fields if getattr(config, name) != field.default]
