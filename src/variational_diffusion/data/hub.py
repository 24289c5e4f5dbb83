"""Parquet files, tar files and data sets of the Hugging Face hub, found and read by `datasets`.

No code of a data set is run, and only formats that hold data alone are read. Map style reads Arrow
files from the cache of `datasets`, mapped into memory; streaming reads the files themselves.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from variational_diffusion.config import DataConfig
from variational_diffusion.data.columns import choose_column, stored_rows
from variational_diffusion.data.dataset import Dataset, stored_dataset, streamed_dataset
from variational_diffusion.data.images import extensions
from variational_diffusion.data.stored import Stored
from variational_diffusion.data.tar import TarShards, TarStore
from variational_diffusion.errors import InputError

_KINDS = ("parquet", "arrow", "imagefolder", "webdataset")
_SUFFIXES = {".parquet": "parquet", ".tar": "webdataset"}
_ALIASES = {"val": "validation", "valid": "validation", "dev": "validation"}
_TOGETHER = 64
"""Rows that streaming takes out of a file together."""


class ArrowStore:
    """A column of a map-style data set of `datasets`."""

    def __init__(self, dataset: Any, column: str, name: str, *, files: bool) -> None:
        self._rows = dataset.select_columns([column]).with_format("arrow")
        self._column = column
        self._name = f"{name} {column}"
        self._files = files

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: np.ndarray) -> list[Stored]:
        """Return the examples of these indices."""
        if not len(indices):
            return []
        column = self._rows[np.asarray(indices).tolist()][self._column]
        names = [f"{self._name} {index}" for index in indices]
        return stored_rows(column, names, files=self._files)


class ArrowShards:
    """A column of a streaming data set of `datasets`; its shards are files or row groups."""

    def __init__(self, dataset: Any, column: str, name: str, *, files: bool) -> None:
        self._rows = dataset.select_columns([column]).with_format("arrow")
        self._column = column
        self._name = name
        self._files = files

    def __len__(self) -> int:
        return self._rows.num_shards

    def read(self, shard: int, start: int) -> Iterator[Stored]:
        """Yield a shard's examples from number `start` on."""
        rows = self._rows.shard(num_shards=len(self), index=shard)
        if start:
            rows = rows.skip(start)
        name = f"{self._name} shard {shard} {self._column}"
        with _asking(self._name):
            for table in rows.iter(batch_size=_TOGETHER):
                names = [f"{name} {start + i}" for i in range(len(table))]
                start += len(table)
                yield from stored_rows(table[self._column], names, files=self._files)


def open_hub(config: DataConfig) -> Dataset:
    """Open `hf:NAME[:CONFIG]`: a data set of the hub, or a folder that is laid out like one.

    Raises InputError when there is none of the name or the hub does not answer, and as
    `open_files` does.
    """
    name, _, subset = config.source.removeprefix("hf:").partition(":")
    folder = Path(config.source.removeprefix("hf:")).expanduser()
    if name and folder.is_dir():
        name, subset = str(folder.resolve()), ""
    elif not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise InputError(
            f"data = '{config.source}': give hf:NAME or hf:NAME:CONFIG, as in hf:ylecun/mnist, or "
            "hf: and the path of a folder"
        )
    label = ":".join(filter(None, ("hf", name, subset)))
    with _asking(label):
        builder = _library().load_dataset_builder(name, subset or None)
    return _opened(builder, config, label)


def open_files(config: DataConfig) -> Dataset:
    """Open a `.parquet` or `.tar` file, or a folder of them.

    A folder whose file or folder names speak of train, validation or test has these splits. Raises
    InputError for damaged files, for a column that is none or cannot be chosen without --column,
    and for examples that do not fit together.
    """
    path = Path(config.source).expanduser().resolve()
    kind = kind_of(path)
    with _asking(str(path)):
        builder = _library().load_dataset_builder(
            _SUFFIXES[kind],
            **(
                {"data_dir": str(path)} if path.is_dir() else {"data_files": {"train": [str(path)]}}
            ),
        )
    return _opened(builder, config, str(path))


def kind_of(path: Path) -> str:
    """Return ".parquet" or ".tar" for such a file or a folder with one and no image, else ""."""
    if path.is_file():
        return path.suffix.lower() if path.suffix.lower() in _SUFFIXES else ""
    images, found = extensions(), ""
    for _, _, files in os.walk(path):
        suffixes = {os.path.splitext(name)[1].lower() for name in files if name[0] != "."}
        if suffixes & images:
            return ""
        found = found or next((suffix for suffix in _SUFFIXES if suffix in suffixes), "")
    return found


def _opened(builder: Any, config: DataConfig, label: str) -> Dataset:
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
            shards = {name: TarShards(list(paths), config.column) for name, paths in files.items()}
            return streamed_dataset(shards, config, label)
        with _asking(label):
            local = {name: _downloaded(list(paths)) for name, paths in files.items()}
        stores = {name: TarStore(paths, config.column) for name, paths in local.items()}
        return stored_dataset(stores, config, label)

    options = {"files": kind == "imagefolder"}
    with _asking(label):
        if not config.streaming:
            builder.download_and_prepare()
        found = builder.as_streaming_dataset() if config.streaming else builder.as_dataset()
        parts = _splits(found, label)
        if config.streaming and kind == "parquet" and not _is_remote(builder):
            parts = {name: part.reshard() for name, part in parts.items()}
        schema = parts["train"].features.arrow_schema
        column = choose_column(schema, config.column, label)
    if config.streaming:
        return streamed_dataset(
            {name: ArrowShards(part, column, name, **options) for name, part in parts.items()},
            config,
            label,
        )
    return stored_dataset(
        {name: ArrowStore(part, column, name, **options) for name, part in parts.items()},
        config,
        label,
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
    return [str(path) for path in _library().DownloadManager().download(paths)]


def _library() -> Any:
    """Return the module `datasets`, told to be quiet: what goes wrong, we say in one line."""
    import datasets  # noqa: PLC0415 (a second, and only where it is used)
    import huggingface_hub  # noqa: PLC0415

    huggingface_hub.logging.set_verbosity_error()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets


@contextmanager
def _asking(label: str) -> Iterator[None]:
    """Turn what the library raises into one line."""
    import pyarrow as pa  # noqa: PLC0415 (only where it is used)
    from datasets.exceptions import DatasetsError  # noqa: PLC0415

    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, DatasetsError, pa.ArrowException) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = " ".join(str(cause).split())[:300]
        raise InputError(
            f"data = '{label}' cannot be read ({reason}); check the name, the files and, for hf:, "
            "the connection"
        ) from error
