"""Progress of long work, for whoever wants to show it.

A function that takes time has an argument `progress`: False says nothing, True keeps a line on
standard error up to date, and a callable is given a `Progress` now and then. Remarks of one line
go to the logger "variational_diffusion", at level INFO.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_WIDTH = 20  # of a bar


@dataclass(frozen=True)
class Progress:
    """How far some work is.

    title: the work. unit: what is counted, as in "images". share: of the work that is done, 0 to 1.
    count: units so far. note: returns the number that matters, as text. ended: whether this is the
    last word of this work, done or not.
    """

    title: str
    unit: str
    share: float
    count: int
    note: Callable[[], str]
    ended: bool = False


Tell = Callable[[float, int, Callable[[], str]], None]
"""(share of the work that is done, units so far, the number that matters as text)."""

Listener = Callable[[Progress], None]


def nothing() -> str:
    """Return no note."""
    return ""


@contextmanager
def telling(progress: bool | Listener, title: str, unit: str) -> Iterator[Tell]:
    """Yield what a function calls as it goes on; see `Progress` for title and unit."""
    if progress is False:
        yield lambda share, count, note: None
        return
    listener = _bar() if progress is True else progress
    last = (0.0, 0, nothing)

    def tell(share: float, count: int, note: Callable[[], str]) -> None:
        nonlocal last
        last = (share, count, note)
        listener(Progress(title, unit, share, count, note))

    try:
        yield tell
    finally:
        listener(Progress(title, unit, *last, ended=True))


def _bar() -> Listener:
    """Return what keeps one line on standard error; commands show their own bars."""

    def listener(progress: Progress) -> None:
        bar = "#" * round(_WIDTH * progress.share)
        line = f"{progress.title} {bar:<{_WIDTH}} {progress.share:4.0%} {progress.note()}"
        end = "\n" if progress.ended else "\r"
        sys.stderr.write(f"{line:<79}{end}")
        sys.stderr.flush()

    return listener
