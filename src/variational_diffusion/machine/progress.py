"""Progress of long work, for whoever wants to show it.

A function that takes time has an argument `progress`: False says nothing, True shows a bar (rich's,
in a terminal or a notebook), and a callable is given a `Progress` now and then. Remarks of one line
go to the logger "variational_diffusion", at level INFO.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


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
    from rich import progress as bars  # noqa: PLC0415 (a tenth of a second)
    from rich.console import Console  # noqa: PLC0415 (as above)

    columns = ("{task.description}", bars.BarColumn(), bars.TaskProgressColumn())
    shown = bars.Progress(*columns, "{task.fields[note]}", console=Console(stderr=True))
    tasks: list[bars.TaskID] = []

    def listener(progress: Progress) -> None:
        if not tasks:
            tasks.append(shown.add_task(progress.title, total=1.0, note=""))
            shown.start()
        shown.update(tasks[0], completed=progress.share, note=progress.note())
        if progress.ended:
            shown.stop()

    return listener
