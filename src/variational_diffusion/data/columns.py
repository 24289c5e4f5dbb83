"""Columns of Arrow tables that hold examples: images in bytes, or lists of numbers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets.exceptions import DatasetsError

from variational_diffusion.data.beside import Asked
from variational_diffusion.data.stored import Stored
from variational_diffusion.errors import DamagedError, InputError

_TOGETHER = 64
"""Rows that streaming takes out of a file together."""

_FEW = 16
"""Rows of a column that are looked at together where each may be as large as all."""

_LARGE, _TIMES = 1 << 30, 1000
"""Bytes of a file's values, and times its own size, that are allowed: no more than one of them."""

_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
"""Bytes of a value of parquet's types that have one size."""


def check_claims(paths: Iterable[str]) -> None:
    """Raise InputError for a parquet file whose columns would take thousands of times its size.

    Values that repeat are stored once, so a few bytes can claim any number, and `datasets` reads a
    row group as a whole.
    """
    for path in paths:
        with pq.ParquetFile(path) as file:
            size, claimed = os.path.getsize(path), 0
            for claim in _claims(file):
                claimed += claim
                if claimed > _LARGE and claimed > _TIMES * size:
                    raise InputError(
                        f"'{path}' has {size:,} bytes and claims {claimed:,} or more: that many "
                        "copies of the same values are no examples; store each of them once"
                    )


def _claims(file: pq.ParquetFile) -> Iterator[int]:
    """Yield the bytes that parts of a file have once they are read."""
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        for column in map(group.column, range(group.num_columns)):
            width, size = _WIDTHS.get(column.physical_type), column.total_uncompressed_size
            if width is not None:
                yield column.num_values * width
            elif not column.has_dictionary_page or column.num_values * size < _LARGE:
                yield size
            elif 2 * _dictionary_bytes(column) < column.total_compressed_size:
                yield size  # most values stand for themselves
            else:
                parts = file.iter_batches(
                    _FEW, row_groups=[number], columns=[column.path_in_schema]
                )
                yield from (part.nbytes for part in parts)


def _dictionary_bytes(column: Any) -> int:
    return column.data_page_offset - column.dictionary_page_offset


class ArrowStore:
    """A column of a map-style data set of `datasets`. beside: read with it to condition on."""

    def __init__(
        self, dataset: Any, column: str, name: str, *, files: bool, beside: Beside | None = None
    ) -> None:
        self._rows = dataset.select_columns(_columns(column, beside)).with_format("arrow")
        self._beside = beside
        self._column = column
        self._name = f"{name} {column}"
        self._files = files

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: np.ndarray) -> list[Stored]:
        """Return the examples of these indices."""
        if not len(indices):
            return []
        table = self._rows[np.asarray(indices).tolist()]
        names = [f"{self._name} {index}" for index in indices]
        found = stored_rows(table[self._column], names, files=self._files)
        return found if self._beside is None else self._beside.added(found, table)


class ArrowShards:
    """A column of a streaming data set of `datasets`; its shards are files or row groups.

    beside: read with it to condition on.
    """

    def __init__(
        self, dataset: Any, column: str, name: str, *, files: bool, beside: Beside | None = None
    ) -> None:
        self._rows = dataset.select_columns(_columns(column, beside)).with_format("arrow")
        self._beside = beside
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
        with asking(self._name):
            for table in rows.iter(batch_size=_TOGETHER):
                names = [f"{name} {start + i}" for i in range(len(table))]
                start += len(table)
                found = stored_rows(table[self._column], names, files=self._files)
                yield from found if self._beside is None else self._beside.added(found, table)


class Beside(NamedTuple):
    """The column of a condition. names: of its labels by number, where the data say them."""

    column: str
    names: tuple[str, ...] | None

    def added(self, examples: list[Stored], table: pa.Table) -> list[Stored]:
        """Return the examples with what stands beside them in their rows of a table."""
        values = table[self.column].to_pylist()
        for example, value in zip(examples, values, strict=True):
            if value is None or (self.names is not None and not 0 <= value < len(self.names)):
                raise InputError(
                    f"'{example.name}' has the {self.column} {value}; leave that example out"
                )
        if self.names is not None:
            values = [self.names[value] for value in values]
        return [
            example._replace(beside=value) for example, value in zip(examples, values, strict=True)
        ]


def _columns(column: str, beside: Beside | None) -> list[str]:
    return [column] if beside is None else [column, beside.column]


def beside_column(features: Any, wanted: Asked | None, label: str) -> Beside | None:
    """Return the column of a condition: the one named, or the only one of class labels.

    features: of `datasets`. Raises InputError where there is none, or none that can be one.
    """
    if wanted is None:
        return None
    types = {entry.name: entry.type for entry in features.arrow_schema}
    fits = _is_label if wanted.kind == "label" else _is_vector
    possible = [name for name, kind in types.items() if fits(kind)]
    classes = [name for name in possible if isinstance(features[name], datasets.ClassLabel)]
    name = wanted.name or (classes[0] if len(classes) == 1 else "label")
    if name not in possible:
        raise InputError(
            f"condition = '{wanted.kind}': '{label}' has {', '.join(possible) or 'no column'} for "
            f"it; choose with --condition {wanted.kind}:NAME"
        )
    by_number = wanted.kind == "label" and name in classes
    return Beside(name, tuple(features[name].names) if by_number else None)


