"""`vdm compress`: examples as a file that a trained model decodes, exact to the bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from variational_diffusion.cli.shared.console import print_json, print_table, shown
from variational_diffusion.cli.shared.examples import examples_options
from variational_diffusion.cli.shared.options import (
    device_options,
    json_option,
    open_run,
    weights_option,
)
from variational_diffusion.cli.shared.sampling import VARIANCES
from variational_diffusion.cli.shared.types import OneOf

if TYPE_CHECKING:
    from variational_diffusion.run.compression import Compressed

GROUP, MAX_IMAGES = 10_000, 1 << 20
"""As in `run.compression` and `compression`, which import torch; a test compares them."""


@click.command()
@examples_options
@click.option("--out", type=click.Path(), required=True, help="Where to write: a new .vdmz file.")
@click.option(
    "--steps",
    type=click.IntRange(1, 1000),
    help="Steps T of the chain; default: the fewest that cost 5 % more than infinitely many.",
)
@click.option(
    "--variance",
    type=OneOf(VARIANCES),
    help="Variance of the reverse steps; default: predicted where the run has a head (vdm "
    "variance), "
    "otherwise position.",
)
@click.option(
    "--group-size",
    type=click.IntRange(1, MAX_IMAGES),
    default=GROUP,
    help="Images that share a stack: smaller groups are decoded on their own, and cost more.",
)
@click.option(
    "--fast",
    is_flag=True,
    help="In float32: twice as fast; only this machine, with as many threads, can decode it.",
)
@click.option("--no-verify", is_flag=True, help="Do not decode what was written.")
@json_option
@weights_option
@device_options
def command(
    run: str, data: str | None, out: str, no_verify: bool, as_json: bool, **options: Any
) -> None:
    """Compress examples without loss by the model in RUN.

    DATA is anything of the model's kind, all of it, images of any size; left out, --split of RUN's
    own data. The file needs the model to be read: vdm decompress RUN FILE --out FOLDER. A model
    with conditions compresses without them.

    Example: vdm compress runs/first photos --out photos.vdmz
    """
    from variational_diffusion.run.compression import compress

    found = compress(open_run(run), data, out, verify=not no_verify, progress=shown, **options)
    if as_json:
        print_json(found.as_json())
    else:
        _print(found)


def _print(found: Compressed) -> None:
    rows = [
        (str(found.path), f"{found.bytes:,}", f"{found.bits_per_dim:.4f}"),
        (f"bound, T = {found.steps}", "", f"{found.bound:.4f}"),
    ]
    rows += [(f"  + {name}", "", f"{bits:.4f}") for name, bits in found.overhead.items() if bits]
    rows += [(name, "", f"{bits:.4f}") for name, bits in found.classical.items()]
    title = f"{found.examples['description']}; {found.beside_the_model} of them beside the model"
    if found.compared < found.images:
        title += f"; classical coders on the first {found.compared}"
    print_table(title, ["", "bytes", "bits per dimension"], rows)
