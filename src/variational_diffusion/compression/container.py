"""The file of compressed images, `.vdmz`: written group by group, checked before it is used.

docs/format.md describes it byte by byte. A header says which model is needed; every group says of
itself where it belongs and has digests of its table and its bytes; the end says how many there
were. So a file is written as it is made, a group is read without the others, and what damage leaves
whole is found again.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from typing import NamedTuple

import numpy as np

from variational_diffusion.compression.chain import VERSION, ChainCoder
from variational_diffusion.compression.digests import digest
from variational_diffusion.compression.images import decode_images
from variational_diffusion.compression.records import (
    MAX_IMAGES,
    Header,
    Table,
    fits,
    unpacked,
)
from variational_diffusion.errors import InputError

MAGIC = b"VDMZ\r\n\x1a\n"
READ = (2, VERSION)
"""Formats of files that are read."""

_FILE = struct.Struct("<8sHI16s")  # magic, version, bytes of the header, identity
_GROUP = struct.Struct("<4sIQIIQ16s16s")  # mark, number, first, images, bytes, digests: see _Group
_END = struct.Struct("<4sIQ")  # mark, groups, images
_MARK, _END_MARK = b"\xabgrp", b"\xabend"
_DIGEST = 16
_MAX_HEADER = 1 << 22
_MAX_TABLE = 1 << 25
_FARTHEST = (1 << 63) - 1  # that a file can be read at
_CHUNK = 1 << 20
_MOST_PLACES = 1 << 21  # that are looked at for a group: a file of marks alone costs no more
_SHOWN = 20  # ranges of damaged images in a message
_ANY_MARK = re.compile(re.escape(_MARK) + b"|" + re.escape(_END_MARK))


class Writer:
    """Writes a file group by group; it is whole when the block ends well.

    file: open for writing. identity: 16 bytes that tell this file from others, so that no group
    passes for one of another.
    """

    def __init__(
        self, file: BufferedIOBase, header: Header, *, identity: bytes | None = None
    ) -> None:
        self._file, self._header = file, header
        self._identity = secrets.token_bytes(16) if identity is None else identity
        self._groups = self._images = 0

    def __enter__(self) -> Writer:
        packed = self._header.packed()
        fixed = _FILE.pack(MAGIC, VERSION, len(packed), self._identity)
        self._file.write(fixed + packed + digest(fixed, packed))
        return self

    def add(self, images: int, table: Table, payload: bytes) -> None:
        """Write a group."""
        packed = table.packed()
        if table.names and not fits(packed, _MAX_TABLE, images):
            raise InputError(
                f"the names of {images} images in a group are too long; give a smaller --group-size"
            )
        sums = digest(self._identity, packed), digest(self._identity, payload)
        head = _GROUP.pack(
            _MARK, self._groups, self._images, images, len(packed), len(payload), *sums
        )
        for part in (head, digest(self._identity, head), packed, payload):
            self._file.write(part)
        self._groups, self._images = self._groups + 1, self._images + images

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            end = _END.pack(_END_MARK, self._groups, self._images)
            self._file.write(end + digest(self._identity, end))


@dataclass(frozen=True)
class _Group:
    """Where a group is, and what its head says."""

    place: int
    number: int
    first: int
    images: int
    table_bytes: int
    payload_bytes: int
    table: bytes
    payload: bytes

    @property
    def content(self) -> int:
        """Where its table begins."""
        return self.place + _GROUP.size + _DIGEST

    @property
    def end(self) -> int:
        """Where the next group begins."""
        return self.content + self.table_bytes + self.payload_bytes


class Image(NamedTuple):
    """An image of a file: its number, its name if it has one, and its values."""

    number: int
    name: str | None
    values: np.ndarray


class Container:
    """What a `Writer` wrote, opened. Raises InputError where that cannot be.

    file: open for reading, at any place; name: what messages call it. version: of its format.
    header: what it says of itself, checked. images: how many there are, as far as is known.
    damaged: a line for all that could not be brought back: what is missing is known from the
    beginning, the rest after `decoded`.
    """

    def __init__(self, file: BufferedIOBase, name: str) -> None:
        self._file, self.name = file, name
        self.damaged: list[str] = []
        self.images = 0
        self._groups: list[_Group] = []
        try:
            self._size = file.seek(0, os.SEEK_END)
            file.seek(0)
            self.header = self._read_header()
            self._find_groups()
        except OSError as error:
            reason = str(error.strerror or error).lower()
            raise InputError(f"'{name}' cannot be read: {reason}") from error

    def decoded(self, coder: ChainCoder) -> Iterator[Image]:
        """Yield every image that is as it was coded, group by group, verified.

        Within a group, images beside the model come first, the others in their order: where the
        bytes of the model are damaged, the images before that place come back. Raises InputError
        for a coder of another model.
        """
        self._check_coder(coder)
        coder = coder.reading(self.version)
        for group in self._groups:
            missing, sound = np.ones(group.images, bool), False
            try:
                table, payload = self._contents(group)
                sound = digest(self._identity, payload) == group.payload
                names = table.checked_names(group.images)
                for i, values in decode_images(coder, group.images, table, payload):
                    missing[i] = False
                    yield Image(group.first + i, None if names is None else names[i], values)
            except ValueError as error:
                reason = str(error) if sound else "bytes are damaged or missing"
                self._lose(group.first + np.flatnonzero(missing), reason)

    def shapes(self) -> set[tuple[int, ...]]:
        """Return the shapes of the images of all groups whose tables are sound."""
        found: set[tuple[int, ...]] = set()
        for group in self._groups:
            with contextlib.suppress(ValueError):
                table, _ = self._contents(group, payload=False)
                found |= set(table.shapes(group.images, tuple(self.header.shape)))
        return found

    def _check_coder(self, coder: ChainCoder) -> None:
        header = self.header
        theirs = (header.model, header.shape, header.levels, header.precision)
        precision = "portable" if coder.portable else "fast"
        same = theirs == (coder.model, list(coder.shape), coder.levels, precision)
        if not same or not np.array_equal(header.chain(), coder.gammas):
            raise InputError(
                f"'{self.name}' was compressed by another model, with its {header.weights} weights "
                f"and the variance '{header.variance}'; give the run it was compressed by"
            )

    def _contents(self, group: _Group, *, payload: bool = True) -> tuple[Table, bytes]:
        """Read a group; raise ValueError where its table is damaged."""
        try:
            self._file.seek(group.content)
            packed = self._file.read(group.table_bytes)
            content = self._file.read(min(group.payload_bytes, self._size)) if payload else b""
        except OSError as error:
            raise ValueError(str(error.strerror or error).lower()) from error
        if digest(self._identity, packed) != group.table:
            raise ValueError("its table is damaged or missing")
        return unpacked(Table, packed, _MAX_TABLE, group.images), content

    def _read_header(self) -> Header:
        fixed = self._file.read(_FILE.size)
        if fixed[: len(MAGIC)] != MAGIC:
            raise InputError(f"'{self.name}' is no .vdmz file; give one that vdm compress wrote")
        if len(fixed) < _FILE.size:
            raise self._damage("it is cut short")
        _, self.version, size, self._identity = _FILE.unpack(fixed)
        if self.version not in READ:
            raise InputError(
                f"'{self.name}' has format {self.version}, and formats {READ[0]} to {READ[-1]} are "
                "read: give the version of variational-diffusion that wrote it, or a newer one"
            )
        if size > min(_MAX_HEADER, self._size):
            raise self._damage("its header is longer than the file")
        packed = self._file.read(size)
        if self._file.read(_DIGEST) != digest(fixed, packed):
            raise self._damage("its header does not match its digest")
        try:
            header = unpacked(Header, packed, _MAX_HEADER)
            header.chain()
        except ValueError as error:
            raise self._damage(f"its header is not what one is: {error}") from error
        return header

    def _find_groups(self) -> None:
        """Walk from group to group to the end; where the way is broken, search for the next one."""
        place = searched = self._file.tell()
        for _ in range(_MOST_PLACES):
            group, images = self._group_at(place), self._end_at(place)
            if group is not None and group.first >= self.images:
                self._miss(group.first)
                self._groups.append(group)
                self.images = group.first + group.images
                place, searched = group.end, group.content
            elif images is not None and images >= self.images:
                self._miss(images)
                if place + _END.size + _DIGEST != self._size:
                    self.damaged.append("bytes after its end")
                return
            else:
                found = _next_mark(self._file, searched)
                if found is None:
                    break
                place, searched = found, found + 1
        self.damaged.append("its end (it was cut off)")

    def _group_at(self, place: int) -> _Group | None:
        self._file.seek(place)
        head = self._file.read(_GROUP.size)
        if len(head) < _GROUP.size or self._file.read(_DIGEST) != digest(self._identity, head):
            return None
        mark, *fields = _GROUP.unpack(head)
        group = _Group(place, *fields)
        sound = mark == _MARK and 0 < group.images <= MAX_IMAGES and group.table_bytes <= _MAX_TABLE
        return group if sound and group.end <= _FARTHEST else None

    def _end_at(self, place: int) -> int | None:
        """Return the number of images that the end says, if it is here."""
        self._file.seek(place)
        end = self._file.read(_END.size)
        if len(end) < _END.size or self._file.read(_DIGEST) != digest(self._identity, end):
            return None
        mark, _, images = _END.unpack(end)
        return images if mark == _END_MARK else None

    def _miss(self, images: int) -> None:
        """Note that the images up to this number are in no group."""
        if images > MAX_IMAGES * (self._size // _GROUP.size):
            raise self._damage(f"it claims {images:,} images")
        if images > self.images:
            lost = f"images {self.images} to {images - 1}"
            self.damaged.append(f"{lost} (their group is damaged or missing)")
        self.images = images

    def _lose(self, images: np.ndarray, reason: str) -> None:
        if len(images):
            self.damaged.append(f"images {_ranges(images)} ({reason})")

    def _damage(self, reason: str) -> InputError:
        return InputError(f"'{self.name}' is damaged: {reason}; restore it from a copy")


def _next_mark(file: BufferedIOBase, start: int) -> int | None:
    """Return the place of the first mark from `start` on."""
    file.seek(start)
    kept = b""
    while chunk := file.read(_CHUNK):
        text = kept + chunk
        match = _ANY_MARK.search(text)
        if match is not None:
            return start + match.start()
        kept = text[-len(_MARK) + 1 :]
        start += len(text) - len(kept)
    return None


def _ranges(numbers: np.ndarray) -> str:
    """Return rising numbers as text: 0 to 7, 9, 11 to 12."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    texts = [f"{run[0]}" if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs[:_SHOWN]]
    more = [f"and {len(runs) - _SHOWN} ranges more"] if len(runs) > _SHOWN else []
    return ", ".join([*texts, *more])