def _is_label(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_vector(kind: pa.DataType) -> bool:
    kind = kind.value_type if _is_list(kind) else kind
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def choose_column(
    schema: pa.Schema, wanted: str | None, label: str, beside: Beside | None = None
) -> str:
    """Return the name of the column of examples: `wanted`, or the only one that can be.

    beside: the column of their conditions, which is none of examples.
    """
    taken = None if beside is None else beside.column
    possible = [e.name for e in schema if _is_examples(e.type) and e.name != taken]
    if wanted is None and len(possible) == 1:
        return possible[0]
    if wanted is not None and wanted in possible:
        return wanted
    given = "has" if wanted is None else f"has no column {wanted!r} of examples; it has"
    raise InputError(
        f"data = '{label}' {given} {', '.join(possible) or 'no column of images or arrays'}; "
        "choose with --column NAME"
    )


def stored_rows(column: pa.ChunkedArray, names: list[str], *, files: bool) -> list[Stored]:
    """Return the examples of a column, one for each name; an empty cell is a damaged example.

    files: whether an image without bytes may be the file at its path. Otherwise a table could make
    us open any file, so that is an empty cell, too.
    """
    column = _storage(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)
    contents: Sequence[bytes | Path | np.ndarray | DamagedError]
    if _is_list(column.type):
        contents = _arrays(column, names)
    elif pa.types.is_struct(column.type):
        rows = column.to_pylist()
        contents = [_content(row or {}, name, files) for row, name in zip(rows, names, strict=True)]
    else:
        contents = [
            _empty(name) if content is None else content
            for content, name in zip(column.to_pylist(), names, strict=True)
        ]
    return [Stored(name, content) for name, content in zip(names, contents, strict=True)]


def _empty(name: str) -> DamagedError:
    return DamagedError(f"'{name}' is empty; leave it out, or type --skip-damaged")


def _content(row: dict[str, Any], name: str, files: bool) -> bytes | Path | DamagedError:
    content, path = row.get("bytes"), row.get("path")
    if content is not None:
        return content
    if path is None:
        return _empty(name)
    if not files:
        return DamagedError(
            f"'{name}' has no bytes, only the path {path!r}; save the images in the table, or type "
            "--skip-damaged"
        )
    if "://" not in path:
        return Path(path)
    import fsspec  # noqa: PLC0415 (it comes with datasets)

    with fsspec.open(path, "rb") as file:
        return file.read()


def _arrays(column: Any, names: list[str]) -> list[np.ndarray | DamagedError]:
    """Return nested lists as arrays; lists within one example must have the same length."""
    lengths: list[int] = []
    values = column
    while _is_list(values.type):
        inner = pc.list_value_length(values)
        if inner.null_count or len(pc.unique(inner)) != 1:
            return _one_by_one(column, names)
        lengths.append(inner[0].as_py())
        values = _storage(values.flatten())
    if values.null_count or not len(values):
        return _one_by_one(column, names)
    rows = values.to_numpy(zero_copy_only=False).reshape(len(column), *lengths)
    return list(rows)


def _one_by_one(column: Any, names: list[str]) -> list[np.ndarray | DamagedError]:
    if len(column) > 1:
        parts = (_arrays(column[i : i + 1], [name]) for i, name in enumerate(names))
        return [array for part in parts for array in part]
    if not column.null_count and _has_values(column):
        raise InputError(f"'{names[0]}' holds lists of several lengths; save them as an array")
    return [_empty(names[0])]


def _has_values(column: Any) -> bool:
    """Return whether none of a cell's values, and of the lists around them, is missing."""
    while _is_list(column.type):
        if column.null_count:
            return False
        column = _storage(column.flatten())
    return len(column) > 0 and not column.null_count


def _storage(array: Any) -> Any:
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _is_examples(kind: pa.DataType) -> bool:
    """Tell bytes, a struct that has bytes, and nested lists of numbers from all other columns."""
    if isinstance(kind, pa.ExtensionType):
        kind = kind.storage_type
    if pa.types.is_struct(kind):
        position = kind.get_field_index("bytes")
        return position >= 0 and _is_binary(kind.field(position).type)
    if not _is_list(kind):
        return _is_binary(kind)
    while _is_list(kind):
        kind = kind.value_type
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


@contextmanager
def asking(label: str) -> Iterator[None]:
    """Turn what `datasets` raises into one line."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, DatasetsError, pa.ArrowException) as error:
        if isinstance(error, OSError) and _is_of_the_cache(error.filename):
            raise InputError(
                f"data = '{label}': '{error.filename}' cannot be made ({error.strerror}), where "
                "data sets are kept; set HF_HOME to a folder that can be written to"
            ) from error
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = " ".join(str(cause).split())[:300]
        raise InputError(
            f"data = '{label}' cannot be read ({reason}); check the name, the files and, for hf:, "
            "the connection"
        ) from error


def _is_of_the_cache(name: str | None) -> bool:
    """Tell whether a file or a folder is where `datasets` keeps its own, or above that."""
    kept = Path(huggingface_hub.constants.HF_HOME).absolute()
    return name is not None and (Path(name).is_relative_to(kept) or kept.is_relative_to(name))
