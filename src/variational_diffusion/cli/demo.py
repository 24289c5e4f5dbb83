"""`vdm demo`: the whole of it on handwritten digits, in a few minutes."""

from __future__ import annotations

from typing import Any

import click

from variational_diffusion.cli.shared.console import print_json, print_table, say, shown
from variational_diffusion.cli.shared.options import device_options, json_option
from variational_diffusion.cli.shared.types import Duration


@click.command()
@click.option(
    "--run", "directory", type=click.Path(), default="runs/demo", help="Directory of the run."
)
@click.option(
    "--minutes", type=Duration("minutes"), default=2.5, help="Minutes of training (default 2.5)."
)
@json_option
@device_options
def command(
    directory: str, minutes: float, as_json: bool, device: str, threads: int | None
) -> None:
    """Train on scikit-learn's digits, evaluate on the test images, draw samples.

    Example: vdm demo
    """
    from variational_diffusion.compression.baselines import code_lengths
    from variational_diffusion.escaping import typed
    from variational_diffusion.run.evaluation import evaluate
    from variational_diffusion.run.examples import own_data
    from variational_diffusion.run.samples import sample_run
    from variational_diffusion.run.training import finished, training_events
    from variational_diffusion.storage.files import unused

    # On images this small a second thread gains little, and loses nearly everything where another
    # program wants its core.
    where: dict[str, Any] = {"device": device, "threads": threads}
    events = training_events(
        "digits", directory, minutes=minutes, every=30.0, precision="float32", **where
    )
    end = finished(events, shown)

    run = end.run
    summary = evaluate(run, progress=shown, **where).summary
    samples = sample_run(
        run,
        64,
        sampler="ancestral",
        steps=256,
        grid="time",
        stop_early=0.0,
        frames=48,
        progress=shown,
        **where,
    )
    sheet = unused(run.path / "samples" / "sheet.png")
    film = unused(run.path / "samples" / "reverse-process.gif")
    samples.write(sheet)
    samples.write_animation(film)

    dataset = own_data(run)
    images = dataset.splits["test"].read()
    assert dataset.levels is not None
    lengths = code_lengths(images, dataset.levels)
    gamma_0, gamma_1 = samples.vdm.schedule.end_points.tolist()
    if as_json:
        print_json(
            {
                "run": str(run.path),
                "steps": end.step,
                "seconds": end.seconds,
                "gamma_0": gamma_0,
                "gamma_1": gamma_1,
                "test": summary.as_json(),
                "baselines": lengths,
                "samples": str(sheet),
                "animation": str(film),
            }
        )
        return
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
    say(
        f"{end.step} steps in {end.seconds / 60:.1f} minutes; "
        f"the learned noise schedule runs from γ = {gamma_0:.2f} to {gamma_1:.2f}"
    )
    say(f"samples:             {sheet}")
    say(f"the reverse process: {film}")
    name = typed(directory)
    say(f"the run:             {run.path}   (vdm evaluate {name}, vdm sample {name})")
