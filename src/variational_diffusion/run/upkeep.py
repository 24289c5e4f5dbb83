"""A run directory in training: one process at a time trains in it, and clears up what a kill left.

The lock is that of the system, on the file training.lock, so that a killed process does not hold
it. What other commands write into a run (measured errors, figures, reports) is written whole and
needs no lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from variational_diffusion.errors import InputError
from variational_diffusion.storage.files import expanded, remove_leftovers
from variational_diffusion.storage.lock import locked

_LOCK = "training.lock"
_OF_TRAINING = ("state", "averages", "samples")
"""Folders that only training writes to."""


@contextmanager
def training_alone(path: str | Path) -> Iterator[None]:
    """Keep other trainings out of a run directory for the time of the block; make it if need be.

    Temporary files of trainings that were killed are removed, and of other commands those that are
    an hour old.

    Raises InputError that names who trains there now, and for a directory that cannot be written.
    """
    path = expanded(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"run = '{path}': cannot be written ({error.strerror}); give another --run"
        ) from error
    with locked(path / _LOCK) as holder:
        if holder is not None:
            raise InputError(
                f"run = '{path}': somebody trains here ({holder}); wait until that has ended, or "
                "give another --run"
            )
        remove_leftovers(path)
        for name in _OF_TRAINING:
            remove_leftovers(path / name, age=0.0)
        yield
