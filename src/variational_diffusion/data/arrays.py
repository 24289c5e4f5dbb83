"""Arrays: in memory, in `.npy` files (memory-mapped) and in `.npz` files."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.lib.npyio import NpzFile

from variational_diffusion.config import DataConfig
from variational_diffusion.data.dataset import Dataset
from variational_diffusion.data.source import MAX_LEVELS, channels_first, verify
from variational_diffusion.data.splits import random_splits
from variational_diffusion.errors import InputError

_CHUNK = 2**24
"""Bytes that a scan looks at together."""


class ArraySource:
    """The examples of an array, along its first axis.

    array: bool, integers or floats, with the axes that `channels_first` allows; may be
        memory-mapped. All values are scanned here, piece by piece, so that a bad one stops a run
        before it starts.
    name: what messages call it.
    levels: number of values of integers; None: 2 for bool, 256 for uint8, 65,536 for uint16, and
        for other integers the largest value plus one.
    value_range: lowest and highest value allowed in real-valued data; None: any finite one.
    stored: the array's type, and how its axes stand to those of the examples: "same", "grey" (the
        axis of the one channel is missing) or "last" (the channels are).
    Raises InputError for other types, an empty array, and a value that is not allowed.
    """

    def __init__(
        self,
        array: np.ndarray,
        name: str,
        *,
        levels: int | None = None,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        _check_type(array.dtype, name, levels, value_range)
        self._examples = channels_first(array, name)
        self.stored = array.dtype, _axes(array, self._examples)
        self._name = name
        self._value_range = value_range
        self.shape: tuple[int, ...] = self._examples.shape[1:]
        self.levels = self._scan(levels)

    def __len__(self) -> int:
        return len(self._examples)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the examples of these indices, shape (n, *shape), as `Source.read` says."""
        rows = np.asarray(self._examples[indices])
        rows = self._verified(rows, self.levels, indices.__getitem__)
        if self.levels is None:
            return np.ascontiguousarray(rows)
        return np.ascontiguousarray(rows, dtype=np.uint8 if self.levels <= 256 else np.uint16)

    def _scan(self, levels: int | None) -> int | None:
        """Verify all values; return the number of levels, None for floats."""
        dtype = self._examples.dtype
        if levels is None and dtype.kind in "bu" and dtype.itemsize <= 2:
            return 2 if dtype.kind == "b" else 2 ** (8 * dtype.itemsize)
        real = dtype.kind == "f"
        largest = 0
        for first, rows in _chunks(self._examples):
            allowed = None if real else levels or MAX_LEVELS
            self._verified(rows, allowed, range(first, first + len(rows)).__getitem__)
            largest = max(largest, 0 if real else int(rows.max()))
        return None if real else levels or max(2, largest + 1)

    def _verified(
        self, rows: np.ndarray, levels: int | None, index: Callable[[int], int]
    ) -> np.ndarray:
        """Return the rows, floats as float32, with every value looked at."""
        if levels is None:
            with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf: refused
                rows = rows.astype(np.float32)
        verify(rows, levels, self._value_range, lambda row: f"{self._name}, example {index(row)}")
        return rows


def open_array(config: DataConfig) -> Dataset:
    """Open a `.npy` file, mapped into memory, or an array of an `.npz` file, read as a whole.

    Raises InputError for a damaged file, for Python objects (nothing is unpickled), for an `.npz`
    file with several arrays when `config.array` names none, and as `ArraySource` does.
    """
    source = array_source(config)
    splits = random_splits(
        source, validation=config.validation, test=config.test, seed=config.split_seed
    )
    return Dataset(str(_path(config)), splits)


def array_source(config: DataConfig) -> ArraySource:
    """Return all examples of what `open_array` opens; raise as it does."""
    path = _path(config)
    if path.suffix.lower() == ".npz":
        array, name = _from_npz(path, config.array)
    else:
        array, name = _from_npy(path), path.name
    return ArraySource(array, name, levels=config.levels, value_range=config.value_range)


def _path(config: DataConfig) -> Path:
    return Path(config.source).expanduser().resolve()


def _from_npy(path: Path) -> np.ndarray:
    with _reading(path):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if isinstance(array, NpzFile):
        array.close()
        raise InputError(f"{path.name} is an .npz file by its contents; rename it to .npz")
    return array


def _from_npz(path: Path, wanted: str | None) -> tuple[np.ndarray, str]:
    with _reading(path), path.open("rb") as file:  # numpy leaves a damaged file open
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise InputError(f"{path.name} is a .npy file by its contents; rename it to .npy")
        names = sorted(archive.files)
        if wanted is None and len(names) == 1:
            wanted = names[0]
        if wanted not in names:
            given = "holds" if wanted is None else f"has no array {wanted!r}; it holds"
            raise InputError(
                f"{path.name} {given} {', '.join(names) or 'no array'}; choose with --array NAME"
            )
        array = archive[wanted]
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path.name}[{wanted}] is no array; save it again with np.savez")
    return array, f"{path.name}[{wanted}]"


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn numpy's errors into messages of one line."""
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(
            f"{path.name} does not fit into memory; save its array with np.save as .npy, which is "
            "read piece by piece"
        ) from error
    except PermissionError as error:
        raise InputError(f"{path.name} may not be read; change its permissions") from error
    except (ValueError, EOFError, OSError, SyntaxError, BadZipFile, zlib.error) as error:
        reason = str(error).partition("\n")[0]
        if "pickle" in reason or "Python objects" in reason:
            raise InputError(
                f"{path.name} holds Python objects, which are never loaded; save an array of bool, "
                "integers or floats with np.save"
            ) from error
        raise InputError(
            f"{path.name} is damaged or no file of numpy ({reason}); save it again with np.save"
        ) from error


def _axes(array: np.ndarray, examples: np.ndarray) -> str:
    if array.ndim < examples.ndim:
        return "grey"
    return "same" if array.shape == examples.shape else "last"


def _chunks(array: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    step = max(1, _CHUNK // (array[0].size * array.dtype.itemsize))
    for first in range(0, len(array), step):
        yield first, np.asarray(array[first : first + step])


def _check_type(
    dtype: np.dtype, name: str, levels: int | None, value_range: tuple[float, float] | None
) -> None:
    if dtype.kind not in "biuf":
        raise InputError(
            f"{name} holds {dtype}: bool, integers or floats are allowed; convert it with astype"
        )
    if dtype.kind == "f" and levels is not None:
        raise InputError(
            f"{name} holds {dtype}: levels = {levels} is for integers; leave out --levels"
        )
    if dtype.kind != "f" and value_range is not None:
        raise InputError(
            f"{name} holds {dtype}: value_range = {value_range} is for floats; leave out --range"
        )
    if value_range is not None and not value_range[0] < value_range[1]:
        raise InputError(
            f"value_range = {value_range}: the lower end comes first; give --range LOW HIGH"
        )
