"""JSON that anybody may have written: reading it gives values, or a `ValueError` of one line."""

from __future__ import annotations

import json
from typing import Any

_DEEPEST = 100
"""Levels of nesting; what this package writes has fewer than ten."""


def parse(text: str | bytes) -> Any:
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
