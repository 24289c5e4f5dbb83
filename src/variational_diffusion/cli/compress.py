"""`vdm compress`: examples as a file that a trained model decodes, exact to the bit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np

from variational_diffusion.cli.console import Meter, print_json, print_table, shown
from variational_diffusion.cli.devices import use_device
from variational_diffusion.cli.examples import examples_options
from variational_diffusion.cli.options import device_options, weights_option
from variational_diffusion.compression import (
    MAX_IMAGES,
    MAX_VALUES,
    ChainCoder,
    Container,
    Encoded,
    EncodedImages,
    Header,
    ImageCoding,
    Origin,
    Writer,
    number_of_tiles,
)
from variational_diffusion.data import Originals, open_originals
from variational_diffusion.decoders import Discretized
from variational_diffusion.errors import InputError
from variational_diffusion.grids import VARIANCES, fewest_steps
from variational_diffusion.images.baselines import code_length, code_lengths, picture_lengths
from variational_diffusion.model import VDM
from variational_diffusion.run.directory import Run
from variational_diffusion.run.examples import check_free, chosen_examples
from variational_diffusion.run.noise_errors import expected_errors, reverse_chain
from variational_diffusion.run.trained import Trained
from variational_diffusion.storage.files import atomic

_COMPARED = 1000  # images that classical coders get
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
        """Return what a file of `size` bytes has above the bound for all values, in bits."""
        seeded = self.values - self.by_model - self.beside
        return {
            "chance of the draw": (self.drawn - self.nats) / math.log(2),
            "lattice and rounding": self.stack - self.seeds - self.drawn / math.log(2),
            "padding of tiles": self.padding / math.log(2),
            "tiles that begin a stack, without the model": self.seeds - self.bound * seeded,
            "images beside the model": self.beside_bits - self.bound * self.beside,
            "decisions": self.decisions,
            "container": 8 * size - self.stack - self.decisions - self.beside_bits,
        }


@click.command()
@examples_options
@click.option("--out", required=True, help="The file to write; its name ends in .vdmz.")
@click.option(
    "--steps",
    type=click.IntRange(1, 1000),
    help="Steps T of the chain; default: the fewest that cost 5 % more than infinitely many.",
)
@click.option(
    "--variance",
    type=click.Choice(VARIANCES),
    help="Of the reverse steps; default: predicted where the run has a head (vdm variance), "
    "otherwise position.",
)
@click.option(
    "--group",
    type=click.IntRange(1, MAX_IMAGES),
    default=10_000,
    help="Images that share a stack: smaller groups are decoded on their own, and cost more.",
)
@click.option(
    "--fast",
    is_flag=True,
    help="In float32: twice as fast; only this machine, with as many threads, can decode it.",
)
@click.option("--no-verify", is_flag=True, help="Do not decode what was written.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@weights_option
@device_options
def command(
    run: str,
    data: str | None,
    split: str | None,
    limit: int | None,
    out: str,
    steps: int | None,
    variance: str | None,
    group: int,
    fast: bool,
    no_verify: bool,
    as_json: bool,
    weights: str,
    device: str,
    threads: int | None,
) -> None:
    """Compress examples without loss by the model in RUN.

    DATA is anything of the model's kind, all of it, images of any size; left out, --split of RUN's
    own data. The file needs the model to be read: vdm decompress RUN FILE --out FOLDER. A model
    with conditions compresses without them.
    """
    target = use_device(device, threads)
    _check_target(out)
    opened = Run.open(run)
    vdm = opened.load(weights).to(target)
    if not isinstance(vdm.decoder, Discretized):
        raise InputError(
            f"run = '{run}' is a model of real values: lossless compression is for integers"
        )
    check_free(opened)
    originals = _originals(opened, vdm, data, split, limit)
    for note in originals.notes:
        click.echo(f"note: {note}", err=True)
    variance = variance or _best_variance(opened, weights)
    trained = Trained(opened, weights, vdm)
    steps = steps or _default_steps(trained, variance)
    vdm, gammas = reverse_chain(trained, steps, "optimal", variance, progress=shown)
    coder = ChainCoder(vdm, gammas.cpu().numpy(), portable=not fast)
    header = Header(
        model=coder.model,
        weights=weights,
        variance=variance,
        shape=list(vdm.shape),
        levels=coder.levels,
        precision="fast" if fast else "portable",
        gammas=Header.of_chain(coder.gammas),
        origin=Origin.model_validate(
            {"dtype": originals.dtype, "axes": originals.axes, "mode": originals.mode}
        ),
    )
    totals = Totals()
    with atomic(out) as temporary, temporary.open("w+b") as file:
        with Writer(file, header) as writer, Meter("compressing", "images") as meter:
            for numbers, images in _groups(originals, group, vdm.shape):
                coding = ImageCoding(coder, images, originals.names(numbers))
                for so_far in coding.run():
                    done = totals.images + coding.share * len(images)
                    told = partial(_bits_so_far, so_far, coder)
                    meter.update(done / len(originals), int(done), told)
                encoded = coding.done()
                writer.add(len(images), encoded.table, encoded.payload)
                totals.add(len(images), encoded)
        file.flush()
        if not no_verify:
            _verify(Container(file, out), coder, originals)
    _report(out, coder, totals, originals, as_json)


def _originals(
    run: Run, vdm: VDM, data: str | None, split: str | None, limit: int | None
) -> Originals:
    if data is None:
        return Originals(chosen_examples(run, None, split, limit, condition="none"))
    if split is not None:
        raise InputError(
            f"split = '{split}' is of the run's own data: DATA is compressed as a whole; leave out "
            "--split, or DATA"
        )
    levels = run.config.data.levels
    config = run.config.data.model_copy(update={"condition": None})
    originals = open_originals(data, config, vdm.shape)
    if originals.levels != levels:
        raise InputError(
            f"data = '{data}' has levels {originals.levels}: the model in '{run.path}' takes "
            f"levels {levels}"
        )
    return originals if limit is None else originals.sample(limit)


def _groups(
    originals: Originals, size: int, shape: tuple[int, ...]
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Yield numbers and images in groups of at most `size`; only one group is in memory."""
    images: list[np.ndarray] = []
    first, values = 0, 0
    for number, image in _each(originals, shape):
        needed = number_of_tiles(image.shape, shape) * math.prod(shape)
        if images and (len(images) == size or values + needed > _GROUP_VALUES):
            yield np.arange(first, number), images
            images, first, values = [], number, 0
        images.append(image)
        values += needed
    if images:
        yield np.arange(first, len(originals)), images


