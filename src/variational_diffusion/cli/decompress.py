"""`vdm decompress`: the examples of a .vdmz file, as images or as an array."""

from __future__ import annotations

from typing import Any

import click

from variational_diffusion.cli.shared.console import print_json, say, shown
from variational_diffusion.cli.shared.options import (
    device_options,
    json_option,
    network_option,
    open_run,
)


@click.command()
@click.argument("run", type=click.Path())
@click.argument("file", type=click.Path())
@click.option(
    "--out",
    type=click.Path(),
    required=True,
    help="Where to write: a new folder for single images, or an .npy file.",
)
@network_option
@json_option
@device_options
def command(run: str, file: str, out: str, as_json: bool, **execution: Any) -> None:
    """Decompress FILE by the model in RUN that it was compressed by.

    Images that are damaged are left out (in an array they are zero) and told at the end. RUN is
    only read.

    Example: vdm decompress runs/first photos.vdmz --out back
    """
    from variational_diffusion.run.compression import decompress

    written = decompress(open_run(run), file, out, progress=shown, **execution)
    if as_json:
        print_json({"out": str(written)})
    else:
        say(written)
