"""`vdm compress`: examples as a file that a trained model decodes, exact to the bit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import click
import numpy as np

from variational_diffusion.checkpoint import Run
from variational_diffusion.classical import code_length, code_lengths
from variational_diffusion.cli.chains import chain_of, measured_errors
from variational_diffusion.cli.console import Meter, print_json, print_table
from variational_diffusion.cli.devices import use_device
from variational_diffusion.cli.examples import (
    check_free,
    chosen_examples,
    everything,
    examples_options,
)
from variational_diffusion.cli.options import device_options, weights_option
from variational_diffusion.compression import (
    MAX_GROUP,
    ChainCoder,
    Encoded,
    Header,
    decode,
    encode,
    group_entry,
    write,
)
from variational_diffusion.data import Split
from variational_diffusion.data.decoding import Decoded
from variational_diffusion.decoders import Discretized
from variational_diffusion.errors import InputError
from variational_diffusion.grids import VARIANCES, assumed_errors, fewest_steps
from variational_diffusion.model import VDM

_COMPARED = 1000  # examples that classical coders get


@dataclass
class Totals:
    """What was written, in bits unless it says otherwise.

    nats: the bounds of the examples that the model coded. stack: on the stacks at the end. first:
    of the examples coded without the model, on the stacks, too. decisions: of close roundings.
    tables: of the groups' payloads besides.
    """

    examples: int = 0
    by_model: int = 0
    nats: float = 0.0
    stack: int = 0
    first: int = 0
    decisions: int = 0
    payload_bytes: int = 0
    payloads: list[bytes] = field(default_factory=list)

    def add(self, group: Encoded) -> None:
        """Count a group that is done."""
        self.examples += group.done
        self.by_model += group.by_model
        self.nats += float(group.nats.sum())
        self.stack += group.stack_bits
        self.first += group.first_bits
        self.decisions += 8 * group.decisions
        self.payload_bytes += len(group.payload)
        self.payloads.append(group.payload)


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
    type=click.IntRange(1, MAX_GROUP),
    default=10_000,
    help="Examples that share a stack: smaller groups are decoded on their own, and cost more.",
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
    split: str,
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

    DATA is anything of the model's kind, all of it; left out, --split of RUN's own data. The file
    needs the model to be read: vdm decompress RUN FILE --out FOLDER. A model with conditions
    compresses without them.
    """
    target = use_device(device, threads)
    _check_target(out)
    opened = Run.open(run)
    vdm = opened.load(weights).to(target)
    if not isinstance(vdm.decoder, Discretized):
        raise InputError(
            f"run = '{run}' is a model of real values: lossless compression is for integers"
        )
    choose = chosen_examples if data is None else everything
    check_free(opened)
    examples = choose(opened, data, split, limit, condition="none")
    variance = variance or _best_variance(opened, weights)
    gammas = chain_of(
        opened,
        vdm,
        weights,
        {
            "grid": "optimal",
            "variance": variance,
            "steps": steps or _default_steps(opened, vdm, weights, variance),
        },
    )
    coder = ChainCoder(vdm, gammas.cpu().numpy(), portable=not fast)
    totals, entries = Totals(), []
    for x in _groups(examples, group, vdm):
        done = _encoded(coder, x, totals.examples / len(examples), len(examples))
        if not no_verify:
            _verify(coder, done, x)
        totals.add(done)
        entries.append(group_entry(done.payload, x, coder.levels))
    header = Header(
        model=coder.model,
        weights=weights,
        variance=variance,
        shape=list(vdm.shape),
        levels=coder.levels,
        precision="fast" if fast else "portable",
        gammas=Header.of_chain(coder.gammas),
        names=_names(examples),
        groups=entries,
    )
    write(out, header, totals.payloads)
    _report(out, coder, totals, examples, as_json)


def _encoded(coder: ChainCoder, x: np.ndarray, before: float, total: int) -> Encoded:
    with Meter("compressing", "images") as meter:
        for so_far in encode(coder, x):
            share = before + so_far.done / total
            meter.update(share, so_far.done, partial(_bits_so_far, so_far, coder))
    return so_far


