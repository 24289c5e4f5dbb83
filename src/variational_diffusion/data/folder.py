"""A folder of image files, decoded when they are read.

Opening looks at headers alone, so that a folder may be larger than memory.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from variational_diffusion.config import DataConfig
from variational_diffusion.data import formats
from variational_diffusion.data.beside import asked
from variational_diffusion.data.dataset import Dataset, stored_dataset
from variational_diffusion.data.images import check_file, pictures_in
from variational_diffusion.data.stored import Stored
from variational_diffusion.data.walk import walk
from variational_diffusion.errors import DamagedError, InputError
from variational_diffusion.storage.files import expanded

SHARDS = {".parquet": "parquet", ".tar": "webdataset"}
"""Extensions of files that hold many examples, and what `datasets` calls their kind."""

_SPLITS = {
    name: re.compile(rf"(?:^|[-._ 0-9])(?:{words})(?:$|[-._ 0-9])")
    for name, words in (
        ("test", "test|testing|eval|evaluation"),
        ("validation", "validation|valid|val|dev"),
        ("train", "train|training"),
    )
}
"""What the name of a file or folder says of the split that it is."""

_SHOWN = 3


class Picture(NamedTuple):
    """An example of a folder. name: its identity. number: as `Stored.picture`."""

    name: str
    file: str
    number: int | None = None


class Files:
    """Pictures of a folder by number. labelled: by their subfolders."""

    def __init__(self, folder: Path, pictures: list[Picture], *, labelled: bool = False) -> None:
        self.folder = folder
        self._pictures = pictures
        self._labelled = labelled

    def __len__(self) -> int:
        return len(self._pictures)

    def read(self, indices: np.ndarray) -> list[Stored]:
        """Return the pictures of these indices."""
        return [self._stored(*self._pictures[index]) for index in indices]

    def _stored(self, name: str, file: str, number: int | None) -> Stored:
        label = name.partition("/")[0] if self._labelled else None
        return Stored(name, self.folder / file, label, number)


def open_folder(config: DataConfig) -> Dataset:
    """Open the image files of a folder and its subfolders, in the order of their names.

    Files with other extensions are left out and told in the notes; names that begin with a dot
    are not looked at, and what vdm wrote is no data: see `walk`.
    Raises InputError when there are no images, for images of several sizes without `config.resize`
    or `config.crop`, for a mixture of 8 and 16 bits, and for a file that is no image without
    `config.skip_damaged`; one with a sound header is found damaged when it is read. With
    `skip_damaged` every file is decoded here once, so that the number of examples is known.
    """
    files, notes = image_files(config)
    return stored_dataset({"train": files}, config, str(files.folder), notes)


def image_files(config: DataConfig) -> tuple[Files, tuple[str, ...]]:
    """Return the pictures of what `open_folder` opens, and remarks on the other files."""
    folder = expanded(config.source).resolve()
    names, notes = files_below(folder, formats.extensions())
    if not names:
        raise InputError(
            f"'{folder}' holds no images{''.join(f'; {note}' for note in notes)}; give a folder "
            "with images such as .png, .jpg or .webp, or with IDX files, .parquet files or .tar "
            "files"
        )
    labelled = asked(config, ["label"]) is not None
    outside = [name for name in names if "/" not in name]
    if labelled and outside:
        raise InputError(
            f"condition = 'label': '{outside[0]}' lies in no subfolder of '{folder}'; give a "
            "folder with a subfolder for each class"
        )
    pictures = [Picture(name, name) for name in names]
    if config.frames == "each":
        pictures = [
            picture for name in names for picture in _pictures(folder, name, config.skip_damaged)
        ]
    return Files(folder, pictures, labelled=labelled), notes


def _pictures(folder: Path, name: str, skip_damaged: bool) -> list[Picture]:
    """Return all pictures of a file; those of several are called FILE/000, FILE/001 and so on."""
    try:
        count = pictures_in(folder / name, name)
    except DamagedError:
        if not skip_damaged:
            raise
        count = 1
    if count == 1:
        return [Picture(name, name)]
    digits = max(3, len(str(count - 1)))
    return [Picture(f"{name}/{i:0{digits}}", name, i) for i in range(count)]


def kind_of(path: Path) -> str:
    """Return ".parquet" or ".tar" for such a file or a folder with one and no image, else ""."""
    if path.is_file():
        return path.suffix.lower() if path.suffix.lower() in SHARDS else ""
    images, found = formats.extensions(), ""
    for level in walk(path) if path.is_dir() else ():
        suffixes = {_suffix(name) for name in level.files}
        if suffixes & images:
            return ""
        found = found or next((suffix for suffix in SHARDS if suffix in suffixes), "")
    return found


def shard_files(path: Path, suffix: str) -> tuple[dict[str, list[Path]], tuple[str, ...]]:
    """Return the files of an extension by their split, and remarks on the others.

    path: a file or a folder. Files or folders called train, validation or test are these splits,
    all others the training's.
    Raises InputError for what is no regular file or may not be read.
    """
    if path.is_file():
        return {"train": [path]}, ()
    names, notes = files_below(path, {suffix})
    found: dict[str, list[Path]] = {}
    for name in names:
        check_file(path / name, name)
        found.setdefault(_split_of(name), []).append(path / name)
    return found, notes


def files_below(
    folder: Path, suffixes: frozenset[str] | set[str]
) -> tuple[list[str], tuple[str, ...]]:
    """Return the paths in a folder of files with these extensions, sorted, and remarks on others.

    The remarks name the first of the others, and say of formats that are known how they become
    data.
    """
    names: list[str] = []
    others: list[str] = []
    runs = 0
    for level in walk(folder):
        runs += level.is_run
        for name in level.files:
            (names if _suffix(name) in suffixes else others).append(level.prefix + name)
    notes = [f"{runs} runs of vdm in it: what they wrote is left out"] if runs else []
    if others:
        more = ", …" if len(others) > _SHOWN else ""
        shown = ", ".join(sorted(others)[:_SHOWN])
        wanted = "images" if len(suffixes) > 1 else f"{next(iter(suffixes))} files"
        notes.append(f"{len(others)} files that are no {wanted} ignored: {shown}{more}")
    return sorted(names), (*notes, *formats.told(others))


def _split_of(name: str) -> str:
    """Return the split that a path speaks of, its folders before its file; else the training."""
    for part in name.split("/"):
        for split, pattern in _SPLITS.items():
            if pattern.search(part):
                return split
    return "train"


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
