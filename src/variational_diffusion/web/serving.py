"""A server on 127.0.0.1 until it is stopped, and the private folder of its files."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import uvicorn
from filelock import FileLock, Timeout

from variational_diffusion.errors import InputError, needs
from variational_diffusion.web.studio import Studio

_HOST = "127.0.0.1"
_PORTS = range(7860, 7960)
_LOCK = "in-use"


def serve(
    studio: Studio, port: int | None, token: str | None, ready: Callable[[str], None]
) -> None:
    """Show the page of a model on 127.0.0.1 until a signal ends it: that of Ctrl-C is raised.

    port: None takes the first free one from 7860 on. token: what its address has to have; None: all
    users of this machine can open it. ready: called with the address.
    Raises InputError for a port that is taken.
    """
    with listening(port) as opened, private_folder() as folder:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(folder)}
        with needs("web"):
            from variational_diffusion.web.page import application  # noqa: PLC0415 (it looks there)

        app = application(studio, folder, token)
        query = "" if token is None else f"?token={token}"
        for number in {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:
            signal.signal(number, _leave)
        ready(f"http://{_HOST}:{opened.getsockname()[1]}/{query}")
        config = uvicorn.Config(
            app, log_level="critical", access_log=False, ws="none", timeout_graceful_shutdown=1
        )
        uvicorn.Server(config).run(sockets=[opened])


@contextmanager
def private_folder() -> Iterator[Path]:
    """Yield a new folder that this user alone can read; it is removed when the block ends.

    Folders that killed servers have left are removed before: a lock in each is held by the process
    that uses it, and by nobody after its end.
    """
    rooms = _rooms()
    with FileLock(rooms / "starting"):  # one sweeps at a time, and none sweeps what is being made
        for left in rooms.glob("*/"):
            _remove_unused(left)
        folder = Path(tempfile.mkdtemp(dir=rooms))
        lock = FileLock(folder / _LOCK)
        lock.acquire()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _remove_unused(folder: Path) -> None:
    try:
        with FileLock(folder / _LOCK).acquire(blocking=False):
            shutil.rmtree(folder, ignore_errors=True)
    except (Timeout, OSError):
        return  # a server is at work there, or has just removed it


def _rooms() -> Path:
    """Return the folder of this user's servers, among the temporary files of the machine."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    rooms = Path(tempfile.gettempdir()) / f"vdm-serve-{user}"
    rooms.mkdir(mode=0o700, exist_ok=True)
    found = rooms.lstat()
    if os.name != "nt" and (found.st_uid != user or found.st_mode & 0o170077 != 0o040000):
        raise InputError(
            f"'{rooms}' is not a folder of yours alone: remove it, or set TMPDIR to another folder"
        )
    return rooms


@contextmanager
def listening(port: int | None) -> Iterator[socket.socket]:
    """Yield a socket that listens on 127.0.0.1.

    port: None takes the first free one from 7860 on. Raises InputError for one that is taken.
    """
    for number in _PORTS if port is None else [port]:
        try:
            opened = socket.create_server((_HOST, number))
        except OSError as error:
            reason = error
            continue
        with opened:
            yield opened
            return
    told = f"port = {port}" if port is not None else f"ports {_PORTS[0]} to {_PORTS[-1]}"
    raise InputError(f"{told}: taken ({reason.strerror}); give another --port") from reason


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
