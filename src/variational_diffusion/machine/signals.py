"""Stopping long work between two steps instead of in the middle of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

Item = TypeVar("Item")

_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


def until(stopped: Callable[[], bool], items: Iterable[Item]) -> Iterator[Item]:
    """Yield items until `stopped()`: how long loops end with what they have."""
    for item in items:
        if stopped():
            return
        yield item


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGINT, SIGTERM or SIGHUP has come.

    The first signal only sets the answer, so that the work can end where it is whole; a second one
    interrupts at once, as it would have without us. SIGHUP is what a terminal sends when it is
    closed. A signal that this process ignores, as `nohup` has it, stays ignored. Python lets the
    main thread alone hear signals; in another the answer is always no.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came = False
    found = {number: signal.getsignal(number) for number in _SIGNALS}
    handlers = {number: handler for number, handler in found.items() if handler != signal.SIG_IGN}

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        restore()

    for number in handlers:
        signal.signal(number, note)
    try:
        yield lambda: came
    finally:
        restore()
