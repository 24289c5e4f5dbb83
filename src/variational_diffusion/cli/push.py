"""`vdm push`: a trained model to the Hugging Face hub."""

from __future__ import annotations

import click

from variational_diffusion.cli.shared.console import print_json, say
from variational_diffusion.cli.shared.options import json_option, open_run, weights_option


@click.command()
@click.argument("run", type=click.Path())
@click.argument("repository")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@json_option
@weights_option
def command(run: str, repository: str, private: bool, as_json: bool, weights: str) -> None:
    """Upload the model in RUN to REPOSITORY (OWNER/NAME) of the Hugging Face hub.

    What is uploaded is what vdm export RUN --hub FOLDER writes; look at that first. Log in with:
    hf auth login.

    Example: vdm push runs/first someone/first
    """
    from variational_diffusion.run.sharing import push

    url = push(open_run(run), repository, weights=weights, private=private)
    if as_json:
        print_json({"url": str(url)})
    else:
        say(url)
