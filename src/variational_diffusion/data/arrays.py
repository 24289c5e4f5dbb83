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
from variational_diffusion.data import doubts
from variational_diffusion.data.beside import KINDS, asked, labels_of, names_of
from variational_diffusion.data.dataset import Dataset
from variational_diffusion.data.decoding import BROKEN_NPY, reason_of
from variational_diffusion.data.source import (
    MAX_LEVELS,
    Finite,
    as_read,
    channels_first,
    check_range,
    real_type,
    verify,
)
from variational_diffusion.data.splits import splits_of
from variational_diffusion.errors import InputError
from variational_diffusion.escaping import printable
from variational_diffusion.storage.files import expanded

_CHUNK = 2**24
"""Bytes that a scan looks at together."""

_LARGE, _TIMES = 1 << 30, 100
"""Bytes of an array of an .npz file, and times those that it is packed into, that are allowed: no
more than one of the two."""

_LABEL = "label"
"""The array of labels where none is named."""


class ArraySource:
    """The examples of an array, along its first axis.

    array: bool, integers or floats, with the axes that `channels_first` allows; may be
        memory-mapped. All values are scanned here, piece by piece, so that a bad one stops a run
        before it starts.
    name: what messages call it.
    levels: number of values of integers; None: 2 for bool, 256 for uint8, 65,536 for uint16, and
        for other integers the largest value plus one. Floats with levels are read as integers, as
        `source.as_read` says.
    value_range: lowest and highest value allowed in real-valued data; None: any finite one.
    notes: what the array may have been meant as instead, of one line each.
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
        self.notes = doubts.of_axes(array.shape, self.shape)
        if levels is None and array.dtype.kind == "u":
            _, first = next(_chunks(self._examples))
            self.notes += doubts.of_levels(first, self.levels)

    def __len__(self) -> int:
        return len(self._examples)

    @property
    def is_read_as_levels(self) -> bool:
        """Whether `read` gives numbers of levels and not the values that are stored."""
        of_levels = self._value_range is not None or self.stored[0].kind == "f"
        return self.levels is not None and of_levels

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the examples of these indices, shape (n, *shape), as `Source.read` says."""
        return as_read(
            np.asarray(self._examples[indices]),
            self.levels,
            self._value_range,
            self._naming(indices.__getitem__),
        )

    def _scan(self, levels: int | None) -> int | None:
        """Verify all values; return the number of levels, None for floats."""
        dtype = self._examples.dtype
        if levels is None and dtype.kind in "bu" and dtype.itemsize <= 2:
            return 2 if dtype.kind == "b" else 2 ** (8 * dtype.itemsize)
        real = dtype.kind == "f"
        as_levels = levels is not None and (real or self._value_range is not None)
        largest, finite = 0, Finite()
        for first, rows in _chunks(self._examples):
            name = self._naming(range(first, first + len(rows)).__getitem__)
            if real:
                finite.look(rows, name)
            elif not as_levels:
                verify(rows, levels or MAX_LEVELS, None, name)
                largest = max(largest, int(rows.max()))
        finite.check()
        narrower = as_levels or self._value_range is not None
        for first, rows in _chunks(self._examples) if narrower else ():
            name = self._naming(range(first, first + len(rows)).__getitem__)
            as_read(rows, levels, self._value_range, name)
        return levels if real or as_levels else levels or max(2, largest + 1)

    def _naming(self, index: Callable[[int], int]) -> Callable[[int], str]:
        """Return what names a row in messages. index: row → number of the example."""
        return lambda row: f"{self._name}, example {index(row)}"


def open_array(config: DataConfig) -> Dataset:
    """Open a `.npy` file, mapped into memory, or an array of an `.npz` file, read as a whole.

    Raises InputError for a damaged file, for Python objects (nothing is unpickled), for an `.npz`
    file with several arrays when `config.array` names none, and as `ArraySource` does.
    """
    source = array_source(config)
    conditions, labels = None, None
    wanted = asked(config, KINDS if _is_npz(config) else [])
    if wanted is not None:
        values, name = _from_npz(_path(config), wanted.name or _LABEL)
        conditions, labels = conditions_beside(values, name, wanted.kind, source)
    parts = splits_of(config, source, conditions)
    return Dataset.of(str(_path(config)), parts, source.notes, labels)