def _bits_so_far(so_far: Encoded, coder: ChainCoder) -> str:
    return f"{so_far.stack_bits / (so_far.done * coder.dimensions):.3f} bits/dim"


def _verify(coder: ChainCoder, done: Encoded, x: np.ndarray) -> None:
    with Meter("verifying", "images") as meter:
        left = len(x)
        for place, part in decode(coder, done.payload, len(x)):
            if not np.array_equal(part, x[place]):
                raise RuntimeError(f"examples {place} did not decode to what was coded")
            left -= len(part)
            meter.update(1 - left / len(x), len(x) - left, lambda: "")


def _groups(examples: Split, size: int, vdm: VDM) -> Iterator[np.ndarray]:
    """Yield the examples, int64, in parts of at most `size`; only one part is in memory."""
    for first in range(0, len(examples), size):
        rows = np.arange(first, min(first + size, len(examples)))
        yield np.asarray(examples.read(rows)).astype(np.int64).reshape(-1, *vdm.shape)


def _best_variance(run: Run, weights: str) -> str:
    return "position" if run.head(weights) is None else "predicted"


def _default_steps(run: Run, vdm: VDM, weights: str, variance: str) -> int:
    errors = measured_errors(run, vdm, weights)
    return fewest_steps(vdm.schedule, errors, assumed_errors(variance, errors))


def _names(examples: Split) -> list[str] | None:
    """Return the names of the examples' files, where they are files of a folder."""
    source = examples.source
    return source.names(examples.indices) if isinstance(source, Decoded) else None


def _check_target(out: str) -> None:
    if Path(out).suffix != ".vdmz":
        raise InputError(f"out = '{out}': the name of the file ends in .vdmz; give --out FILE.vdmz")
    if Path(out).exists():
        raise InputError(f"out = '{out}' exists: give another --out")


def _report(out: str, coder: ChainCoder, totals: Totals, examples: Split, as_json: bool) -> None:
    size = Path(out).stat().st_size
    values = totals.examples * coder.dimensions
    model_bits = totals.stack - totals.first
    bound = totals.nats / math.log(2)
    overhead = {
        "chain: lattice, rounding and chance": model_bits - bound,
        "first images, without the model": totals.first
        - (bound / totals.by_model if totals.by_model else 0) * (totals.examples - totals.by_model),
        "decisions": totals.decisions,
        "container": 8 * size - totals.stack - totals.decisions,
    }
    ideal = bound * totals.examples / totals.by_model if totals.by_model else 0.0
    compared = np.asarray(examples.limit(min(_COMPARED, len(examples))).read())
    classical = code_lengths(compared, coder.levels)
    classical["WebP or deflate, one by one"] = float(
        np.mean([code_length(image, coder.levels) for image in compared])
    )
    if as_json:
        print_json(
            {
                "file": out,
                "examples": totals.examples,
                "by_model": totals.by_model,
                "bytes": size,
                "bits_per_dim": 8 * size / values,
                "bound": ideal / values,
                "steps": coder.steps,
                "overhead": {name: bits / values for name, bits in overhead.items()},
                "classical": classical,
            }
        )
        return
    per_dim = [(out, size, 8 * size / values), (f"bound, T = {coder.steps}", None, ideal / values)]
    rows = [(name, "" if b is None else f"{b:,}", f"{bits:.4f}") for name, b, bits in per_dim]
    rows += [(f"  + {name}", "", f"{bits / values:.4f}") for name, bits in overhead.items()]
    rows += [(name, "", f"{bits:.4f}") for name, bits in classical.items()]
    title = f"{totals.examples} examples, {totals.by_model} of them by the model"
    if len(compared) < totals.examples:
        title += f"; classical coders on the first {len(compared)}"
    print_table(title, ["", "bytes", "bits per dimension"], rows)
