"""Parquet files, tar files and data sets of the Hugging Face hub, found and read by `datasets`.

No code of a data set is run, and only formats that hold data alone are read. Map style reads Arrow
files from the cache of `datasets`, mapped into memory; streaming reads the files themselves.
"""

from __future__ import annotations

import glob
import re
import sys
from collections.abc import Mapping
from typing import Any

import datasets
import huggingface_hub

from variational_diffusion.config import DataConfig
from variational_diffusion.data.beside import asked, names_of
from variational_diffusion.data.columns import (
    ArrowShards,
    ArrowStore,
    asking,
    beside_column,
    check_claims,
    choose_column,
)
from variational_diffusion.data.dataset import Dataset, stored_dataset, streamed_dataset
from variational_diffusion.data.folder import SHARDS, kind_of, shard_files
from variational_diffusion.data.tar import TarShards, TarStore
from variational_diffusion.errors import InputError
from variational_diffusion.storage.files import expanded

_KINDS = ("parquet", "arrow", "imagefolder", "webdataset")
_ALIASES = {"val": "validation", "valid": "validation", "dev": "validation"}


def open_hub(config: DataConfig) -> Dataset:
    """Open `hf:NAME[:CONFIG]`: a data set of the hub, or a folder that is laid out like one.

    Raises InputError when there is none of the name or the hub does not answer, and as
    `open_files` does.
    """
    name, _, subset = config.source.removeprefix("hf:").partition(":")
    folder = expanded(config.source.removeprefix("hf:"))
    if name and folder.is_dir():
        name, subset = str(folder.resolve()), ""
    elif not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise InputError(
            f"data = '{config.source}': give hf:NAME or hf:NAME:CONFIG, as in hf:ylecun/mnist, or "
            "hf: and the path of a folder"
        )
    label = ":".join(filter(None, ("hf", name, subset)))
    _be_quiet()
    with asking(label):
        builder = datasets.load_dataset_builder(name, subset or None)
    return _opened(builder, config, label)


def open_files(config: DataConfig) -> Dataset:
    """Open a `.parquet` or `.tar` file, or a folder of them.

    A folder whose file or folder names speak of train, validation or test has these splits. Raises
    InputError for damaged files, for a column that is none or cannot be chosen without --column,
    and for examples that do not fit together.
    """
    path = expanded(config.source).resolve()
    kind = kind_of(path)
    found, notes = shard_files(path, kind)
    if "::" in str(path):
        raise InputError(f"data = '{path}': '::' stands in its path; rename the file or folder")
    _be_quiet()
    escaped = {split: [glob.escape(str(file)) for file in files] for split, files in found.items()}
    with asking(str(path)):
        builder = datasets.load_dataset_builder(SHARDS[kind], data_files=escaped)
    root = str(path if path.is_dir() else path.parent)
    return _opened(builder, config, str(path), root=root, notes=notes)


def _opened(
    builder: Any, config: DataConfig, label: str, *, root: str = "", notes: tuple[str, ...] = ()
) -> Dataset:
    """Return the data set of a builder. root: of its tar files, for the names of their members."""
    kind = type(builder).__name__.lower()
    kind = next((known for known in _KINDS if kind.startswith(known)), kind)
    if kind not in _KINDS:
        raise InputError(
            f"data = '{label}' is of the kind '{kind}': {', '.join(_KINDS)} are read; convert it "
            "to parquet"
        )
    if kind == "webdataset":
        files = _splits(builder.config.data_files, label)
        if config.streaming:
            asked(config, [])
            shards = {
                name: TarShards(list(paths), config.column, root) for name, paths in files.items()
            }
            return streamed_dataset(shards, config, label, notes=notes)
        with asking(label):
            local = {name: _downloaded(list(paths)) for name, paths in files.items()}
        labelled = asked(config, ["label"]) is not None
        stores = {
            name: TarStore(paths, config.column, root, labelled=labelled)
            for name, paths in local.items()
        }
        return stored_dataset(stores, config, label, notes)

    with asking(label):
        if kind == "parquet":
            paths = [path for part in builder.config.data_files.values() for path in part]
            check_claims(path for path in paths if "://" not in path)
        if not config.streaming:
            builder.download_and_prepare()
        found = builder.as_streaming_dataset() if config.streaming else builder.as_dataset()
        parts = _splits(found, label)
        if config.streaming and kind == "parquet" and not _is_remote(builder):
            parts = {name: part.reshard() for name, part in parts.items()}
        if config.group is not None:
            raise InputError(
                f"group = '{config.group}': rows of a table have no names; group a folder of "
                "images or tar files, or leave out --group"
            )
        schema = parts["train"].features.arrow_schema
        wanted = asked(config, ["label", "vector"])
        beside = beside_column(parts["train"].features, wanted, label)
        column = choose_column(schema, config.column, label, beside)
    options: dict[str, Any] = {"files": kind == "imagefolder", "beside": beside}
    if config.streaming:
        names = None if beside is None else beside.names
        if wanted is not None and wanted.kind == "label" and names is None:
            raise InputError(
                f"condition = '{config.condition}': which labels there are is not known before all "
                "of a stream has been read, unless its column is of class labels; leave out "
                "--streaming"
            )
        return streamed_dataset(
            {name: ArrowShards(part, column, name, **options) for name, part in parts.items()},
            config,
            label,
            None if names is None else names_of(names),
            notes=notes,
        )
    return stored_dataset(
        {name: ArrowStore(part, column, name, **options) for name, part in parts.items()},
        config,
        label,
        notes,
    )


def _splits(parts: Mapping[Any, Any], label: str) -> dict[str, Any]:
    """Return the parts by our names of splits; a part that stands alone is the training's."""
    named = {_ALIASES.get(str(name), str(name)): part for name, part in parts.items()}
    if "train" not in named:
        if len(named) != 1:
            raise InputError(
                f"data = '{label}' has the splits {', '.join(named)} and none called train"
            )
        named = {"train": next(iter(named.values()))}
    return {name: named[name] for name in ("train", "validation", "test") if name in named}


def _is_remote(builder: Any) -> bool:
    return any("://" in path for paths in builder.config.data_files.values() for path in paths)


def _downloaded(paths: list[str]) -> list[str]:
    if not any("://" in path for path in paths):
        return paths
    return [str(path) for path in datasets.DownloadManager().download(paths)]


def _be_quiet() -> None:
    """Keep the libraries from writing: what goes wrong, we say in one line."""
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    huggingface_hub.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
