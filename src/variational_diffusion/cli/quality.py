"""`vdm quality`: how good samples are, in numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from variational_diffusion.cli.shared.console import print_json, print_table, say, shown
from variational_diffusion.cli.shared.options import (
    device_options,
    json_option,
    open_run,
    seed_option,
    weights_option,
)
from variational_diffusion.cli.shared.sampling import sampling_options

if TYPE_CHECKING:
    from variational_diffusion.quality import Estimate


@click.command()
@click.argument("run", type=click.Path())
@click.argument("data", type=click.Path(), required=False)
@click.option(
    "--drawn", "samples", help="An .npy file or a folder of images, not the model's samples."
)
@click.option("--n", type=click.IntRange(1), default=1000, help="Samples to draw (default 1000).")
@click.option(
    "--features",
    help="classifier (default for images), inception, pixels, or another run's classifier file.",
)
@sampling_options
@seed_option("the draw")
@click.option(
    "--nearest",
    type=click.Path(),
    help="Write the samples that are closest to training images, and these, as this .png.",
)
@json_option
@weights_option
@device_options
def command(run: str, data: str | None, nearest: str | None, as_json: bool, **options: Any) -> None:
    """Measure how far samples of the model in RUN are from its test data, or from DATA.

    Real values are standardised as the model's are, so that distances do not depend on the units.

    Beside them stand the same numbers of as many training and validation examples: no model can be
    expected to do better. The first time, a small classifier is trained on the training data and
    kept in RUN; only numbers of the same features and of equally many examples can be compared.

    Example: vdm quality runs/first --n 2000
    """
    from variational_diffusion.run.sample_quality import quality

    found = quality(open_run(run), data, nearest=nearest, progress=shown, **options)
    if nearest is not None:
        say(f"nearest training images: {nearest}", err=True)
    if as_json:
        print_json(found.as_json())
        return
    name, digest = found.features
    print_table(
        f"{found.samples} {found.source}, against {found.reference.description}; features: "
        f"{name} {digest[:8]}",
        ["", "samples", *(f"{count} {of}" for of, count in found.counts.items())],
        [
            (measure, *(_as_text(of[measure]) for of in found.distances.values()))
            for measure in found.distances["samples"]
        ],
    )
    copies = found.nearest
    if copies is not None:
        say(
            f"median distance to the nearest training image: samples {copies['samples']:.3f}, test "
            f"images {copies['test']:.3f}; nearer than 1 % of the test images: "
            f"{copies['share']:.1%} of the samples"
        )


def _as_text(estimate: Estimate) -> str:
    return f"{estimate.value:.4f} ± {estimate.error:.4f}"
