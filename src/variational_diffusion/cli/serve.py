"""`vdm serve`: a page in the browser about a model."""

from __future__ import annotations

import os

import click

from variational_diffusion.cli.shared.options import device_options, open_run, weights_option
from variational_diffusion.errors import needs


@click.command()
@click.argument("run", type=click.Path())
@click.option(
    "--port",
    type=click.IntRange(1024, 65_535),
    help="Of 127.0.0.1 (default: the first free one from 7860 on).",
)
@weights_option
@device_options
def command(
    run: str, port: int | None, weights: str, device: str, threads: int | None, **options: object
) -> None:
    """Show the model in RUN, of images, in the browser: until Ctrl-C.

    Sample and watch, put noise on an image, its likelihood, inpaint, compress. Only this machine
    can open the page.

    Example: vdm serve runs/first
    """
    with needs("web"):
        import gradio  # noqa: F401 (asked only whether it is there, before the run is opened)
    from variational_diffusion.machine.execution import Execution
    from variational_diffusion.web import Studio

    with Execution(device, threads).begun() as target:
        studio = Studio(open_run(run), weights, target)
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        from variational_diffusion.web.page import serve

        page = serve(studio, port)
        click.echo(page.local_url)
        page.block_thread()
