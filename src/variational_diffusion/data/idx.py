"""IDX files, the format of MNIST and of the sets made after it.

The format: two zero bytes, a byte for the type (8: unsigned bytes), a byte for the number of axes,
their lengths as big-endian 32-bit integers, then the values (Y. LeCun, C. Cortes and C. Burges,
"The MNIST database of handwritten digits", 1998).
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from collections.abc import Sequence
from io import BufferedIOBase
from pathlib import Path

import numpy as np

from variational_diffusion.config import DataConfig
from variational_diffusion.data.arrays import ArraySource
from variational_diffusion.data.beside import asked, labels_of, names_of
from variational_diffusion.data.dataset import Dataset
from variational_diffusion.data.source import Split
from variational_diffusion.data.splits import IN_ORDER, splits_of
from variational_diffusion.errors import InputError
from variational_diffusion.storage.files import expanded

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""

_TOPS = ("t-shirt", "trouser", "pullover", "dress", "coat")
FASHION_LABELS = (*_TOPS, "sandal", "shirt", "sneaker", "bag", "ankle-boot")
"""Names of Fashion-MNIST's classes 0 to 9."""

_MAGIC = {"images": 0x00000803, "labels": 0x00000801}
_HEADER = {"images": struct.Struct(">IIII"), "labels": struct.Struct(">II")}
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
    fixed = config.model_copy(update={"splits": IN_ORDER})
    return _open(FASHION_MNIST, "fashion-mnist", fixed, FASHION_LABELS)


def open_idx_folder(config: DataConfig) -> Dataset:
    """Open a folder with `train-images-idx3-ubyte` and `t10k-images-idx3-ubyte`, or both `.gz`.

    The second is the test split; the validation is drawn out of the first.
    Raises InputError when one is missing, is no IDX file of images, or is not as long as its
    header says.
    """
    folder = expanded(config.source).resolve()
    return _open(folder, str(folder), config)


def read_idx(path: Path, kind: str = "images") -> np.ndarray:
    """Return the values of an IDX file, plain (mapped into memory) or gzip, uint8.

    kind: "images", shape (n, h, w), or "labels", shape (n,).
    Nothing is allocated before the header has been compared with the file's length, and never more
    than the header declares is inflated. Raises InputError for everything else.
    """
    try:
        with path.open("rb") as file:
            length = path.stat().st_size
            if file.read(2) == b"\x1f\x8b":
                file.seek(0)
                return _read_gzip(path, file, length, kind)
            file.seek(0)
            shape, begin = _read_shape(path, file, kind), _HEADER[kind].size
            _check_length(path, length - begin, shape)
            return np.memmap(path, np.uint8, "r", offset=begin, shape=shape)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"'{path}' cannot be read ({error}); fetch the file again") from error


def _read_gzip(path: Path, file: BufferedIOBase, length: int, kind: str) -> np.ndarray:
    with gzip.open(file) as stream:
        shape = _read_shape(path, stream, kind)
        size = math.prod(shape)
        if size > _MAX_RATIO * length:
            raise InputError(
                f"'{path}': the header declares {size:,} pixels, more than {length:,} bytes of "
                "gzip can hold; fetch the file again"
            )
        values = stream.read(size)
        _check_length(path, len(values) + len(stream.read(1)), shape)
    return np.frombuffer(values, np.uint8).reshape(shape)


def _read_shape(path: Path, stream: BufferedIOBase, kind: str) -> tuple[int, ...]:
    layout, magic = _HEADER[kind], _MAGIC[kind]
    header = stream.read(layout.size)
    if len(header) < layout.size or layout.unpack(header)[0] != magic:
        other = "labels" if kind == "images" else "images"
        raise InputError(
            f"'{path}' begins with {header[:4].hex() or 'nothing'}, but an IDX file of {kind} "
            f"begins with {magic:08x}; give the file of the {kind}, not of the {other}"
        )
    return layout.unpack(header)[1:]


def _check_length(path: Path, length: int, shape: tuple[int, ...]) -> None:
    size = math.prod(shape)
    if length != size:
        of = f" images of {shape[1]}×{shape[2]} pixels" if len(shape) == 3 else " labels"
        difference = "is cut short" if length < size else "goes on after them"
        raise InputError(
            f"'{path}': the header declares {shape[0]:,}{of} ({size:,} bytes), and the file "
            f" {difference}; fetch the file again"
        )


def _open(
    folder: Path, source: str, config: DataConfig, classes: Sequence[str] | None = None
) -> Dataset:
    train, test = (_part(folder, part, config.levels) for part in ("train", "t10k"))
    if train.shape != test.shape:
        raise InputError(
            f"'{folder}': training images have shape {train.shape}, test images {test.shape}; give "
            "a folder whose two files belong together"
        )
    names: tuple[str, ...] | None = None
    labels: tuple[np.ndarray, np.ndarray] | tuple[None, None] = None, None
    if asked(config, ["label"]) is not None:
        of_train = _labels(folder, "train", len(train), classes)
        of_test = _labels(folder, "t10k", len(test), classes)
        names = names_of([*of_train, *of_test])
        labels = labels_of(of_train, names), labels_of(of_test, names)
    its_test = Split(test, np.arange(len(test)), conditions=labels[1])
    return Dataset.of(source, splits_of(config, train, labels[0], test=its_test), labels=names)


def _part(folder: Path, part: str, levels: int | None) -> ArraySource:
    path = _existing(folder, part, "images")
    return ArraySource(read_idx(path), path.name, levels=levels)


def _labels(folder: Path, part: str, count: int, classes: Sequence[str] | None) -> list[str]:
    """Return the class of each of `count` examples by its name, or by its number as text."""
    path = _existing(folder, part, "labels")
    numbers = read_idx(path, "labels").tolist()
    if len(numbers) != count:
        raise InputError(
            f"'{path}' holds {len(numbers):,} labels for {count:,} images; give the two files that "
            "belong together"
        )
    if classes is None:
        return [str(number) for number in numbers]
    if max(numbers) >= len(classes):
        raise InputError(
            f"'{path}' holds the label {max(numbers)}, and there are {len(classes)} classes; fetch "
            "the file again"
        )
    return [classes[number] for number in numbers]


def _existing(folder: Path, part: str, kind: str) -> Path:
    path = _find(folder, part, kind)
    if path is None:
        name = _file_name(part, kind)
        raise InputError(
            f"'{folder}' has no {name} or {name}.gz; add the file, or give a folder that has it"
        )
    return path


def _find(folder: Path, part: str, kind: str = "images") -> Path | None:
    names = (_file_name(part, kind), f"{_file_name(part, kind)}.gz")
    return next((folder / name for name in names if os.path.isfile(folder / name)), None)


def _file_name(part: str, kind: str) -> str:
    return f"{part}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"
