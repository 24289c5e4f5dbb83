"""`vdm export`: a trained model for other programs and other people."""

from __future__ import annotations

from pathlib import Path

import click

from variational_diffusion.cli.devices import use_device
from variational_diffusion.cli.shared.options import weights_option
from variational_diffusion.errors import InputError
from variational_diffusion.run import evaluations
from variational_diffusion.run.directory import Run


@click.command()
@click.argument("run")
@click.option("--hub", metavar="FOLDER", help="Write a folder for VDM.from_pretrained.")
@click.option("--onnx", metavar="FILE", help="Write the denoiser as this .onnx file.")
@weights_option
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
def command(run: str, hub: str | None, onnx: str | None, weights: str, threads: int | None) -> None:
    """Write the model in RUN as a pretrained folder or as an ONNX file.

    The folder holds config.json, model.safetensors and a model card with what vdm evaluate has
    measured of these weights. The ONNX file is compared with torch through onnxruntime.
    """
    if hub is None and onnx is None:
        raise InputError("nothing to write: give --hub FOLDER, --onnx FILE, or both")
    use_device("cpu", threads)
    opened = Run.open(run)
    vdm = opened.load(weights)
    if hub is not None:
        vdm.save_pretrained(hub, model_card_kwargs=card_entries(opened, weights))
        click.echo(hub)
        measured = evaluations.of_weights(opened, weights)
        if not measured:
            click.echo(
                f"the card says that nothing was measured: vdm evaluate {run}, then export again",
                err=True,
            )
    if onnx is not None:
        from variational_diffusion.interchange.onnx import export_denoiser

        difference = export_denoiser(vdm, Path(onnx))
        click.echo(f"{onnx}   (differs from torch by at most {difference:.1e} in ε̂)")


def card_entries(run: Run, weights: str) -> dict[str, object]:
    """Return what the model card says of a run, as arguments of `hub.card`."""
    training = run.config.training
    budget = f"{training.steps:,} steps" if training.steps else f"{training.minutes:g} minutes"
    return {
        "evaluations": evaluations.of_weights(run, weights),
        "facts": {
            "trained": f"{budget} in batches of {training.batch_size}, weights: {weights}",
        },
    }
