"""Files of lines that are appended one by one: JSON objects, each with a checksum.

A line is there as a whole or not at all, unless the machine stops in the middle of it. Such a line,
and one that was damaged later, is left out and named when the file is read; those after it count.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from variational_diffusion.escaping import parsed_json
from variational_diffusion.storage.files import atomic, reported
from variational_diffusion.storage.lock import waiting_for

LOG = logging.getLogger(__name__)


def append(path: Path, values: Mapping[str, Any]) -> None:
    """Append one line, after the end of a line that was cut short.

    Raises InputError where it cannot be written; the file is then as it was.
    """
    with reported(path), path.open("a+b", buffering=0) as file, waiting_for(file):
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        line = _line(values).encode()
        if file.read(1) not in (b"", b"\n"):
            line = b"\n" + line
        try:
            if file.write(line) < len(line):  # the disk took the beginning alone
                file.write(line[file.tell() - end :])
        except OSError:
            file.truncate(end)
            raise


def read(path: Path) -> list[dict[str, Any]]:
    """Return the values of all whole lines; one remark names those that are damaged.

    A last line without an end is being written, or was cut short; nothing is said of it.
    """
    found = _lines(path)
    damaged = [str(number) for number, (_, values) in enumerate(found, 1) if values is None]
    if damaged:
        LOG.warning(
            "'%s' is damaged in line %s, which is left out; the others count",
            path,
            ", ".join(damaged),
        )
    return [values for _, values in found if values is not None]


def keep(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the lines that are not wanted; set damaged ones aside, in a file ending in .damaged."""
    found = _lines(path)
    damaged = [line for line, values in found if values is None]
    if damaged:
        aside = path.with_suffix(".damaged")
        with reported(aside), aside.open("ab") as file:
            file.writelines(line + b"\n" for line in damaged)
        LOG.warning("'%s': %d damaged lines are now in '%s'", path, len(damaged), aside)
    kept = [values for _, values in found if values is not None and wanted(values)]
    with atomic(path, overwrite=True) as temporary:
        temporary.write_text("".join(map(_line, kept)), encoding="utf-8")


def _line(values: Mapping[str, Any]) -> str:
    line = json.dumps(values)
    return f'{line[:-1]}, "crc32": {zlib.crc32(line.encode())}}}\n'


def _lines(path: Path) -> list[tuple[bytes, dict[str, Any] | None]]:
    """Return every line that has an end with its values; None where it is not what was written."""
    content = path.read_bytes() if path.exists() else b""
    return [(line, _values(line)) for line in content.split(b"\n")[:-1]]


def _values(line: bytes) -> dict[str, Any] | None:
    try:
        values = parsed_json(line)
        checksum = values.pop("crc32")
    except (ValueError, AttributeError, TypeError, KeyError):
        return None
    return values if zlib.crc32(json.dumps(values).encode()) == checksum else None
