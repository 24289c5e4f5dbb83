"""Text of others, such as names of files and columns, made safe for where it is shown.

One function for each medium: `printable` for a line on a terminal, in a table or in a picture,
`typed` for what can be pasted into a shell, `cell` for a spreadsheet, `markdown` and `code` for
a model card and the page of vdm serve, `page_text` for a report, which escapes HTML by itself, and
`json_text`. `parsed_json` reads JSON that anybody may have written.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from typing import Any

_MARKS = re.compile(r"[\\`*_{}\[\]<>#|!~$&@^]")
"""What may mean something to markdown or HTML within a line."""

_DEEPEST = 100
"""Levels of nesting of JSON; what this package writes has fewer than ten."""


def printable(text: str) -> str:
    """Return a text as one line of what it seems to be.

    Control characters, line breaks, marks that turn the direction of writing, and bytes that are
    no UTF-8 become escapes such as \\n.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def typed(*words: object) -> str:
    """Return words as they are typed in a shell: a command, or a path in one.

    Names with characters that a terminal does not show are written as $'...', which bash, zsh and
    ksh read; a name that begins like an option or a home directory is written from `./` on.
    """
    return " ".join(map(_word, map(str, words)))


def _word(word: str) -> str:
    if word.startswith("~"):
        word = f"./{word}"
    if word.isprintable():
        return shlex.quote(word)
    shown = "".join(
        char
        if char.isprintable() and char not in "'\\"
        else "".join(f"\\x{byte:02x}" for byte in os.fsencode(char))
        for char in word
    )
    return f"$'{shown}'"


def cell(text: str) -> str:
    """Return a text for a table that a spreadsheet opens, which would run =, +, - and @."""
    shown = printable(text)
    return f"'{shown}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else shown


def markdown(text: str) -> str:
    """Return a text that markdown shows as it is, in a row of a table too."""
    return _MARKS.sub(lambda found: f"&#{ord(found[0])};", printable(text))


def code(text: str) -> str:
    """Return a text as code in markdown."""
    shown = printable(text)
    return f"<code>{markdown(text)}</code>" if set("`|<>[") & set(shown) else f"`{shown}`"


def page_text(text: str) -> str:
    """Return a text of several lines with nothing in it that is not shown."""
    return "\n".join(map(printable, text.split("\n")))


def json_text(values: Any, *, indent: int | None = None) -> str:
    """Return values as JSON, which knows no numbers that are not finite: they become null."""
    return json.dumps(_finite(values), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def parsed_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises ValueError with a reason of one line for text that is not JSON, for numbers of thousands
    of digits, which Python refuses to read, and for values nested more than 100 levels deep, which
    would exhaust the stack of whoever walks through them.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError as error:
        raise ValueError("a number in it has too many digits") from error
    level = [value]
    for _ in range(_DEEPEST):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return value
    raise ValueError("it is nested too deeply")


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