def _each(originals: Originals, shape: tuple[int, ...]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield number and values of every image; raise InputError for one the model cannot code."""
    for first in range(0, len(originals), _READ):
        numbers = np.arange(first, min(first + _READ, len(originals)))
        for number, image in zip(numbers.tolist(), originals.read(numbers), strict=True):
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
            yield number, image


def _bits_so_far(so_far: Encoded, coder: ChainCoder) -> str:
    coded = so_far.by_model + so_far.seed
    return f"{so_far.stack_bits / (max(coded, 1) * coder.dimensions):.3f} bits/dim"


def _verify(container: Container, coder: ChainCoder, originals: Originals) -> None:
    """Decode the file, and compare every image with what is read again."""
    with Meter("verifying", "images") as meter:
        for count, image in enumerate(container.decoded(coder), 1):
            original = originals.read(np.array([image.number]))[0]
            if not np.array_equal(image.values, original):
                raise RuntimeError(f"example {image.number} did not decode to what was coded")
            meter.update(count / len(originals), count, lambda: "")
    if container.damaged or container.images != len(originals):
        raise RuntimeError(f"what was written does not decode: {', '.join(container.damaged)}")


def _best_variance(run: Run, weights: str) -> str:
    return "position" if run.head(weights) is None else "predicted"


def _default_steps(trained: Trained, variance: str) -> int:
    errors = expected_errors(trained, variance, progress=shown)
    return fewest_steps(trained.vdm.schedule, *errors)


def _check_target(out: str) -> None:
    if Path(out).suffix != ".vdmz":
        raise InputError(f"out = '{out}': the name of the file ends in .vdmz; give --out FILE.vdmz")
    if Path(out).exists():
        raise InputError(f"out = '{out}' exists: give another --out")


def _classical(images: list[np.ndarray], levels: int) -> dict[str, float]:
    """Return the bits per value of classical coders."""
    if len({image.shape for image in images}) == 1:
        together = np.stack(images)
        return code_lengths(together, levels) | picture_lengths(together, levels)
    bits = sum(code_length(image, levels) * image.size for image in images)
    return {"WebP or deflate, one by one": bits / sum(image.size for image in images)}


def _report(
    out: str, coder: ChainCoder, totals: Totals, originals: Originals, as_json: bool
) -> None:
    size = Path(out).stat().st_size
    per_value = {name: bits / totals.values for name, bits in totals.overhead(size).items()}
    compared = originals.read(np.arange(min(_COMPARED, len(originals))))
    classical = _classical(compared, coder.levels)
    if as_json:
        print_json(
            {
                "file": out,
                **originals.as_json(),
                "beside_the_model": totals.beside_images,
                "bytes": size,
                "bits_per_dim": 8 * size / totals.values,
                "bound": totals.bound,
                "steps": coder.steps,
                "overhead": per_value,
                "classical": classical,
            }
        )
        return
    rows = [
        (out, f"{size:,}", f"{8 * size / totals.values:.4f}"),
        (f"bound, T = {coder.steps}", "", f"{totals.bound:.4f}"),
    ]
    rows += [(f"  + {name}", "", f"{bits:.4f}") for name, bits in per_value.items() if bits]
    rows += [(name, "", f"{bits:.4f}") for name, bits in classical.items()]
    title = f"{originals.description}; {totals.beside_images} of them beside the model"
    if len(compared) < totals.images:
        title += f"; classical coders on the first {len(compared)}"
    print_table(title, ["", "bytes", "bits per dimension"], rows)
