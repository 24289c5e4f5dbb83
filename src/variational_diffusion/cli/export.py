"""`vdm export`: a trained model for other programs and other people."""

from __future__ import annotations

from typing import Any

import click

from variational_diffusion.cli.shared.console import print_json, say
from variational_diffusion.cli.shared.options import json_option, open_run, weights_option
from variational_diffusion.errors import InputError


@click.command()
@click.argument("run", type=click.Path())
@click.option("--hub", metavar="FOLDER", help="Write a folder for VDM.from_pretrained.")
@click.option("--onnx", metavar="FILE", help="Write the denoiser as this .onnx file.")
@json_option
@weights_option
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
def command(
    run: str, hub: str | None, onnx: str | None, as_json: bool, weights: str, threads: int | None
) -> None:
    """Write the model in RUN as a pretrained folder or as an ONNX file.

    The folder holds config.json, model.safetensors and a model card with what vdm evaluate has
    measured of these weights. The ONNX file is compared with torch through onnxruntime.

    Example: vdm export runs/first --hub first --onnx first.onnx
    """
    from variational_diffusion.run.sharing import export_onnx, export_pretrained

    if hub is None and onnx is None:
        raise InputError("nothing to write: give --hub FOLDER, --onnx FILE, or both")
    opened, written = open_run(run), dict[str, Any]()
    if hub is not None:
        written["hub"] = str(export_pretrained(opened, hub, weights=weights))
    if onnx is not None:
        difference = export_onnx(opened, onnx, weights=weights, threads=threads)
        written |= {"onnx": onnx, "difference": difference}
    if as_json:
        print_json(written)
        return
    if hub is not None:
        say(hub)
    if onnx is not None:
        say(f"{onnx}   (differs from torch by at most {difference:.1e} in ε̂)")
