"""`vdm serve`: a page in the browser about a model."""

from __future__ import annotations

import secrets

import click

from variational_diffusion.cli.shared.console import say
from variational_diffusion.cli.shared.options import device_options, open_run, weights_option
from variational_diffusion.errors import needs


@click.command()
@click.argument("run", type=click.Path())
@click.option(
    "--port",
    type=click.IntRange(1024, 65_535),
    help="Of 127.0.0.1 (default: the first free one from 7860 on).",
)
@click.option("--no-token", is_flag=True, help="Let every user of this machine open the page.")
@weights_option
@device_options
def command(
    run: str, port: int | None, no_token: bool, weights: str, device: str, threads: int | None
) -> None:
    """Show the model in RUN, of images, in the browser: until Ctrl-C.

    Sample and watch, put noise on an image, its likelihood, inpaint, compress. Open the address
    that is printed: its token keeps the other users of this machine out. No other machine and no
    other page can use it.

    Example: vdm serve runs/first
    """
    with needs("web"):
        from variational_diffusion.web.serving import serve
    from variational_diffusion.machine.execution import Execution
    from variational_diffusion.web import Studio

    with Execution(device, threads).begun() as target:
        studio = Studio(open_run(run), weights, target)
        serve(studio, port, None if no_token else secrets.token_urlsafe(24), ready=say)