def array_source(config: DataConfig) -> ArraySource:
    """Return all examples of what `open_array` opens; raise as it does."""
    path = _path(config)
    if _is_npz(config):
        wanted = asked(config, KINDS)
        beside = None if wanted is None else wanted.name or _LABEL
        array, name = _from_npz(path, config.array, beside)
    else:
        array, name = read_npy(path), path.name
    return ArraySource(array, name, levels=config.levels, value_range=config.value_range)


def _path(config: DataConfig) -> Path:
    return expanded(config.source).resolve()


def _is_npz(config: DataConfig) -> bool:
    return _path(config).suffix.lower() == ".npz"


def conditions_beside(
    values: np.ndarray, named: str, kind: str, source: ArraySource
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Return what the examples are conditioned on, and the names of labels."""
    if values.ndim == 0 or len(values) != len(source):
        raise InputError(
            f"{named} has shape {values.shape}, and there are {len(source)} examples: one "
            "condition for each is needed; save arrays of one length"
        )
    if kind == "label":
        if values.ndim != 1 or values.dtype.kind not in "biuU":
            raise InputError(
                f"{named} holds {values.dtype} of shape {values.shape}: labels are whole numbers "
                "or text, one for each example"
            )
        names = names_of(values)
        return labels_of(values, names), names
    if kind == "vector" and values.ndim == 1:
        values = values[:, None]
    conditions = channels_first(values, named)
    if kind == "image":
        if conditions.ndim != 4 or conditions.shape[2:] != source.shape[1:]:
            raise InputError(
                f"{named} has shape {values.shape}, and examples {source.shape}: images to "
                "condition on have the height and width of the examples; resample them"
            )
    elif conditions.ndim != 2:
        raise InputError(f"{named} has shape {values.shape}: vectors are of shape (n, d)")
    if conditions.dtype.kind not in "biuf" or not np.isfinite(conditions).all():
        raise InputError(f"{named} holds {values.dtype}: finite numbers are allowed")
    kept = np.uint8 if conditions.dtype == np.uint8 else real_type(conditions.dtype)
    return np.ascontiguousarray(conditions, kept), None


def read_npy(path: Path) -> np.ndarray:
    """Return the array of a .npy file, mapped into memory; raise `InputError` for another file."""
    with _reading(path):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if isinstance(array, NpzFile):
        array.close()
        raise InputError(f"{path.name} is an .npz file by its contents; rename it to .npz")
    return array


def _from_npz(path: Path, wanted: str | None, beside: str | None = None) -> tuple[np.ndarray, str]:
    """Return an array and its name: the wanted one, or the only one that is not `beside`."""
    with _reading(path), path.open("rb") as file:  # numpy leaves a damaged file open
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise InputError(f"{path.name} is a .npy file by its contents; rename it to .npy")
        names = sorted(name for name in archive.files if name != beside)
        if wanted is None and len(names) == 1:
            wanted = names[0]
        if wanted not in names:
            given = "holds" if wanted is None else f"has no array {wanted!r}; it holds"
            found = ", ".join(map(printable, names)) or "no array"
            raise InputError(f"{path.name} {given} {found}; choose with --array NAME")
        assert wanted is not None
        _check_claim(archive, path, wanted)
        array = archive[wanted]
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path.name}[{wanted}] is no array; save it again with np.savez")
    return array, f"{path.name}[{wanted}]"


def _check_claim(archive: NpzFile, path: Path, name: str) -> None:
    """Raise InputError for an array that is much larger than the file that holds it."""
    assert archive.zip is not None
    members = {info.filename.removesuffix(".npy"): info for info in archive.zip.infolist()}
    claimed, packed = members[name].file_size, members[name].compress_size
    if claimed > _LARGE and claimed > _TIMES * packed:
        raise InputError(
            f"{path.name}[{name}] has {claimed:,} bytes, packed into {packed:,}, and would be "
            f"unpacked into memory: unzip {path.name} if it may have them, and give {name}.npy"
        )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn numpy's errors into messages of one line."""
    try:
        with np.errstate(over="ignore"):  # of sizes that headers claim
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
    except (*BROKEN_NPY, BadZipFile, zlib.error) as error:
        reason = reason_of(error)
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
    if dtype.kind != "f" and levels is None and value_range is not None:
        raise InputError(
            f"{name} holds {dtype}: value_range = {value_range} is for floats; leave out --range"
        )
    check_range(value_range)
