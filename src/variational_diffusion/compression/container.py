"""The file of compressed examples, `.vdmz`: what is read of it is checked before it is used.

docs/format.md describes it byte by byte. A header says which model is needed, what the examples
are and where the groups lie; every group has a digest of its bytes, which finds damage, and one of
its examples, which finds a decoder that computes something else than the encoder did.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from variational_diffusion.compression.chain import GAMMA_UNIT, ChainCoder
from variational_diffusion.compression.group import MAX_GROUP, decode
from variational_diffusion.errors import InputError
from variational_diffusion.files import atomic

MAGIC = b"VDMZ\r\n\x1a\n"
VERSION = 1
_FIXED = struct.Struct("<8sHIQ16s")  # magic, version, bytes of the header, inflated, digest
_MAX_HEADER = 1 << 28
_MAX_GROUP_VALUES = 1 << 28
_HEX = r"^[0-9a-f]{32}$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class GroupEntry(_Strict):
    """One group: how many examples, how many bytes, a digest of each (32 hexadecimal digits)."""

    examples: int = Field(ge=1, le=MAX_GROUP)
    size: int = Field(ge=1, le=1 << 40)
    payload: str = Field(pattern=_HEX)
    contents: str = Field(pattern=_HEX)


class Header(_Strict):
    """What a file says of itself.

    model: digest of the model, from `chain.model_digest`. weights, variance: names under which a
    run has them. gammas: the chain from γ_1 down to γ_0 in units of 1/1024, as little-endian int16
    in base64. names: of the examples, where they have some.
    """

    model: str = Field(pattern=_HEX)
    weights: str = Field(max_length=100)
    variance: str = Field(max_length=100)
    shape: list[int] = Field(min_length=1, max_length=8)
    levels: int = Field(ge=2, le=65_536)
    precision: Literal["portable", "fast"]
    gammas: str = Field(max_length=1 << 20)
    names: list[str] | None = None
    groups: list[GroupEntry] = Field(max_length=1 << 20)

    @property
    def examples(self) -> int:
        """Number of examples in all groups."""
        return sum(entry.examples for entry in self.groups)

    def chain(self) -> np.ndarray:
        """Return the grid of the chain; raise `InputError` for what is none."""
        try:
            units = np.frombuffer(base64.b64decode(self.gammas, validate=True), "<i2")
        except ValueError as error:
            raise InputError(f"the chain of the file is damaged ({error})") from error
        return units.astype(np.float64) * GAMMA_UNIT

    @staticmethod
    def of_chain(gammas: np.ndarray) -> str:
        """Return the text that stands for a chain."""
        return base64.b64encode(np.rint(gammas / GAMMA_UNIT).astype("<i2").tobytes()).decode()


def group_entry(payload: bytes, x: np.ndarray, levels: int) -> GroupEntry:
    """Return the entry of a group of examples x with these bytes."""
    return GroupEntry(
        examples=len(x),
        size=len(payload),
        payload=_digest(payload),
        contents=contents_digest(x, levels),
    )


def contents_digest(x: np.ndarray, levels: int) -> str:
    """Return 32 hexadecimal digits of examples, whatever integer type they have."""
    return _digest(np.ascontiguousarray(x, "u1" if levels <= 256 else "<u2").tobytes())


def write(path: str | os.PathLike[str], header: Header, payloads: Sequence[bytes]) -> None:
    """Write a file; it is whole or not there. Raises InputError as `files.atomic` does."""
    text = header.model_dump_json(exclude_none=True).encode()
    packed = zlib.compress(text, 9)
    fixed = _FIXED.pack(MAGIC, VERSION, len(packed), len(text), bytes.fromhex(_digest(packed)))
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.write(fixed + packed)
        for payload in payloads:
            file.write(payload)


class Container:
    """A file that `write` wrote, opened. Raises InputError where that cannot be.

    header: what it says of itself, checked. damaged: a line for each group that `decoded` left out.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self.size = self.path.stat().st_size
            with self.path.open("rb") as file:
                self.header = self._read_header(file)
                self._start = file.tell()
        except OSError as error:
            reason = str(error.strerror or error).lower()
            raise InputError(f"'{path}' cannot be read: {reason}") from error
        self.damaged: list[str] = []
        self._check()

    def decoded(self, coder: ChainCoder) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield every group's examples, where they belong and int64, with their digest verified.

        A group that is damaged, cut off, or decodes to something else than was coded is left out.
        """
        first, start = 0, self._start
        for entry in self.header.groups:
            place = slice(first, first + entry.examples)
            try:
                x = self._group(entry, start, coder)
            except ValueError as error:
                self.damaged.append(f"examples {place.start} to {place.stop - 1} ({error})")
            else:
                yield place, x
            first, start = place.stop, start + entry.size

    def _group(self, entry: GroupEntry, start: int, coder: ChainCoder) -> np.ndarray:
        with self.path.open("rb") as file:
            file.seek(start)
            payload = file.read(min(entry.size, self.size))
        if _digest(payload) != entry.payload:
            raise ValueError("its bytes are damaged or missing")
        x = np.zeros((entry.examples, *coder.shape), np.int64)
        for place, part in decode(coder, payload, entry.examples):
            x[place] = part
        if contents_digest(x, coder.levels) != entry.contents:
            raise ValueError("it decodes to other values than were coded")
        return x

    def _read_header(self, file: BinaryIO) -> Header:
        fixed = file.read(_FIXED.size)
        if fixed[: len(MAGIC)] != MAGIC:
            raise InputError(f"'{self.path}' is no .vdmz file; give one that vdm compress wrote")
        if len(fixed) < _FIXED.size:
            raise self._damage("it is cut short")
        _, version, packed_size, size, digest = _FIXED.unpack(fixed)
        if version != VERSION:
            raise InputError(
                f"'{self.path}' has format {version}, this version reads {VERSION}: "
                "update variational-diffusion"
            )
        if packed_size > self.size - _FIXED.size or size > _MAX_HEADER:
            raise self._damage("its header is longer than the file")
        packed = file.read(packed_size)
        if bytes.fromhex(_digest(packed)) != digest:
            raise self._damage("its header does not match its digest")
        try:
            inflate = zlib.decompressobj()
            return Header.model_validate_json(inflate.decompress(packed, size))
        except (zlib.error, ValidationError) as error:
            reason = str(error).splitlines()[0]
            raise self._damage(f"its header is not what one is: {reason}") from error

    def _check(self) -> None:
        header = self.header
        if any(not 1 <= axis <= 1 << 24 for axis in header.shape):
            raise self._damage(f"it claims the shape {header.shape}")
        values = math.prod(header.shape)
        if any(entry.examples * values > _MAX_GROUP_VALUES for entry in header.groups):
            raise self._damage("it claims more examples in a group than one may have")
        if self._start + sum(entry.size for entry in header.groups) < self.size:
            raise self._damage("it goes on after its end")
        if header.names is not None and len(header.names) != header.examples:
            raise self._damage(f"it has {len(header.names)} names for {header.examples} examples")

    def _damage(self, reason: str) -> InputError:
        return InputError(f"'{self.path}' is damaged: {reason}; restore it from a copy")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
