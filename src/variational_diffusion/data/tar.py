"""Tar files in the manner of webdataset: an example is a member, and its extension says what it is.

Members are read where they lie: nothing is unpacked, and nothing but the chosen members is read.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from variational_diffusion.data.formats import extensions
from variational_diffusion.data.stored import Stored
from variational_diffusion.errors import DamagedError, InputError

_LARGEST = 2**30
"""Bytes that a member may have, so that a damaged header takes no memory."""

_LARGEST_LABEL = 1000
"""Bytes that a label may have."""

_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
"""Key and extension, which begins at the first dot of the file's name."""

_DOTTED = re.compile(r"((?:.*/)?[^./][^/]*)\.([^./]+)")
"""The same where the dots belong to the names: the extension begins at the last one."""

_BROKEN = (OSError, EOFError, ValueError, OverflowError, MemoryError, tarfile.TarError)
"""What tarfile has been seen to raise for broken headers."""


class _Member(NamedTuple):
    name: str
    key: str
    offset: int
    size: int


class TarStore:
    """The examples of tar files by number. The headers of all members are read here, once.

    root: the folder of the files, to name examples in. labelled: whether the member with the
    extension .cls of the same name holds an example's label.
    """

    def __init__(
        self, paths: list[str], column: str | None, root: str = "", *, labelled: bool = False
    ) -> None:
        self._paths = paths
        self._root = root
        self._members: list[_Member] = []
        self._file: list[int] = []
        self._labels: list[str] = []
        for i, path in enumerate(paths):
            with _opened(path) as file:
                last = {member.name: member for member in _members(file, path, column)}
            self._members += last.values()  # of members with one name, the last one counts
            if labelled:
                labels = ".cls" if (column or "").startswith(".") else "cls"
                with _opened(path) as file:
                    found = {member.key: member for member in _members(file, path, labels)}
                with _opened(path) as file:
                    self._labels += [
                        _label(file, path, member, found)
                        for member in self._members[len(self._labels) :]
                    ]
            self._file += [i] * (len(self._members) - len(self._file))

    def __len__(self) -> int:
        return len(self._members)

    def read(self, indices: np.ndarray) -> list[Stored]:
        """Return the examples of these indices."""
        return [self._read(int(index)) for index in indices]

    def _read(self, index: int) -> Stored:
        path, member = self._paths[self._file[index]], self._members[index]
        with _opened(path) as file:
            stored = _stored(file, path, member, self._root)
        return stored._replace(beside=self._labels[index]) if self._labels else stored


class TarShards:
    """Tar files, one a shard. paths: of this machine, or addresses that fsspec opens.

    root: as at `TarStore`.
    """

    def __init__(self, paths: list[str], column: str | None, root: str = "") -> None:
        self._paths = paths
        self._root = root
        self._column = column

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, shard: int, start: int) -> Iterator[Stored]:
        """Yield a shard's examples from number `start` on."""
        path = self._paths[shard]
        with _opened(path) as file:
            for member in islice(_members(file, path, self._column), start, None):
                yield _stored(file, path, member, self._root)


def _members(file: IO[bytes], path: str, column: str | None) -> Iterator[_Member]:
    """Yield the members with the extension `column`; without one, all images and arrays.

    A column that begins with a dot is what the names end in, whatever dots they have.
    """
    known = {extension[1:] for extension in extensions()} | {"npy"}
    name = _DOTTED if column and column.startswith(".") else _NAME
    column = column and column.lower().removeprefix(".")
    last = ("", "")
    with tarfile.open(fileobj=file, mode="r:") as archive:
        while (info := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # there may be millions
            match = name.fullmatch(info.name)
            if match is None or not info.isreg():
                continue
            key, extension = match[1], match[2].lower()
            suffix = extension.rpartition(".")[2]
            if (extension != column) if column else (suffix not in known):
                continue
            if key == last[0] and extension != last[1]:
                raise InputError(
                    f"'{path}': '{key}' is an example both as .{last[1]} and as .{extension}; "
                    f"choose with --column {extension}, or, where the dots belong to the names, "
                    f"with --column .{suffix}"
                )
            if info.sparse is not None:
                raise InputError(
                    f"'{path}': '{info.name}' is stored with holes; pack the files again without "
                    "--sparse"
                )
            last = (key, extension)
            yield _Member(info.name, key, info.offset_data, info.size)


def _label(file: IO[bytes], path: str, member: _Member, found: dict[str, _Member]) -> str:
    """Return the label of an example, the text of the member beside it."""
    beside = found.get(member.key)
    if beside is None or beside.size > _LARGEST_LABEL:
        problem = "no .cls" if beside is None else f"a .cls of {beside.size:,} bytes"
        raise InputError(
            f"condition = 'label': '{member.name}' of '{path}' has {problem} beside it; give every "
            "example its label as text"
        )
    content = _stored(file, path, beside).content
    if isinstance(content, DamagedError):
        raise content
    assert isinstance(content, bytes)
    return content.decode("utf-8", "replace").strip()


def _stored(file: IO[bytes], path: str, member: _Member, root: str = "") -> Stored:
    """Return a member. A file that was cut short costs the last one, and no other."""
    inside = root and path.startswith(f"{root}/")
    name = f"{path[len(root) + 1 :] if inside else path.rpartition('/')[2]}:{member.name}"
    if not 0 <= member.size <= _LARGEST:
        raise InputError(
            f"'{name}' has {member.size:,} bytes, {_LARGEST:,} are allowed; leave it out"
        )
    file.seek(member.offset)
    content = file.read(member.size)
    if len(content) < member.size:
        problem = f"'{path}' ends within '{member.name}'; copy the file again"
        return Stored(name, DamagedError(f"{problem}, or type --skip-damaged"))
    return Stored(name, content)


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    """Open a file or an address; turn what goes wrong into one line with its name."""
    try:
        if "://" in path:
            import fsspec  # noqa: PLC0415 (it comes with datasets)

            opened: Any = fsspec.open(path, "rb")
        else:
            opened = Path(path).open("rb")  # noqa: SIM115 (closed below)
        with opened as file:
            yield file
    except InputError:
        raise
    except _BROKEN as error:
        reason = str(getattr(error, "strerror", None) or error).partition("\n")[0].lower()
        raise InputError(
            f"'{path}' cannot be read as a tar file: {reason}; restore or replace the file"
        ) from error
