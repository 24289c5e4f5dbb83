"""`vdm push`: a trained model to the Hugging Face hub."""

from __future__ import annotations

import click
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from variational_diffusion.cli.export import card_entries
from variational_diffusion.cli.shared.options import weights_option
from variational_diffusion.errors import InputError
from variational_diffusion.run.directory import Run


@click.command()
@click.argument("run")
@click.argument("repository")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@weights_option
def command(run: str, repository: str, private: bool, weights: str) -> None:
    """Upload the model in RUN to REPOSITORY (OWNER/NAME) of the Hugging Face hub.

    What is uploaded is what vdm export RUN --hub FOLDER writes; look at that first. Log in with:
    hf auth login.
    """
    opened = Run.open(run)
    vdm = opened.load(weights)
    try:
        url = vdm.push_to_hub(
            repository,
            private=private or None,
            commit_message="Upload a variational diffusion model",
            model_card_kwargs=card_entries(opened, weights),
        )
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"repository = '{repository}': the hub does not take it ({reason}): give OWNER/NAME of "
            "a repository of yours, and log in with: hf auth login"
        ) from error
    click.echo(url)
