"""`vdm decompress`: the examples of a .vdmz file, as images or as an array."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import click
import numpy as np

from variational_diffusion.checkpoint import Run
from variational_diffusion.cli.chains import widen
from variational_diffusion.cli.console import Meter
from variational_diffusion.cli.devices import use_device
from variational_diffusion.cli.options import device_options
from variational_diffusion.compression import ChainCoder, Container
from variational_diffusion.errors import InputError
from variational_diffusion.files import atomic
from variational_diffusion.pictures import is_image, save_image


@click.command()
@click.argument("run")
@click.argument("file")
@click.option("--out", required=True, help="A new folder for single images, or an .npy file.")
@device_options
def command(run: str, file: str, out: str, device: str, threads: int | None) -> None:
    """Decompress FILE by the model in RUN that it was compressed by.

    Groups that are damaged are left out (in an array their rows are zero) and told at the end.
    """
    target = use_device(device, threads)
    container = Container(file)
    header, path = container.header, Path(out)
    _check_target(container, path)
    opened = Run.open(run)
    vdm = opened.load(header.weights).to(target)
    widen(opened, vdm, header.weights, header.variance)
    coder = ChainCoder(vdm, header.chain(), portable=header.precision == "portable")
    if coder.model != header.model or [*coder.shape] != header.shape:
        raise InputError(
            f"'{file}' was compressed by another model than the {header.weights} weights of "
            f"'{run}' with the variance '{header.variance}'; give the run it was compressed by"
        )
    parts = _with_progress(container, coder)
    if path.suffix == ".npy":
        _write_array(path, container, parts)
    else:
        _write_images(path, container, parts)
    if container.damaged:
        hint = "; it was compressed with --fast, which only the same machine with as many threads "
        hint += "decodes" if header.precision == "fast" else ""
        raise InputError(
            f"'{file}' is damaged: {', '.join(container.damaged)}; all others are in '{out}'"
            f"{hint if header.precision == 'fast' else ''}"
        )
    click.echo(f"{out}   ({header.examples} examples)")


def _with_progress(container: Container, coder: ChainCoder) -> Iterator[tuple[slice, np.ndarray]]:
    with Meter("decompressing", "images") as meter:
        for place, x in container.decoded(coder):
            yield place, x
            meter.update(place.stop / container.header.examples, place.stop, lambda: "")


def _write_array(
    path: Path, container: Container, parts: Iterator[tuple[slice, np.ndarray]]
) -> None:
    header = container.header
    shape = (header.examples, *header.shape)
    dtype = np.min_scalar_type(header.levels - 1)
    with atomic(path) as temporary:
        if header.examples == 0:
            with temporary.open("wb") as file:
                np.save(file, np.zeros(shape, dtype))
            return
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
        for place, x in parts:
            array[place] = x
        array.flush()
        del array


def _write_images(
    path: Path, container: Container, parts: Iterator[tuple[slice, np.ndarray]]
) -> None:
    header = container.header
    path.mkdir(parents=True, exist_ok=True)
    for place, x in parts:
        for i, image in enumerate(x, place.start):
            name = f"{i:05}.png" if header.names is None else _file_name(header.names[i])
            target = path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            save_image(image, header.levels, target)


def _file_name(name: str) -> str:
    """Return where an image of this name goes: lossless formats keep it, others become .png."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or not pure.name:
        raise InputError(f"the file names an image '{name}', which lies outside of a folder")
    return name if pure.suffix.lower() in (".png", ".webp") else f"{name}.png"


def _check_target(container: Container, path: Path) -> None:
    header = container.header
    if path.suffix not in (".npy", ""):
        raise InputError(f"out = '{path}': give an .npy array or a folder")
    if path.suffix == ".npy":
        if path.exists():
            raise InputError(f"out = '{path}' exists: give another --out")
        return
    exact = header.levels == 256 or (header.levels == 65_536 and header.shape[0] == 1)
    if not is_image(tuple(header.shape)) or not exact:
        raise InputError(
            f"out = '{path}': these examples are no images of 256 levels; give --out FILE.npy"
        )
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"out = '{path}' exists and is not empty: give another --out")
