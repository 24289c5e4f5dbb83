"""Locks between processes, which the system takes back from whoever ends, also by a kill."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import pwd
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from variational_diffusion.escaping import parsed_json
from variational_diffusion.storage.files import reported

LOG = logging.getLogger(__name__)


@contextmanager
def locked(path: Path) -> Iterator[str | None]:
    """Hold the lock of a file for the time of the block, if nobody else does.

    The file holds the name of the holder: the user, the process, the machine and the time. It stays
    when the lock is given back, empty. On a file system without locks a holder counts that is a
    living process of this machine, and a remark says so.

    Yields None, or who holds the lock instead.

    Raises InputError where the file cannot be written.
    """
    with reported(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    with os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace") as file:
        holder = _holder(file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield holder["name"] or "another process"
            return
        except OSError:
            LOG.warning(
                "'%s': this file system has no locks; nothing keeps a second training on another "
                "machine out",
                path.parent,
            )
            if _lives(holder):
                yield holder["name"]
                return
        _write(file, json.dumps(_own()))
        try:
            yield None
        finally:
            _write(file, "")


@contextmanager
def waiting_for(file: IO[bytes]) -> Iterator[None]:
    """Hold the lock of an open file for the time of the block; wait for whoever holds it.

    Where the file system has no locks the block runs without one.
    """
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)


def _own() -> dict[str, str | int]:
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's users need not have names
        user = f"user {os.getuid()}"
    host, since = socket.gethostname(), time.strftime("%Y-%m-%d %H:%M:%S")
    name = f"{user}, process {os.getpid()} on {host}, since {since}"
    return {"name": name, "host": host, "process": os.getpid()}


def _holder(file: IO[str]) -> dict[str, str]:
    try:
        found = parsed_json(file.read())
    except ValueError:
        found = {}
    found = found if isinstance(found, dict) else {}
    return {key: str(found.get(key, "")) for key in ("name", "host", "process")}


def _lives(holder: dict[str, str]) -> bool:
    number = holder["process"]
    if holder["host"] != socket.gethostname() or not number.isdecimal():
        return False
    try:
        os.kill(int(number), 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return int(number) != os.getpid()


def _write(file: IO[str], text: str) -> None:
    with suppress(OSError):  # the lock holds without the name
        file.seek(0)
        file.truncate()
        file.write(text)
        file.flush()
