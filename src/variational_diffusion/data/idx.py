"""IDX files, the format of MNIST and of the sets made after it.

The format: two zero bytes, a byte for the type (8: unsigned bytes), a byte for the number of axes,
their lengths as big-endian 32-bit integers, then the values (Y. LeCun, C. Cortes and C. Burges,
"The MNIST database of handwritten digits", 1998).
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from io import BufferedIOBase
from pathlib import Path

import numpy as np

from variational_diffusion.config import DataConfig
from variational_diffusion.data.arrays import ArraySource
from variational_diffusion.data.dataset import Dataset
from variational_diffusion.data.source import Split
from variational_diffusion.data.splits import random_splits
from variational_diffusion.errors import InputError

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""

_MAGIC = 0x00000803
_HEADER = struct.Struct(">IIII")
_MAX_RATIO = 1100
"""More than deflate can ever gain (1,032): larger claims of a header are refused unread."""


def is_idx_folder(folder: Path) -> bool:
    """Tell whether a folder holds the training images of an IDX data set."""
    return _find(folder, "train") is not None


def open_fashion_mnist(config: DataConfig) -> Dataset:
    """Open Fashion-MNIST, 60,000 + 10,000 images of 28×28 pixels (H. Xiao et al., 2017)."""
    if not is_idx_folder(FASHION_MNIST):
        raise InputError(
            f"fashion-mnist is not at {FASHION_MNIST}; apt-get install dataset-fashion-mnist, or "
            "give a folder with its IDX files instead of the name"
        )
    return _open(FASHION_MNIST, "fashion-mnist", config)


def open_idx_folder(config: DataConfig) -> Dataset:
    """Open a folder with `train-images-idx3-ubyte` and `t10k-images-idx3-ubyte`, or both `.gz`.

    The second is the test split; the validation is drawn out of the first.
    Raises InputError when one is missing, is no IDX file of images, or is not as long as its
    header says.
    """
    folder = Path(config.source).expanduser().resolve()
    return _open(folder, str(folder), config)


def read_idx(path: Path) -> np.ndarray:
    """Return the images of an IDX file, plain (mapped into memory) or gzip, shape (n, h, w), uint8.

    Nothing is allocated before the header has been compared with the file's length, and never more
    than the header declares is inflated. Raises InputError for everything else.
    """
    try:
        with path.open("rb") as file:
            length = path.stat().st_size
            if file.read(2) == b"\x1f\x8b":
                file.seek(0)
                return _read_gzip(path, file, length)
            file.seek(0)
            shape = _read_shape(path, file)
            _check_length(path, length - _HEADER.size, shape)
            return np.memmap(path, np.uint8, "r", offset=_HEADER.size, shape=shape)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"'{path}' cannot be read ({error}); fetch the file again") from error


def _read_gzip(path: Path, file: BufferedIOBase, length: int) -> np.ndarray:
    with gzip.open(file) as stream:
        shape = _read_shape(path, stream)
        size = _size(shape)
        if size > _MAX_RATIO * length:
            raise InputError(
                f"'{path}': the header declares {size:,} pixels, more than {length:,} bytes of "
                "gzip can hold; fetch the file again"
            )
        values = stream.read(size)
        _check_length(path, len(values) + len(stream.read(1)), shape)
    return np.frombuffer(values, np.uint8).reshape(shape)


def _read_shape(path: Path, stream: BufferedIOBase) -> tuple[int, int, int]:
    header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size or _HEADER.unpack(header)[0] != _MAGIC:
        raise InputError(
            f"'{path}' begins with {header[:4].hex() or 'nothing'}, but an IDX file of images "
            f"begins with {_MAGIC:08x}; give the file of the images, not of the labels"
        )
    return _HEADER.unpack(header)[1:]


def _check_length(path: Path, length: int, shape: tuple[int, int, int]) -> None:
    size = _size(shape)
    if length != size:
        n, h, w = shape
        difference = "is cut short" if length < size else "goes on after them"
        raise InputError(
            f"'{path}': the header declares {n:,} images of {h}×{w} pixels ({size:,} bytes), and "
            f"the file {difference}; fetch the file again"
        )


def _size(shape: tuple[int, int, int]) -> int:
    n, h, w = shape
    return n * h * w


def _open(folder: Path, source: str, config: DataConfig) -> Dataset:
    train, test = (_part(folder, part, config.levels) for part in ("train", "t10k"))
    if train.shape != test.shape:
        raise InputError(
            f"'{folder}': training images have shape {train.shape}, test images {test.shape}; give "
            "a folder whose two files belong together"
        )
    splits = random_splits(
        train,
        validation=config.validation,
        test=Split(test, np.arange(len(test))),
        seed=config.split_seed,
    )
    return Dataset(source, splits)


def _part(folder: Path, part: str, levels: int | None) -> ArraySource:
    path = _find(folder, part)
    if path is None:
        raise InputError(
            f"'{folder}' has no {part}-images-idx3-ubyte or {part}-images-idx3-ubyte.gz; add the "
            "file, or give a folder that has it"
        )
    return ArraySource(read_idx(path), path.name, levels=levels)


def _find(folder: Path, part: str) -> Path | None:
    names = (f"{part}-images-idx3-ubyte", f"{part}-images-idx3-ubyte.gz")
    return next((folder / name for name in names if os.path.isfile(folder / name)), None)
