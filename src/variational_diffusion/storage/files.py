"""Files that are whole or not there: written aside, flushed, then renamed."""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from variational_diffusion.errors import InputError

LOG = logging.getLogger(__name__)

FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
"""Numbers of system errors that say that a disk is full."""


@contextmanager
def atomic(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` when the block ends well.

    The temporary name ends like `path`, for writers that go by the extension. It is flushed to the
    disk before it is renamed, so that a crash leaves the old file or the new one, never half of
    one. When the block raises, the temporary file is removed and `path` is as it was.

    overwrite: replace a file that exists; otherwise that is an error, found before the block runs.
    Raises InputError when `path` exists or is no regular file, when its folder is missing or may
    not be written to, and when the disk is full.
    """
    path = Path(path)
    _check_free(path, overwrite)
    temporary = path.with_name(f".{path.stem[:80]}.{secrets.token_hex(4)}{path.suffix}")
    with reported(path):
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        with _told_when_full(path):
            yield temporary
            _flush(temporary)
            _check_free(path, overwrite)
            os.replace(temporary, path)
            _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new folder beside `path`; rename it to `path` when the block ends well.

    When the block raises, the folder is removed with all that is in it. Raises InputError when
    `path` exists and is no empty folder, and when it cannot be made.
    """
    path = Path(path)
    if os.path.lexists(path) and (not path.is_dir() or any(path.iterdir())):
        raise InputError(
            f"'{path}' exists and is no empty folder; give another name, for example "
            f"--out {unused(path)}"
        )
    temporary = path.with_name(f".{path.name[:80]}.{secrets.token_hex(4)}")
    with reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    try:
        with _told_when_full(path):
            yield temporary
            if path.is_dir():
                path.rmdir()
            os.replace(temporary, path)
            _flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turn what the system says while `path` is being made or appended to into an `InputError`."""
    try:
        yield
    except OSError as error:
        raise InputError(_why_not(path, error)) from error


@contextmanager
def cached(what: str) -> Iterator[None]:
    """Write what is only a cache: where that fails, a remark says so and the work goes on.

    The block does nothing but write. A folder that may only be read and a full disk then cost the
    time to compute it again, and never the result.

    what: names it, as in "the measured errors".
    """
    try:
        yield
    except InputError as error:
        LOG.warning("%s could not be kept: %s", what, error)
    except OSError as error:
        LOG.warning("%s could not be kept: %s ('%s')", what, error.strerror, error.filename)


_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{8}(\.\w+)?|\.tmp\w{6}", re.ASCII)
"""Names that `atomic` and `atomic_folder` write under, and those of safetensors."""

_ABANDONED = 3600.0


def remove_leftovers(folder: Path, *, age: float = _ABANDONED) -> None:
    """Remove temporary files in a folder that writers left behind when they were killed.

    age: seconds since the last change from which a file counts as left behind; 0 where nobody else
        may be writing.
    """
    for path in folder.glob(".*"):
        with suppress(OSError):  # somebody else was faster
            if _TEMPORARY.fullmatch(path.name) and time.time() - path.stat().st_mtime >= age:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def _told_when_full(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise InputError(_why_not(path, error)) from error
        raise


def unused(path: str | os.PathLike[str]) -> Path:
    """Return `path`; where it exists, the first of `name-2.png`, `name-3.png`, … that does not."""
    path = Path(path)
    if not os.path.lexists(path):
        return path
    names = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(2))
    return next(name for name in names if not os.path.lexists(name))


def _check_free(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise InputError(f"'{path}' is a folder; give a file in it, for example --out {path}/new")
    if os.path.lexists(path) and not overwrite:
        raise InputError(
            f"'{path}' exists and is not overwritten; give another name, for example "
            f"--out {unused(path)}"
        )
    if path.exists() and not path.is_file():
        raise InputError(f"'{path}' is no regular file; give another name with --out FILE")


def _why_not(path: Path, error: OSError) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"'{path}' cannot be written: '{folder}' is no folder; mkdir -p {folder}"
    reason = (error.strerror or str(error)).lower()
    remedy = "free some space, or give" if error.errno in FULL else "give"
    return f"'{path}' cannot be written: {reason}; {remedy} a place elsewhere with --out FILE"


def _flush(path: Path) -> None:
    """Write what the system still holds of a file, or of the names in a folder, to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def printable(name: str) -> str:
    """Return a file's name as text for terminals, tables and pictures.

    Control characters, line breaks, marks that turn the direction of writing, and bytes that are
    no UTF-8 become escapes such as \\n, so that a name is one line and is what it seems to be.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in name
    )
