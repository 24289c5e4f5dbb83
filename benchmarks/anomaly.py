"""How well each score tells foreign images from a model's own: areas under the ROC curve.

    vdm train fashion-mnist --run runs/fashion --minutes 20
    python benchmarks/anomaly.py runs/fashion

The foreign sets are made from what is at hand: handwritten digits enlarged to the model's size, and
the test images upside down, blurred, replaced by noise (uniform in the levels, and with every
image's own values shuffled) and by one constant each. Images of one channel.
"""

from __future__ import annotations

import click
import numpy as np
from common import log_option, markdown, report, threads_option
from PIL import Image, ImageFilter
from sklearn.metrics import roc_auc_score

from variational_diffusion.anomaly import SCORES, Reference
from variational_diffusion.checkpoint import Run
from variational_diffusion.cli.devices import use_device
from variational_diffusion.cli.examples import chosen_examples
from variational_diffusion.cli.score import measured, scores_of
from variational_diffusion.config import DataConfig
from variational_diffusion.data import Split, open_dataset
from variational_diffusion.data.arrays import ArraySource


@click.command()
@click.argument("run")
@click.option("--limit", type=click.IntRange(50), default=500, show_default=True)
@click.option("--first", type=click.IntRange(0), default=0, help="Leave out so many test images.")
@click.option("--reference", type=click.IntRange(50), default=1000, show_default=True)
@click.option("--draws", type=click.IntRange(1), default=2, show_default=True)
@threads_option
@log_option
def main(
    run: str, limit: int, first: int, reference: int, draws: int, threads: int, log: bool
) -> None:
    """Score a RUN's test images and foreign ones of the same number and size."""
    device = use_device("auto", threads)
    opened = Run.open(run)
    vdm = opened.load().to(device)
    drawn = chosen_examples(opened, None, "test", first + limit)
    left_out = chosen_examples(opened, None, "test", first).positions if first else []
    images = drawn.read(np.flatnonzero(~np.isin(drawn.positions, left_out)))
    test = _split(images, "test")
    validation = chosen_examples(opened, None, "validation", reference)
    own = measured(vdm, validation, draws=draws, seed=0, title="reference")
    against = Reference(own)
    known = measured(vdm, test, draws=draws, seed=0, title="test")
    scores = scores_of(against, known)
    rows: list[list[object]] = []
    areas: dict[str, list[float]] = {name: [] for name in SCORES}
    for name, strange in foreign(images, vdm.shape).items():
        of = measured(vdm, _split(strange, name), draws=draws, seed=0, title=name)
        others = scores_of(against, of)
        row: list[object] = [name, f"{of.bits.mean():.2f}"]
        for score in SCORES:
            truth = np.repeat([0, 1], [len(known), len(of)])
            area = float(roc_auc_score(truth, np.concatenate([scores[score], others[score]])))
            areas[score].append(area)
            row.append(f"{area:.3f}")
        rows.append(row)
        print(row, flush=True)
    rows.append(["mean", "", *(f"{np.mean(areas[score]):.3f}" for score in SCORES)])
    table = markdown(["foreign set", "bits/dim", *SCORES], rows)
    note = f"The model's own {len(known)} test images: {known.bits.mean():.2f} bits/dim."
    report(f"{note}\n\n{table}", log=log)


def _split(images: np.ndarray, name: str) -> Split:
    return Split(ArraySource(images, name, levels=256), np.arange(len(images)))


def foreign(images: np.ndarray, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Return sets of images that are not the model's own; `images`: (n, 1, height, width)."""
    rng = np.random.default_rng(0)
    n, _, height, width = images.shape
    digits = open_dataset(DataConfig(source="digits")).splits["train"].read()[:n, 0]
    enlarged = [
        Image.fromarray((15.9375 * digit).astype(np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        for digit in digits
    ]
    blurred = [Image.fromarray(x[0]).filter(ImageFilter.GaussianBlur(1.0)) for x in images]
    flat = images.reshape(n, -1)
    constant = rng.integers(0, 256, (n, 1, 1, 1), dtype=np.uint8)
    return {
        "digits": np.stack([np.asarray(x) for x in enlarged])[:, None],
        "upside down": images[:, :, ::-1].copy(),
        "blurred": np.stack([np.asarray(x) for x in blurred])[:, None],
        "shuffled pixels": rng.permuted(flat, axis=1).reshape(images.shape),
        "uniform noise": rng.integers(0, 256, images.shape, dtype=np.uint8),
        "constant": np.broadcast_to(constant, images.shape).copy(),
    }


if __name__ == "__main__":
    main()
