"""Files that are whole or not there: written aside, flushed, then renamed."""

from __future__ import annotations

import errno
import glob
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

from variational_diffusion.errors import InputError, needs
from variational_diffusion.escaping import typed

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
    path = check_target(path, overwrite=overwrite)
    remove_leftovers(path.parent, of=path)
    temporary = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(4)}{path.suffix}")
    with reported(path):
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        with _told_when_full(path):
            yield temporary
            _flush(temporary)
            check_target(path, overwrite=overwrite)
            os.replace(temporary, path)
            _flush(path.parent)
    finally:
        with suppress(OSError):  # what is left here is removed by a later command
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new folder beside `path`; rename it to `path` when the block ends well.

    When the block raises, the folder is removed with all that is in it. Raises InputError when
    `path` exists and is no empty folder, and when it cannot be made.
    """
    path = check_target(path, folder=True)
    remove_leftovers(path.parent, of=path)
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}")
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


def remove_leftovers(folder: Path, *, of: Path | None = None, age: float = _ABANDONED) -> None:
    """Remove temporary files in a folder that writers left behind when they were killed.

    of: the file that they were to become; None in a folder whose files are all ours.
    age: seconds since the last change from which a file counts as left behind; 0 where nobody else
        may be writing.
    """
    for path in folder.glob(".*" if of is None else f".{glob.escape(of.stem[:40])}.*"):
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


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return the path that a person has written, with what a shell makes of `~` at its beginning.

    A file that is called so is `./~name`. What is returned stays what it is when it is given again.
    Raises InputError for what no file can be called.
    """
    text = os.fspath(path)
    if "\0" in text:
        raise InputError(f"path = {text!r}: a name has no zero byte in it")
    found = Path(os.path.expanduser(text))
    return found.absolute() if str(found).startswith("~") else found


def unused(path: str | os.PathLike[str]) -> Path:
    """Return `path`; where it exists, the first of `name-2.png`, `name-3.png`, … that does not."""
    path = expanded(path)
    if not path.name:  # the folder that one is in, or the root
        path = path / "new"
    if not os.path.lexists(path):
        return path
    names = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(2))
    return next(name for name in names if not os.path.lexists(name))


def check_targets(**targets: tuple[str | os.PathLike[str] | None, tuple[str, ...]]) -> None:
    """Refuse before the work the files that could not be written after it.

    targets: name of the option → path, None where it is not given; and the endings it may have.
    """
    named: dict[Path, str] = {}
    for name, (path, endings) in targets.items():
        if path is None:
            continue
        checked = check_target(path, name, endings)
        if checked in named:
            raise InputError(
                f"{named[checked]} and {name} = '{path}': two results go to one file; give each "
                "another name"
            )
        named[checked] = name


def check_target(
    path: str | os.PathLike[str],
    name: str = "out",
    endings: tuple[str, ...] = (),
    *,
    overwrite: bool = False,
    folder: bool = False,
) -> Path:
    """Return where a result is to be written, if that is possible; this is the one check of it.

    name: of the option. endings: that its name may have; () for any. overwrite: it may be there.
    folder: it is a folder, new or empty, and those above it are made too.
    Raises InputError with the reason and what to give.
    """
    path = expanded(path)
    if endings and path.suffix.lower() not in endings:
        raise InputError(f"{name} = '{path}': give a name that ends in {' or '.join(endings)}")
    if path.suffix.lower() == ".parquet":
        with needs("data"):
            import pyarrow  # noqa: F401, PLC0415 (asked only whether it is there)
    try:
        if _is_there(path):
            _check_replaceable(path, name, endings, overwrite=overwrite, folder=folder)
        above = path.parent
        while folder and not _is_there(above):
            above = above.parent
        if not above.is_dir():
            raise NotADirectoryError
        if not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise InputError(f"{name} = {_why_not(path, error, name)}") from error
    return path


def _check_replaceable(
    path: Path, name: str, endings: tuple[str, ...], *, overwrite: bool, folder: bool
) -> None:
    """Raise InputError for what is there and is not to be replaced."""
    other = f"give another name, for example --{name} {typed(unused(path))}"
    if folder and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{name} = '{path}' exists and is no empty folder; {other}")
    if path.is_dir() and not folder:
        inside = typed(path / f"new{endings[0] if endings else ''}")
        raise InputError(f"{name} = '{path}' is a folder; give a file in it: --{name} {inside}")
    if not folder and not overwrite:
        raise InputError(f"{name} = '{path}' exists and is not overwritten; {other}")
    if not folder and path.exists() and not path.is_file():
        raise InputError(f"{name} = '{path}' is no regular file; {other}")


def _is_there(path: Path) -> bool:
    """Tell whether something has this name; raise OSError where nothing could have it."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _why_not(path: Path, error: OSError, name: str = "out") -> str:
    folder = path.parent
    if not os.path.isdir(folder) and not isinstance(error, PermissionError):
        return f"'{path}' cannot be written: '{folder}' is no folder; mkdir -p {typed(folder)}"
    reason = (error.strerror or str(error)).lower()
    remedy = "free some space, or give" if error.errno in FULL else "give"
    return f"'{path}' cannot be written: {reason}; {remedy} a place elsewhere with --{name} FILE"


def _flush(path: Path) -> None:
    """Write what the system still holds of a file, or of the names in a folder, to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
