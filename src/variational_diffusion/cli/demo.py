"""`vdm demo`: the whole of it on handwritten digits, in a few minutes."""

from __future__ import annotations

import click

from variational_diffusion.cli.devices import use_device
from variational_diffusion.cli.evaluate import evaluate_split
from variational_diffusion.cli.sample import draw, write_samples
from variational_diffusion.cli.session import Session
from variational_diffusion.compression.baselines import code_lengths
from variational_diffusion.config import DataConfig
from variational_diffusion.data import open_dataset
from variational_diffusion.images.pictures import animation
from variational_diffusion.presets import configure
from variational_diffusion.run.directory import Run
from variational_diffusion.storage.files import unused


@click.command()
@click.option("--run", "directory", default="runs/demo", help="Directory of the run.")
@click.option("--minutes", type=float, default=2.5, help="Minutes of training.")
@device_options
def command(directory: str, minutes: float, device: str, threads: int | None) -> None:
    """Train on scikit-learn's digits, evaluate on the test images, draw samples."""
    # On images this small a second thread gains little, and loses nearly everything where another
    # program wants its core.
    target = use_device(device, threads or 1)
    data = DataConfig(source="digits")
    dataset = open_dataset(data)
    config = configure(data, dataset, settings={"training.minutes": minutes})
    session = Session(directory, config, dataset, target, every=30.0)
    session.train()
    state = session.state

    run = Run.open(directory)
    vdm = run.load().to(target)
    test = dataset.splits["test"]
    summary = evaluate_split(vdm, test)
    samples, frames = draw(vdm, 64, sampler="ancestral", steps=256, seed=0, frames=48)
    sheet = unused(run.path / "samples" / "sheet.png")
    film = unused(run.path / "samples" / "reverse-process.gif")
    write_samples(sheet, samples, dataset.levels)
    animation(frames, dataset.levels, film)

    images = test.read()
    assert dataset.levels is not None
    lengths = code_lengths(images, dataset.levels)
    bound = f"{summary.bits_per_dim:.3f} ± {summary.standard_error:.3f}"
    print_table(
        f"{summary.examples} test images of 8x8 pixels with 17 levels",
        ["", "bits per dimension"],
        [
            ("variational diffusion model, bound", bound),
            ("  error of the draws alone", f"± {summary.draws_error:.3f}"),
            *((f"  {name}", f"{value:.4f}") for name, value in summary.terms.items()),
            *((name, f"{length:.3f}") for name, length in lengths.items()),
        ],
    )
    gamma_0, gamma_1 = vdm.schedule.end_points.tolist()
    click.echo(
        f"{state.step} steps in {state.seconds / 60:.1f} minutes; "
        f"the learned noise schedule runs from γ = {gamma_0:.2f} to {gamma_1:.2f}"
    )
    click.echo(f"samples:             {sheet}")
    click.echo(f"the reverse process: {film}")
    click.echo(
        f"the run:             {run.path}   (vdm evaluate {directory}, vdm sample {directory})"
    )
