"""The exception for what a user can put right, and two kinds of it."""

import errno
from collections.abc import Iterable
from difflib import get_close_matches
from operator import index
from typing import SupportsIndex

_SHOWN = 40
"""Names that a message lists."""


class InputError(ValueError):
    """A value that the caller gave is not allowed.

    The message is one line: the name and the value, what is allowed, and what to do or type. The
    command line prints it and exits with 2; every other exception is a defect of ours.

    Examples:
        >>> vd.Discretized(levels=1)
        Traceback (most recent call last):
        ...
        variational_diffusion.errors.InputError: levels = 1: discrete data have 2 to 65536 levels
    """


class GoneError(InputError):
    """The data of a run are not where they were."""


class DivergedError(InputError):
    """Training came to numbers that are not finite, again and again."""


class DamagedError(InputError):
    """An example that should be there and cannot be read: damaged, empty or not readable.

    It costs one example: `skip_damaged` leaves it out, and counts it.
    """


class DamagedFileError(InputError):
    """A file is missing, or is not what was written."""


def is_short_of_memory(error: BaseException) -> bool:
    """Return whether memory, or a thread, was refused by Python, by torch or by the system."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    text = str(error).lower()
    return any(reason in text for reason in _REFUSED)


_REFUSED = (
    "cannot allocate memory",
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "can't start new thread",
)


def whole(name: str, value: object, least: int = 1) -> int:
    """Return a whole number; raise `InputError` for anything else, and for less than the least."""
    if not isinstance(value, SupportsIndex) or isinstance(value, bool) or index(value) < least:
        raise InputError(f"{name} = {value!r}: give a whole number of {least} or more")
    return index(value)


def one_of(name: str, value: object, known: Iterable[str]) -> None:
    """Raise `InputError` for a value that is none of those that are known.

    name: of what was given. The message guesses what was meant.
    """
    names = list(known)
    if not isinstance(value, str) or value not in names:
        more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
        shown = ", ".join(names[:_SHOWN])
        raise InputError(f"{name} = {value!r}: known are {shown}{more}{meant(value, names)}")


def meant(value: object, known: Iterable[str]) -> str:
    """Return "; did you mean …?" where a name is close to one that is known, otherwise ""."""
    folded = {name.casefold(): name for name in known}
    close = get_close_matches(str(value).casefold(), folded, 1)
    return f"; did you mean {folded[close[0]]}?" if close else ""
