"""Progress of long work, for whoever wants to show it.

A function that takes time has an argument `progress`: False says nothing, True shows a bar (tqdm's,
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

_BAR = "{desc}: {percentage:3.0f}% |{bar}| {postfix}"


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
    from tqdm.auto import tqdm  # noqa: PLC0415 (in a notebook it loads widgets)

    shown: list[tqdm] = []

    def listener(progress: Progress) -> None:
        if not shown:
            shown.append(tqdm(total=1.0, desc=progress.title, bar_format=_BAR))
        bar = shown[0]
        bar.update(progress.share - bar.n)
        bar.set_postfix_str(progress.note(), refresh=False)
        if progress.ended:
            bar.close()

    return listener
