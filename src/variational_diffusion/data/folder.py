"""A folder of image files, decoded when they are read.

Opening looks at headers alone, so that a folder may be larger than memory. Of animations and files
of several pages, the first picture is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from variational_diffusion.config import DataConfig
from variational_diffusion.data.images import (
    CHANNELS,
    DamagedError,
    Header,
    extensions,
    read_header,
    read_pixels,
)
from variational_diffusion.data.source import Dataset, verify
from variational_diffusion.data.splits import random_splits
from variational_diffusion.errors import InputError

_ASKED = {"grey": "L", "rgb": "RGB", "rgba": "RGBA"}
_LEVELS = {"1": 2, "I;16": 65_536}


class FolderSource:
    """Image files that are brought to one mode, and to one size if asked.

    names: of the files in `folder`. mode: a key of `images.CHANNELS`. size: (height, width).
    levels: number of values; None: all that the mode has (2, 256 or 65,536).
    resize: crop and resample files of another size; otherwise they are an error.
    """

    def __init__(
        self,
        folder: Path,
        names: list[str],
        *,
        mode: str,
        size: tuple[int, int],
        levels: int | None = None,
        resize: bool = False,
    ) -> None:
        self.shape: tuple[int, ...] = (CHANNELS[mode], *size)
        self.levels: int | None = levels or _LEVELS.get(mode, 256)
        self._folder = folder
        self._names = names
        self._mode = mode
        self._resize = size if resize else None

    def __len__(self) -> int:
        return len(self._names)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Decode the files of these indices, shape (n, *shape), as `Source.read` says."""
        images = np.empty((len(indices), *self.shape), np.int32 if self._mode == "I;16" else "u1")
        for row, index in enumerate(indices):
            images[row] = self._decode(self._names[index])
        verify(images, self.levels, None, lambda row: f"'{self._names[indices[row]]}'")
        return images.astype(np.uint8 if (self.levels or 0) <= 256 else np.uint16, copy=False)

    def _decode(self, name: str) -> np.ndarray:
        pixels = read_pixels(self._folder / name, self._mode, self._resize)
        if pixels.shape != self.shape:
            raise InputError(
                f"'{name}' has shape {pixels.shape}, and had {self.shape} when the folder was "
                "opened; leave the files as they are while they are used, and start again"
            )
        return pixels


def open_folder(config: DataConfig) -> Dataset:
    """Open the image files of a folder and its subfolders, in the order of their names.

    Files with other extensions are left out and counted in the notes; names that begin with a dot
    are not looked at.
    Raises InputError when there are no images, for images of several sizes without `config.resize`,
    for a mixture of 8 and 16 bits, and for a file that is no image without `config.skip_damaged`;
    one with a sound header is found damaged when it is read. With `skip_damaged` every file is
    decoded here once, so that the number of examples is known.
    """
    folder = Path(config.source).expanduser().resolve()
    names, n_others = _image_names(folder)
    headers, n_damaged = _read_headers(folder, names, config.skip_damaged)
    if not headers:
        found = f"{n_damaged} damaged images, {n_others} other files" if n_damaged else "no images"
        if n_others and not n_damaged:
            found = f"{n_others} files, none of them an image"
        raise InputError(
            f"'{folder}' holds {found}; give a folder with images such as .png, .jpg or .webp, or "
            "with IDX files"
        )
    size = _checked_size(config.resize) or _common_size(headers)
    mode = _common_mode(headers, config)
    source = FolderSource(
        folder,
        list(headers),
        mode=mode,
        size=size,
        levels=config.levels,
        resize=config.resize is not None,
    )
    splits = random_splits(
        source, validation=config.validation, test=config.test, seed=config.split_seed
    )
    notes = _notes(list(headers.values()), mode, n_damaged, n_others)
    return Dataset(str(folder), splits, tuple(notes))


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


def _read_headers(
    folder: Path, names: list[str], skip_damaged: bool
) -> tuple[dict[str, Header], int]:
    """Return the headers by name, and how many damaged files were left out."""
    headers, n_damaged = {}, 0
    for name in names:
        try:
            headers[name] = read_header(folder / name, decode=skip_damaged)
        except DamagedError:
            if not skip_damaged:
                raise
            n_damaged += 1
    return headers, n_damaged


def _checked_size(resize: tuple[int, int] | None) -> tuple[int, int] | None:
    if resize is not None and min(resize) < 1:
        raise InputError(f"resize = {resize}: both are at least 1; give --resize HxW, as in 32x32")
    return resize


def _common_size(headers: dict[str, Header]) -> tuple[int, int]:
    first, size = next((name, header.size) for name, header in headers.items())
    other = _first(headers, lambda header: header.size != size)
    if other is not None:
        (h, w), (h_2, w_2) = size, headers[other].size
        raise InputError(
            f"images differ in size: '{first}' has {h}×{w} pixels (height × width), '{other}' has "
            f"{h_2}×{w_2}; bring all to one size with --resize HxW, as in --resize {h}x{w}"
        )
    return size


def _common_mode(headers: dict[str, Header], config: DataConfig) -> str:
    deep = _first(headers, lambda header: header.bits == 16)
    if deep is not None:
        shallow = _first(headers, lambda header: header.bits < 16)
        if shallow is not None:
            raise InputError(
                f"images differ in depth: '{deep}' has 16 bits, '{shallow}' has "
                f"{headers[shallow].bits}; convert them to one depth, or give a folder for each"
            )
        if config.channels in ("rgb", "rgba"):
            raise InputError(
                f"channels = {config.channels!r}: '{deep}' and all others are grey with 16 bits; "
                "leave out --channels, or type --channels grey"
            )
        return "I;16"
    if config.channels in ("auto", "grey") and not config.resize:
        plain = _first(headers, lambda header: header.bits > 1 or header.transparent) is None
        if plain:
            return "1"
    if config.channels == "auto":
        return "RGB" if _first(headers, lambda header: not header.grey) is not None else "L"
    return _ASKED[config.channels]


def _first(headers: dict[str, Header], test: Callable[[Header], bool]) -> str | None:
    return next((name for name, header in headers.items() if test(header)), None)


def _notes(headers: list[Header], mode: str, n_damaged: int, n_others: int) -> Iterator[str]:
    n_grey = sum(header.grey for header in headers)
    n_transparent = sum(header.transparent for header in headers)
    n_reduced = sum(header.reduced for header in headers)
    if n_damaged:
        yield f"{n_damaged} damaged images skipped"
    if n_others:
        yield f"{n_others} files that are no images ignored"
    if n_transparent and mode != "RGBA":
        yield f"alpha put on white in {n_transparent} images (--channels rgba keeps it)"
    if n_grey and mode in ("RGB", "RGBA"):
        yield f"{n_grey} grey images read with {CHANNELS[mode]} channels"
    if n_grey < len(headers) and mode == "L":
        yield f"{len(headers) - n_grey} colour images turned grey"
    if n_reduced:
        yield f"{n_reduced} images with 16 bits of colour read with 8"
