"""The files below a folder: each real folder once, and nothing that this package wrote there."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from variational_diffusion.errors import InputError

_RUN_HAS = {"metrics.jsonl", "model.safetensors", "ema.safetensors", "state"}
_OF_A_RUN = {"averages", "kept", "report", "samples", "state"}
"""Folders of a run directory."""


class Level(NamedTuple):
    """One folder. prefix: "" or its path in the folder that was given, with a slash at the end.

    files: names of all that is no folder, sorted. is_run: whether it is the directory of a run.
    """

    prefix: str
    files: list[str]
    is_run: bool


def walk(folder: Path) -> Iterator[Level]:
    """Yield a folder and those below it; names that begin with a dot are not looked at.

    Links to folders are followed after all real folders, so each is yielded once and under its own
    name if it has one here. The folders of a run directory are left out.
    Raises InputError for a folder that may not be read.
    """
    visited: set[str] = set()
    waiting, linked = deque([""]), deque[str]()
    while waiting or linked:
        prefix = (waiting or linked).popleft()
        where = folder / prefix
        real = os.path.realpath(where)
        if real in visited:
            continue
        visited.add(real)
        subfolders, files = _entries(where)
        is_run = "config.json" in files and bool(_RUN_HAS & {*files, *(e.name for e in subfolders)})
        for entry in subfolders:
            if not (is_run and entry.name in _OF_A_RUN):
                (linked if entry.is_symlink() else waiting).append(f"{prefix}{entry.name}/")
        yield Level(prefix, files, is_run)


def _entries(where: Path) -> tuple[list[os.DirEntry[str]], list[str]]:
    try:
        with os.scandir(where) as entries:
            shown = sorted((e for e in entries if e.name[0] != "."), key=lambda entry: entry.name)
        folders = [entry for entry in shown if entry.is_dir()]
    except OSError as error:
        reason = str(error.strerror or error).lower()
        raise InputError(f"'{where}' cannot be read: {reason}; change its permissions") from error
    names = {entry.name for entry in folders}
    return folders, [entry.name for entry in shown if entry.name not in names]
