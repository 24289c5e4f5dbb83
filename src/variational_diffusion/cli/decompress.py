"""`vdm decompress`: the examples of a .vdmz file, as images or as an array."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import click
import numpy as np
import torch

from variational_diffusion.cli.console import Meter
from variational_diffusion.cli.devices import use_device
from variational_diffusion.cli.options import device_options
from variational_diffusion.compression import ChainCoder, Container, Image
from variational_diffusion.errors import InputError
from variational_diffusion.images.pictures import is_image, keeps_pixels, save_pixels
from variational_diffusion.run.directory import Run
from variational_diffusion.run.noise_errors import widened
from variational_diffusion.run.trained import Trained
from variational_diffusion.storage.files import atomic, atomic_folder, unused

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@click.command()
@click.argument("run")
@click.argument("file")
@click.option("--out", required=True, help="A new folder for single images, or an .npy file.")
@device_options
def command(run: str, file: str, out: str, device: str, threads: int | None) -> None:
    """Decompress FILE by the model in RUN that it was compressed by.

    Images that are damaged are left out (in an array they are zero) and told at the end.
    """
    target = use_device(device, threads)
    try:
        stream = Path(file).open("rb")  # noqa: SIM115 (closed below)
    except OSError as error:
        reason = str(error.strerror or error).lower()
        raise InputError(f"'{file}' cannot be read: {reason}") from error
    with stream:
        _decompress(run, Container(stream, file), Path(out), target)


def _decompress(run: str, container: Container, path: Path, target: torch.device) -> None:
    header = container.header
    mode, shape = _mode(container), _common_shape(container)
    _check_target(path, mode, shape)
    opened = Run.open(run)
    vdm = opened.load(header.weights).to(target)
    vdm = widened(Trained(opened, header.weights, vdm), header.variance, measure=False)
    coder = ChainCoder(vdm, header.chain(), portable=header.precision == "portable")
    images = _with_progress(container, coder)
    if path.suffix == ".npy":
        assert shape is not None
        _write_array(path, container, shape, images)
    else:
        assert mode is not None
        changed = _write_images(path, mode, images)
        if changed:
            click.echo(
                f"note: {len(changed)} images come back under another name, as .png where their "
                f"own kind of file would not keep them: {', '.join(changed[:3])}"
                f"{', …' if len(changed) > 3 else ''}",
                err=True,
            )
    if container.damaged:
        lost = "; ".join(container.damaged)
        message = f"'{container.name}' is damaged: {lost}; all others are in '{path}'"
        if header.precision == "fast":
            message += (
                "; it was compressed with --fast, which only the same machine with as many threads "
                "decodes"
            )
        raise InputError(message)
    click.echo(f"{path}   ({container.images} images)")


def _with_progress(container: Container, coder: ChainCoder) -> Iterator[Image]:
    with Meter("decompressing", "images") as meter:
        for count, image in enumerate(container.decoded(coder), 1):
            yield image
            meter.update(count / container.images, count, lambda: "")


def _write_array(
    path: Path, container: Container, shape: tuple[int, ...], images: Iterator[Image]
) -> None:
    """Write all images as an array with the type and the axes that they came from."""
    origin = container.header.origin
    dtype = np.dtype(origin.dtype or np.min_scalar_type(container.header.levels - 1))
    if origin.axes == "grey":
        shape = shape[1:]
    elif origin.axes == "last":
        shape = (*shape[1:], shape[0])
    with atomic(path) as temporary:
        if container.images == 0:
            with temporary.open("wb") as file:
                np.save(file, np.zeros((0, *shape), dtype))
            return
        array = np.lib.format.open_memmap(
            temporary, mode="w+", dtype=dtype, shape=(container.images, *shape)
        )
        for image in images:
            values = image.values
            array[image.number] = (
                np.moveaxis(values, 0, -1) if origin.axes == "last" else values.reshape(shape)
            )
        array.flush()
        del array


def _write_images(path: Path, mode: str, images: Iterator[Image]) -> list[str]:
    """Write every image as a file; return the names of those that have another name now."""
    changed = []
    with atomic_folder(path) as folder:
        for image in images:
            name = f"{image.number:05}.png" if image.name is None else _checked(image.name)
            kept = name if keeps_pixels(name, mode) else f"{name}.png"
            target = unused(folder / kept)
            if target != folder / name:
                changed.append(name)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(
                    f"the file names an image '{name}', whose folder is an image, too; give --out "
                    "FILE.npy"
                ) from error
            save_pixels(image.values, mode, target)
    return changed


def _checked(name: str) -> str:
    """Return the name of a file in a folder; raise InputError for what leads out of it."""
    pure, windows = PurePosixPath(name), PureWindowsPath(name)
    outside = pure.is_absolute() or windows.drive or ".." in pure.parts
    if outside or not pure.name or set(name) & set("\\\0"):
        raise InputError(f"the file names an image {name!r}, which lies outside of a folder")
    return name


def _mode(container: Container) -> str | None:
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


def _check_target(path: Path, mode: str | None, shape: tuple[int, ...] | None) -> None:
    if path.suffix not in (".npy", ""):
        raise InputError(f"out = '{path}': give an .npy array or a folder")
    if path.suffix == ".npy":
        if shape is None:
            raise InputError(f"out = '{path}': the images have several sizes; give a folder")
        if path.exists():
            raise InputError(f"out = '{path}' exists: give another --out")
        return
    if mode is None:
        raise InputError(
            f"out = '{path}': these examples are no images of 256 levels; give --out FILE.npy"
        )
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"out = '{path}' exists and is not empty: give another --out")
