"""The exception for what a user can put right, kinds of it, and packages that are not installed."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

DISTRIBUTION = "variational-diffusion"
"""What pip calls this package."""


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


def to_install(extra: str) -> str:
    """Return the line that installs what an extra adds, or several with a comma between them."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Import packages of an extra in this block; where one is missing, say what to type.

    Raises InputError in place of an ImportError. A package that is too old says so in its own
    words.
    """
    try:
        yield
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError)
        problem = f"{error.name} is not installed" if missing else str(error).partition("\n")[0]
        raise InputError(f"{problem}; {to_install(extra)}") from error
