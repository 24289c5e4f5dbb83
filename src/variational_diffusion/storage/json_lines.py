"""Files of lines that are appended one by one: JSON objects, each with a checksum."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from variational_diffusion.errors import InputError
from variational_diffusion.storage.files import atomic


def append(path: Path, values: Mapping[str, Any]) -> None:
    """Append one line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(values))


def read(path: Path) -> list[dict[str, Any]]:
    """Return the values of all lines; a last line cut short by a crash is left out.

    Raises InputError that names a line which does not match its checksum.
    """
    found = []
    for number, values in enumerate(_lines(path), 1):
        if values is None:
            raise InputError(
                f"'{path}' is damaged in line {number}: remove this line, or restore the file"
            )
        found.append(values)
    return found


def keep(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the lines that are not wanted, and damaged ones."""
    kept = [values for values in _lines(path) if values is not None and wanted(values)]
    with atomic(path, overwrite=True) as temporary:
        temporary.write_text("".join(map(_line, kept)), encoding="utf-8")


def _line(values: Mapping[str, Any]) -> str:
    line = json.dumps(values)
    return f'{line[:-1]}, "crc32": {zlib.crc32(line.encode())}}}\n'


def _lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """Yield the values of every line; None where it is not what was written."""
    content = path.read_bytes() if path.exists() else b""
    for line in content.split(b"\n")[:-1]:
        try:
            values = json.loads(line)
            checksum = values.pop("crc32")
        except (ValueError, AttributeError, TypeError, KeyError):
            yield None
            continue
        yield values if zlib.crc32(json.dumps(values).encode()) == checksum else None
