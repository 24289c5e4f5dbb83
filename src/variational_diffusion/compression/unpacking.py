"""The examples of a compressed file, brought back: a folder of images, an array, a file of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePath

import numpy as np

from variational_diffusion.compression.chain import ChainCoder
from variational_diffusion.compression.container import Container, Image
from variational_diffusion.errors import InputError
from variational_diffusion.images.pictures import is_image, keeps_pixels, save_pixels
from variational_diffusion.machine.progress import Listener, nothing, telling
from variational_diffusion.storage.files import FULL, atomic, atomic_folder, check_target, unused

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class Unpacking:
    """A file on its way back: to `path`, a new folder or a new .npy file; None: to an array.

    renamed: images that have another name than they had, because their own kind of file would not
    keep them, or because their name cannot be that of a file here; known once they are written.
    Raises InputError for what the file cannot be brought back as.
    """

    def __init__(self, container: Container, path: Path | None) -> None:
        self.path = path
        self.renamed: list[tuple[str, str]] = []
        self._container = container
        self._shape, self._mode = _common_shape(container), _mode_of(container)
        if path is None:
            if self._shape is None:
                raise InputError(f"'{container.name}' has images of several sizes; name a folder")
        elif path.suffix == ".npy":
            if self._shape is None:
                raise InputError(f"out = '{path}': the images have several sizes; give a folder")
            check_target(path)
        elif path.suffix:
            raise InputError(f"out = '{path}': give an .npy array or a folder")
        elif self._mode is None:
            raise InputError(
                f"out = '{path}': these examples are no images of 256 levels; give --out FILE.npy"
            )
        else:
            check_target(path, folder=True)

    def array(self, coder: ChainCoder, progress: bool | Listener = False) -> np.ndarray:
        """Return all examples, with the type and the axes that they came from.

        Raises InputError where any of them is damaged.
        """
        shape, dtype = self._array_shape()
        array = np.zeros(shape, dtype)
        self._fill(array, coder, progress)
        self._complain("name a folder or an .npy file, and all others are written there")
        return array

    def write(self, coder: ChainCoder, progress: bool | Listener = False) -> Path:
        """Write the examples; return where.

        Images that are damaged are left out, in an array they are zero, and told at the end by an
        `InputError`.
        """
        assert self.path is not None
        if self._container.header.precision == "fast":
            rest = (
                "; it was compressed with --fast, which only the same machine with as many threads "
                "decodes"
            )
        else:
            rest = ""
        if self.path.suffix == ".npy":
            self._write_array(self.path, coder, progress)
        else:
            self._write_images(self.path, coder, progress)
        self._complain(f"all others are in '{self.path}'{rest}")
        return self.path

    def _write_array(self, path: Path, coder: ChainCoder, progress: bool | Listener) -> None:
        shape, dtype = self._array_shape()
        with atomic(path) as temporary:
            if shape[0] == 0:
                with temporary.open("wb") as file:
                    np.save(file, np.zeros(shape, dtype))
                return
            array = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
            self._fill(array, coder, progress)
            array.flush()
            del array

    def _write_images(self, path: Path, coder: ChainCoder, progress: bool | Listener) -> None:
        assert self._mode is not None
        with atomic_folder(path) as folder:
            for image in self._images(coder, progress):
                numbered = f"{image.number:05}.png"
                name = numbered if image.name is None else image.name
                target = self._place(folder, name) or unused(folder / numbered)
                if target != folder / name:
                    self.renamed.append((name, str(target.relative_to(folder))))
                save_pixels(image.values, self._mode, target)

    def _place(self, folder: Path, name: str) -> Path | None:
        """Return a new, empty file with the name of an image, or nearly; None where none can be."""
        assert self._mode is not None
        if not stays_inside(name):
            return None
        target = folder / (name if keeps_pixels(name, self._mode) else f"{name}.png")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target = unused(target)
            target.open("xb").close()
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None) in FULL:
                raise
            return None
        return target

    def _array_shape(self) -> tuple[tuple[int, ...], np.dtype]:
        origin, shape = self._container.header.origin, self._shape
        assert shape is not None
        if origin.axes == "grey":
            shape = shape[1:]
        elif origin.axes == "last":
            shape = (*shape[1:], shape[0])
        dtype = np.dtype(origin.dtype or np.min_scalar_type(self._container.header.levels - 1))
        return (self._container.images, *shape), dtype

    def _fill(self, array: np.ndarray, coder: ChainCoder, progress: bool | Listener) -> None:
        last = self._container.header.origin.axes == "last"
        for image in self._images(coder, progress):
            values = np.moveaxis(image.values, 0, -1) if last else image.values
            array[image.number] = values.reshape(array.shape[1:])

    def _images(self, coder: ChainCoder, progress: bool | Listener) -> Iterator[Image]:
        with telling(progress, "decompressing", "images") as tell:
            for count, image in enumerate(self._container.decoded(coder), 1):
                yield image
                tell(count / self._container.images, count, nothing)

    def _complain(self, rest: str) -> None:
        if self._container.damaged:
            lost = "; ".join(self._container.damaged)
            raise InputError(f"'{self._container.name}' is damaged: {lost}; {rest}")


def stays_inside(name: str) -> bool:
    """Tell whether the name of a file leads to one in a folder that it is put behind."""
    pure = PurePath(name)
    outside = pure.is_absolute() or pure.drive or ".." in pure.parts
    return bool(pure.name) and not outside


def _mode_of(container: Container) -> str | None:
    """Return pillow's mode of the images; None for what is no image whose pixels files keep."""
    header = container.header
    if header.origin.mode is not None:
        return header.origin.mode
    if not is_image(tuple(header.shape)):
        return None
    if header.levels == 65_536 and header.shape[0] == 1:
        return "I;16"
    return _MODES[header.shape[0]] if header.levels == 256 else None


def _common_shape(container: Container) -> tuple[int, ...] | None:
    """Return the shape of all images; None where they have several."""
    shapes = container.shapes() or {tuple(container.header.shape)}
    return shapes.pop() if len(shapes) == 1 else None
