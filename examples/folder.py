"""Your own folder of images: train, evaluate, sample, and write down what every image costs.

    python examples/folder.py photos --out result --minutes 10

The same as `vdm train`, `vdm evaluate --table` and `vdm sample`, in Python: the parts that
a program of your own would call. Without a folder, one with pictures of discs is made to try it on.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image

from variational_diffusion import TrainingState, build, evaluate, fit, open_dataset, summarize
from variational_diffusion.config import DataConfig
from variational_diffusion.data.loader import training_batches
from variational_diffusion.images.pictures import save_sheet
from variational_diffusion.likelihood import ContinuousBound
from variational_diffusion.numerics import bits_per_dim
from variational_diffusion.presets import configure
from variational_diffusion.storage.files import atomic


def discs(folder: Path, count: int, size: int = 16) -> None:
    """Write pictures of a disc on a slope of grey."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    folder.mkdir(parents=True)
    for i in range(count):
        centre, radius = rng.uniform(5, size - 5, 2), rng.uniform(2, 5)
        shape = np.hypot(x - centre[0], y - centre[1]) < radius
        picture = 4 * (x + y) + np.where(shape, 120, 0) + rng.integers(0, 4, (size, size))
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{i:04}.png")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new folder.")
@click.option("--minutes", type=float, default=10.0, show_default=True)
@click.option("--steps", type=int, default=20, show_default=True, help="Of the sampler.")
def main(folder: Path | None, out: Path, minutes: float, steps: int) -> None:
    """Train on FOLDER."""
    out.mkdir(parents=True)
    if folder is None:
        folder = out / "discs"
        discs(folder, 600)
    source = DataConfig(source=str(folder))
    dataset = open_dataset(source)
    config = configure(source, dataset, settings={"training.minutes": minutes})

    state = TrainingState.start(build(config.model), config.training)
    stream = training_batches(dataset.splits["train"], config.training.batch_size, seed=0)
    for record in fit(state, stream, config.training):
        if record.step % 100 == 0:
            bits = bits_per_dim(record.bound.total, state.vdm.dimensions).mean()
            print(f"step {record.step}: {float(bits):.3f} bits/dim")
    vdm = state.average.module.eval()

    test = torch.from_numpy(dataset.splits["test"].read())
    estimates = list(evaluate(vdm, test.split(100), ContinuousBound(4)))
    summary = summarize(estimates, dimensions=vdm.dimensions)
    print(f"test: {summary.bits_per_dim:.3f} ± {summary.standard_error:.3f} bits/dim")

    generator = torch.Generator().manual_seed(0)
    samples = vdm.sample(16, steps=steps, generator=generator).numpy()
    save_sheet(samples, dataset.levels, out / "samples.png")

    bits = bits_per_dim(torch.cat([estimate.total for estimate in estimates]), vdm.dimensions)
    with atomic(out / "bits.csv") as temporary:
        rows = [f"{i},{float(value):.4f}" for i, value in enumerate(bits)]
        temporary.write_text("\n".join(["example,bits_per_dim", *rows]) + "\n")
    print(f"samples, and bits of every test image: {out}")


if __name__ == "__main__":
    main()
