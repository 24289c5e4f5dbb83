"""A folder of image files, decoded when they are read.

Opening looks at headers alone, so that a folder may be larger than memory. Of animations and files
of several pages, the first picture is read.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from variational_diffusion.config import DataConfig
from variational_diffusion.data.beside import asked
from variational_diffusion.data.dataset import Dataset, stored_dataset
from variational_diffusion.data.images import extensions
from variational_diffusion.data.stored import Stored
from variational_diffusion.errors import InputError
from variational_diffusion.storage.files import expanded

SHARDS = {".parquet": "parquet", ".tar": "webdataset"}
"""Extensions of files that hold many examples, and what `datasets` calls their kind."""


class Files:
    """Files of a folder by number. names: their paths in it. labelled: by their subfolders."""

    def __init__(self, folder: Path, names: list[str], *, labelled: bool = False) -> None:
        self.folder = folder
        self._names = names
        self._labelled = labelled

    def __len__(self) -> int:
        return len(self._names)

    def read(self, indices: np.ndarray) -> list[Stored]:
        """Return the files of these indices."""
        names = [self._names[index] for index in indices]
        if not self._labelled:
            return [Stored(name, self.folder / name) for name in names]
        return [Stored(name, self.folder / name, name.partition("/")[0]) for name in names]


def open_folder(config: DataConfig) -> Dataset:
    """Open the image files of a folder and its subfolders, in the order of their names.

    Files with other extensions are left out and counted in the notes; names that begin with a dot
    are not looked at.
    Raises InputError when there are no images, for images of several sizes without `config.resize`
    or `config.crop`, for a mixture of 8 and 16 bits, and for a file that is no image without
    `config.skip_damaged`; one with a sound header is found damaged when it is read. With
    `skip_damaged` every file is decoded here once, so that the number of examples is known.
    """
    files, notes = image_files(config)
    return stored_dataset({"train": files}, config, str(files.folder), notes)


def image_files(config: DataConfig) -> tuple[Files, tuple[str, ...]]:
    """Return the image files of what `open_folder` opens, and a remark on the others."""
    folder = expanded(config.source).resolve()
    names, n_others = _image_names(folder)
    if not names:
        found = f"{n_others} files, none of them an image" if n_others else "no images"
        raise InputError(
            f"'{folder}' holds {found}; give a folder with images such as .png, .jpg or .webp, or "
            "with IDX files, .parquet files or .tar files"
        )
    others = (f"{n_others} files that are no images ignored",) if n_others else ()
    labelled = asked(config, ["label"]) is not None
    outside = [name for name in names if "/" not in name]
    if labelled and outside:
        raise InputError(
            f"condition = 'label': '{outside[0]}' lies in no subfolder of '{folder}'; give a "
            "folder with a subfolder for each class"
        )
    return Files(folder, names, labelled=labelled), others


def kind_of(path: Path) -> str:
    """Return ".parquet" or ".tar" for such a file or a folder with one and no image, else ""."""
    if path.is_file():
        return path.suffix.lower() if path.suffix.lower() in SHARDS else ""
    images, found = extensions(), ""
    for _, _, files in os.walk(path):
        suffixes = {os.path.splitext(name)[1].lower() for name in files if name[0] != "."}
        if suffixes & images:
            return ""
        found = found or next((suffix for suffix in SHARDS if suffix in suffixes), "")
    return found


def _image_names(folder: Path) -> tuple[list[str], int]:
    """Return the image files' paths in the folder, sorted, and the number of other files."""
    known = extensions()
    names, n_others, visited = [], 0, set()
    for where, subfolders, files in os.walk(folder, onerror=_unreadable, followlinks=True):
        visited.add(os.path.realpath(where))
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith(".") and os.path.realpath(Path(where, name)) not in visited
        ]
        for name in files:
            if name.startswith("."):
                continue
            if os.path.splitext(name)[1].lower() in known:
                names.append(Path(where, name).relative_to(folder).as_posix())
            else:
                n_others += 1
    return sorted(names), n_others


def _unreadable(error: OSError) -> None:
    reason = str(error.strerror).lower()
    raise InputError(f"'{error.filename}' cannot be read: {reason}; change its permissions")
