"""File operations of a process, counted; one of them can end the process, or fail.

Opening for writing, renaming, removing, linking and making folders are seen by Python's audit hooks
before they happen, and flushing is wrapped. What is written by other languages (safetensors in
Rust, pyarrow in C++) is reached by a largest size of files, beyond which the system ends the
process or lets the write fail.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from variational_diffusion.storage.files import FULL

_NAMES = frozenset(
    f"os.{name}"
    for name in ("rename", "remove", "mkdir", "rmdir", "link", "symlink", "truncate", "chmod")
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Operations:
    """Counts the file operations below a folder, and does something before one of them.

    An audit hook stays for the life of a process, so one is made in a child that ends soon.

    Attributes:
        seen: Operations so far.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.seen = 0
        self._at: dict[int, Callable[[str], None]] = {}
        self._from: tuple[int, Callable[[str], None]] | None = None
        sys.addaudithook(self._audit)
        fsync = os.fsync

        def flushed(descriptor: int) -> None:
            self._next("os.fsync")
            fsync(descriptor)

        os.fsync = flushed

    def before(self, number: int, act: Callable[[str], None], *, every: bool = False) -> None:
        """Do something before operation `number`, counted from 1; `every`: and all later ones."""
        if every:
            self._from = (number, act)
        else:
            self._at[number] = act

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            concerned = isinstance(flags, int) and flags & _WRITING
        elif event in _NAMES:
            path, concerned = arguments[0], True
        else:
            return
        named = isinstance(path, str | os.PathLike)
        if concerned and named and os.path.abspath(os.fspath(path)).startswith(self.folder):
            self._next(event)

    def _next(self, event: str) -> None:
        self.seen += 1
        act = self._at.get(self.seen)
        if act is not None:
            act(event)
        if self._from is not None and self.seen >= self._from[0]:
            self._from[1](event)


def killed(_: str) -> None:
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def failing(number: int) -> Callable[[str], None]:
    """Return what lets an operation fail with an error of the system."""

    def fail(event: str) -> None:
        if event in ("os.remove", "os.rmdir") and number in FULL:
            return  # there is always room for less
        raise OSError(number, os.strerror(number))

    return fail


def limit_files(size: int, *, kill: bool) -> None:
    """Set the largest size of a file: writing beyond it ends the process, or fails."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if kill else signal.SIG_IGN)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
