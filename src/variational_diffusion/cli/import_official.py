"""`vdm import-official`: a run made of a checkpoint of the official VDM release."""

from __future__ import annotations

import click

from variational_diffusion.cli.shared.console import print_json, say
from variational_diffusion.cli.shared.options import json_option
from variational_diffusion.cli.shared.types import Size


@click.command()
@click.argument("file", type=click.Path())
@click.option(
    "--run", required=True, type=click.Path(), metavar="DIR", help="Directory of the run, new."
)
@click.option(
    "--data",
    default="hf:uoft-cs/cifar10",
    help="Where the data are that it was trained on (default hf:uoft-cs/cifar10).",
)
@click.option("--size", type=Size(), default="32", help="Of the images (default 32).")
@json_option
def command(file: str, run: str, data: str, size: tuple[int, int], as_json: bool) -> None:
    """Make a run of FILE, a checkpoint of the official VDM release (flax, checkpoints-N.flax).

    The network is that of the preset paper, with the same numbers to the precision of float32.

    Example: vdm import-official checkpoints-10000000.flax --run runs/official
    """
    from variational_diffusion.escaping import typed
    from variational_diffusion.run.sharing import import_official

    made = import_official(file, run, data=data, size=size)
    vdm, step = made.load(), made.states()[0]
    gamma_0, gamma_1 = vdm.schedule.end_points.tolist()
    parameters = sum(parameter.numel() for parameter in vdm.network.parameters())
    if as_json:
        ends = {"gamma_0": gamma_0, "gamma_1": gamma_1}
        print_json({"run": run, "parameters": parameters, "step": step, **ends})
        return
    say(
        f"{run}: {parameters:,} parameters after step {step:,}, "
        f"schedule {made.config.model.schedule.name} from γ = {gamma_0:.2f} to {gamma_1:.2f}"
    )
    say(f"next: vdm evaluate {typed(run)}, or vdm sample {typed(run)}", err=True)
