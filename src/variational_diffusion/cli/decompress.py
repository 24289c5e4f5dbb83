"""`vdm decompress`: the examples of a .vdmz file, as images or as an array."""

from __future__ import annotations

from typing import Any

import click

from variational_diffusion.cli.shared.console import print_json, shown
from variational_diffusion.cli.shared.options import device_options
from variational_diffusion.run.compression import decompress


@click.command()
@click.argument("run")
@click.argument("file")
@click.option("--out", required=True, help="A new folder for single images, or an .npy file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@device_options
def command(run: str, file: str, out: str, as_json: bool, **execution: Any) -> None:
    """Decompress FILE by the model in RUN that it was compressed by.

    Images that are damaged are left out (in an array they are zero) and told at the end. RUN is
    only read.
    """
    written = decompress(run, file, out, progress=shown, **execution)
    if as_json:
        print_json({"out": str(written)})
    else:
        click.echo(written)
