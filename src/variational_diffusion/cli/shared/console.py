"""What commands print: progress to standard error, tables and JSON to standard output."""

from __future__ import annotations

import codecs
import io
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.progress import Progress

    from variational_diffusion.machine.progress import Progress as Told

_LINE_INTERVAL = 10.0  # seconds between two lines of progress in a pipe
_BAR_INTERVAL = 0.2  # seconds between two changes of the bar
_LEAST_TEXT = 16  # a column of text is not narrower, if it has that much

_LETTERS = {"±": "+-", "−": "-", "×": "x", "…": "...", "γ": "gamma", "ε": "eps", "α": "alpha"}
"""How symbols are written where the terminal has no letters for them; others become "?"."""


def set_up_streams() -> None:
    """Let nothing that is printed fail for want of letters in the terminal's encoding."""
    codecs.register_error("vdm-letters", _in_letters)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="vdm-letters")


def _in_letters(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return "".join(_LETTERS.get(char, "?") for char in lacking), error.end


def say(text: object = "", *, err: bool = False) -> None:
    """Print one line, to standard output or to standard error.

    All that commands print comes through here or `print_table`, so that names of files and of
    columns cannot move the cursor, set the title of the window, or begin another line.
    """
    from variational_diffusion.escaping import printable

    print(printable(str(text)), file=sys.stderr if err else sys.stdout, flush=True)


class Meter:
    """Progress of long work: a bar on a terminal, a line every ten seconds in a pipe.

    title: the work. unit: what is counted, as in "images".
    """

    def __init__(self, title: str, unit: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.title, self.unit = title, unit
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._interval = _LINE_INTERVAL
        if self._console.is_terminal:
            self._interval = _BAR_INTERVAL
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[note]}"),
                console=self._console,
            )
            self._task = self._bar.add_task(title, total=1.0, note="")

    def __enter__(self) -> Meter:
        self._start = self._shown = time.monotonic()
        self._origin: tuple[float, int] | None = None
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, fraction: float, count: int, note: Callable[[], str]) -> None:
        """Say that `fraction` of the work is done, `count` units so far.

        note: the number that matters, as text; asked for only when it is shown.
        """
        now = time.monotonic()
        if self._origin is None:
            self._origin = (fraction, count)  # work that was done before we began to look
        if now - self._shown < self._interval:
            return
        self._shown = now
        done, counted = fraction - self._origin[0], count - self._origin[1]
        seconds = now - self._start
        parts = [note()]
        if counted:
            parts.append(f"{counted / seconds:.1f} {self.unit}/s")
        if done > 0:
            parts.append(f"{_clock(seconds * (1 - fraction) / done)} left")
        text = ", ".join(part for part in parts if part)
        if self._bar is not None:
            self._bar.update(self._task, completed=fraction, note=text)
        else:
            say(f"{self.title} {100 * fraction:.0f} %: {text}", err=True)

    def message(self, text: str) -> None:
        """Print a line without breaking the bar."""
        if self._bar is not None:
            from variational_diffusion.escaping import printable

            self._bar.console.print(printable(text), highlight=False, markup=False)
        else:
            say(text, err=True)


class Shown:
    """A listener that shows progress by a `Meter` for each piece of work, one after the other."""

    def __init__(self) -> None:
        self._meters: dict[str, Meter] = {}

    def __call__(self, told: Told) -> None:
        if told.ended:
            meter = self._meters.pop(told.title, None)
            if meter is not None:
                meter.__exit__(None, None, None)
            return
        if told.title not in self._meters:
            self._meters[told.title] = Meter(told.title, told.unit).__enter__()
        self._meters[told.title].update(told.share, told.count, told.note)

    def message(self, text: str) -> None:
        """Print a line to standard error without breaking a bar."""
        for meter in self._meters.values():
            return meter.message(text)
        say(text, err=True)


shown = Shown()
"""What commands give as `progress`."""


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = True
) -> None:
    """Print a title and a table to standard output.

    Where the terminal is too narrow for the table, each row is printed as lines "column: value".
    numbers: whether there are numbers in all columns but the first, which stand to the right.
    """
    from rich.console import Console
    from rich.table import Table

    say(title)
    from variational_diffusion.escaping import printable

    columns, rows = list(map(printable, columns)), [list(map(printable, row)) for row in rows]
    console = Console(file=sys.stdout, highlight=False)
    widths = _widths(columns, rows, numbers, console.width)
    if widths is None:
        for line in _as_lines(columns, rows, console.width):
            say(line)
        return
    table = Table(show_header=any(columns))
    for i, column in enumerate(columns):
        justify: Literal["right", "left"] = "right" if numbers and i else "left"
        table.add_column(column, justify=justify, width=widths[i])
    for row in rows:
        table.add_row(*row)
    console.print(table, markup=False)


def _widths(
    columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool, room: int
) -> list[int] | None:
    """Return the widths of a table's columns; None where words or numbers would be broken."""
    from rich.cells import cell_len

    widths, least = [], []
    for i, name in enumerate(columns):
        cells = [row[i] for row in rows]
        widest = max(map(cell_len, cells), default=0)
        whole = numbers and (i > 0 or len(columns) == 2)
        words = [word for text in (name, *cells) for word in text.split()]
        longest = max(map(cell_len, words), default=0)
        least.append(max(longest, widest if whole else min(widest, _LEAST_TEXT)))
        widths.append(max(widest, cell_len(name)))
    room -= 1 + 3 * len(columns)  # what the lines take
    if sum(least) > room:
        return None
    while sum(widths) > room:
        spare = [width - low for width, low in zip(widths, least, strict=True)]
        widths[spare.index(max(spare))] -= 1
    return widths


def _as_lines(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """Write the cells of each row below each other, as "column: value"."""
    for name, *cells in rows:
        if len(columns) == 2:
            pairs = [(name, cells[0])]
        else:
            yield from _wrapped("", f"{columns[0]} {name}" if columns[0] else name, width)
            pairs = [(f"  {column}", cell) for column, cell in zip(columns[1:], cells, strict=True)]
        for column, cell in pairs:
            if cell:
                text = column.lstrip()
                indent = column[: len(column) - len(text)]
                yield from _wrapped(indent, f"{text}: {cell}" if text else cell, width)


def _wrapped(indent: str, text: str, width: int) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=f"{indent}    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def print_json(values: dict[str, Any]) -> None:
    """Print one JSON object, on one line, to standard output."""
    from variational_diffusion.escaping import json_text

    say(json_text(values))


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
