"""Columns of Arrow tables that hold examples: images in bytes, or lists of numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets.exceptions import DatasetsError

from variational_diffusion.data.beside import Asked
from variational_diffusion.data.stored import Stored
from variational_diffusion.errors import InputError

_TOGETHER = 64
"""Rows that streaming takes out of a file together."""


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
    """Return the examples of a column, one for each name.

    files: whether an image without bytes may be the file at its path. Otherwise a table could make
    us open any file, so that is an error, as an empty cell is.
    """
    column = _storage(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)
    if column.null_count:
        raise InputError(f"'{names[int(np.argmax(column.is_null()))]}' is empty; leave it out")
    if _is_list(column.type):
        return [
            Stored(name, array) for name, array in zip(names, _arrays(column, names), strict=True)
        ]
    if not pa.types.is_struct(column.type):
        return [
            Stored(name, content) for name, content in zip(names, column.to_pylist(), strict=True)
        ]
    contents = pc.struct_field(column, "bytes").to_pylist()
    has_path = column.type.get_field_index("path") >= 0
    paths = pc.struct_field(column, "path").to_pylist() if has_path else [None] * len(names)
    return [
        Stored(name, _content(content, path, name, files))
        for name, content, path in zip(names, contents, paths, strict=True)
    ]


def _content(content: bytes | None, path: str | None, name: str, files: bool) -> bytes | Path:
    if content is not None:
        return content
    if path is None or not files:
        raise InputError(
            f"'{name}' has no bytes, only the path {path!r}; save the images in the table"
        )
    if "://" not in path:
        return Path(path)
    import fsspec  # noqa: PLC0415 (it comes with datasets)

    with fsspec.open(path, "rb") as file:
        return file.read()


def _arrays(column: Any, names: list[str]) -> list[np.ndarray]:
    """Return nested lists as arrays; lists within one example must have the same length."""
    lengths: list[int] = []
    values = column
    while _is_list(values.type):
        inner = pc.list_value_length(values)
        if inner.null_count or len(pc.unique(inner)) > 1:
            if len(column) > 1:
                return [
                    array
                    for i, name in enumerate(names)
                    for array in _arrays(column[i : i + 1], [name])
                ]
            raise InputError(f"'{names[0]}' holds lists of several lengths; save them as an array")
        lengths.append(inner[0].as_py())
        values = _storage(values.flatten())
    if values.null_count:
        raise InputError(f"one of '{names[0]}' … '{names[-1]}' holds an empty value; leave it out")
    rows = values.to_numpy(zero_copy_only=False).reshape(len(column), *lengths)
    return list(rows)


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
        if isinstance(error, OSError) and error.filename and not os.path.exists(error.filename):
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
