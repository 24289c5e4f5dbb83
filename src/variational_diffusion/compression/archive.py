"""Examples as a file that a model decodes: written and verified.

The same examples, model and options give the same bytes: what tells a file from others, its
identity, is a digest of all of these. So examples are read three times: to see that the model can
code each of them, to code them, and to compare them with what the file gives back.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from io import BufferedIOBase
from pathlib import Path

import numpy as np

from variational_diffusion.compression.baselines import code_length, code_lengths, picture_lengths
from variational_diffusion.compression.chain import ChainCoder
from variational_diffusion.compression.container import Container, Writer
from variational_diffusion.compression.digests import value_type
from variational_diffusion.compression.group import Encoded
from variational_diffusion.compression.images import EncodedImages, ImageCoding
from variational_diffusion.compression.records import MAX_VALUES, Header, Origin
from variational_diffusion.compression.tiles import number_of_tiles
from variational_diffusion.data import Originals
from variational_diffusion.errors import InputError
from variational_diffusion.machine.progress import Listener, nothing, telling
from variational_diffusion.storage.files import atomic, check_target

ENDING = ".vdmz"
COMPARED = 1000
"""Images that classical coders get, at most."""

_IDENTITY = 16
_READ = 64  # images that are read together
_GROUP_VALUES = 1 << 26  # values of a group's tiles: they are in memory together


@dataclass
class Totals:
    """What was written: images, their values, and bits unless it says otherwise.

    by_model, beside: values of the images that the model coded, and of those beside it. nats,
    padding: the bounds of the tiles that the model coded, and the part of their padding. drawn:
    nats that the densities of their latents give. stack: on the stacks at the end. seeds: of the
    tiles that these began with, on the stacks, too. decisions: of close roundings.
    """

    images: int = 0
    values: int = 0
    by_model: int = 0
    beside: int = 0
    beside_images: int = 0
    nats: float = 0.0
    padding: float = 0.0
    drawn: float = 0.0
    stack: int = 0
    seeds: int = 0
    decisions: int = 0
    beside_bits: int = 0

    def add(self, images: int, group: EncodedImages) -> None:
        """Count a group that is done."""
        self.images += images
        self.values += group.values
        self.by_model += group.by_model
        self.beside += group.beside
        self.beside_images += group.beside_images
        self.nats += float(group.stack.nats.sum())
        self.padding += group.stack.padding
        self.drawn += group.stack.drawn
        self.stack += group.stack.stack_bits
        self.seeds += group.stack.seed_bits
        self.decisions += 8 * group.stack.decisions
        self.beside_bits += group.beside_bits

    @property
    def bound(self) -> float:
        """Bits per value of the bound for the images that the model coded."""
        return (self.nats - self.padding) / math.log(2) / self.by_model if self.by_model else 0.0

    def overhead(self, size: int) -> dict[str, float]:
        """Return what a file of `size` bytes has above the bound, in bits per value, by cause."""
        seeded = self.values - self.by_model - self.beside
        bits = {
            "chance of the draw": (self.drawn - self.nats) / math.log(2),
            "lattice and rounding": self.stack - self.seeds - self.drawn / math.log(2),
            "padding of tiles": self.padding / math.log(2),
            "tiles that begin a stack, without the model": self.seeds - self.bound * seeded,
            "images beside the model": self.beside_bits - self.bound * self.beside,
            "decisions": self.decisions,
            "container": 8 * size - self.stack - self.decisions - self.beside_bits,
        }
        return {name: value / self.values for name, value in bits.items()}


def check_new(path: Path) -> None:
    """Raise `InputError` for a name that a compressed file cannot be written under."""
    if path.suffix != ENDING:
        raise InputError(
            f"out = '{path}': the name of the file ends in .vdmz; give --out FILE.vdmz"
        )
    check_target(path)


def pack(
    path: Path,
    coder: ChainCoder,
    originals: Originals,
    *,
    weights: str,
    variance: str,
    group: int,
    verify: bool = True,
    progress: bool | Listener = False,
) -> Totals:
    """Write examples to a new file; it is there when it is whole, and verified.

    weights, variance: names under which a run has what the coder is of. group: images that share a
    stack at most. verify: decode the file and compare before it gets its name.
    Raises InputError for an example that the model cannot code, before anything is coded.
    """
    header = Header(
        model=coder.model,
        weights=weights,
        variance=variance,
        shape=list(coder.shape),
        levels=coder.levels,
        precision="portable" if coder.portable else "fast",
        gammas=Header.of_chain(coder.gammas),
        origin=Origin.model_validate(
            {"dtype": originals.dtype, "axes": originals.axes, "mode": originals.mode}
        ),
    )
    identity = _identity(header, originals, group)
    totals = Totals()
    with atomic(path) as temporary, temporary.open("w+b") as file:
        with (
            Writer(file, header, identity=identity) as writer,
            telling(progress, "compressing", "images") as tell,
        ):
            for numbers, images in _groups(originals, group, coder.shape):
                coding = ImageCoding(coder, images, originals.names(numbers))
                for so_far in coding.run():
                    done = totals.images + coding.share * len(images)
                    note = partial(_bits_so_far, so_far, coder)
                    tell(done / len(originals), int(done), note)
                encoded = coding.done()
                writer.add(len(images), encoded.table, encoded.payload)
                totals.add(len(images), encoded)
        file.flush()
        if verify:
            _verify(file, path, coder, originals, progress)
    return totals


def classical_lengths(originals: Originals, levels: int) -> dict[str, float]:
    """Return the bits per value that classical coders take for the first `COMPARED` images."""
    images = originals.read(np.arange(min(COMPARED, len(originals))))
    if len({image.shape for image in images}) == 1:
        together = np.stack(images)
        return code_lengths(together, levels) | picture_lengths(together, levels)
    bits = sum(code_length(image, levels) * image.size for image in images)
    return {"WebP or deflate, one by one": bits / sum(image.size for image in images)}


def _identity(header: Header, originals: Originals, group: int) -> bytes:
    """Return 16 bytes that tell a file from others; check every image on the way."""
    shape, levels = tuple(header.shape), header.levels
    digest = hashlib.sha256(header.packed() + f"{len(originals)} {group}".encode())
    for number, image in _each(originals):
        if image.shape != shape and not (
            len(image.shape) == len(shape) == 3 and image.shape[0] == shape[0]
        ):
            raise InputError(
                f"example {number} has shape {image.shape}: the model takes {shape}, and "
                "images of other heights and widths"
            )
        if number_of_tiles(image.shape, shape) * math.prod(shape) > MAX_VALUES:
            raise InputError(
                f"example {number} has shape {image.shape}: its tiles may have {MAX_VALUES:,} "
                "values; cut it into several images"
            )
        digest.update(f"{originals.names(np.array([number]))} {image.shape}".encode())
        digest.update(np.ascontiguousarray(image, value_type(levels)).tobytes())
    return digest.digest()[:_IDENTITY]


def _groups(
    originals: Originals, size: int, shape: tuple[int, ...]
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Yield numbers and images in groups of at most `size`; only one group is in memory."""
    images: list[np.ndarray] = []
    first, values = 0, 0
    for number, image in _each(originals):
        needed = number_of_tiles(image.shape, shape) * math.prod(shape)
        if images and (len(images) == size or values + needed > _GROUP_VALUES):
            yield np.arange(first, number), images
            images, first, values = [], number, 0
        images.append(image)
        values += needed
    if images:
        yield np.arange(first, len(originals)), images


def _each(originals: Originals) -> Iterator[tuple[int, np.ndarray]]:
    """Yield number and values of every image."""
    for first in range(0, len(originals), _READ):
        numbers = np.arange(first, min(first + _READ, len(originals)))
        yield from zip(numbers.tolist(), originals.read(numbers), strict=True)


def _bits_so_far(so_far: Encoded, coder: ChainCoder) -> str:
    coded = so_far.by_model + so_far.seed
    return f"{so_far.stack_bits / (max(coded, 1) * coder.dimensions):.3f} bits/dim"


def _verify(
    file: BufferedIOBase,
    path: Path,
    coder: ChainCoder,
    originals: Originals,
    progress: bool | Listener,
) -> None:
    """Decode the file, and compare every image with what is read again."""
    container = Container(file, str(path))
    with telling(progress, "verifying", "images") as tell:
        for count, image in enumerate(container.decoded(coder), 1):
            original = originals.read(np.array([image.number]))[0]
            if not np.array_equal(image.values, original):
                raise RuntimeError(f"example {image.number} did not decode to what was coded")
            tell(count / len(originals), count, nothing)
    if container.damaged or container.images != len(originals):
        raise RuntimeError(f"what was written does not decode: {', '.join(container.damaged)}")
