"""Scans of 12 bits in 16-bit files, as a scanner makes them: train, evaluate, find the lesion.

    python examples/scans.py --out scans --minutes 5

The scans are made here: an elliptic head with a skull, soft tissue of smooth texture and the noise
of a detector, in 4,096 levels. Some that the model never saw have a small bright lesion. The model
gives bits per dimension beside those of classical coders, and a map of where a scan is expensive.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from PIL import Image

import variational_diffusion as vd
from variational_diffusion.compression.baselines import code_lengths

LEVELS = 4096


def scans(n: int, size: int, rng: np.random.Generator, lesion: bool = False) -> np.ndarray:
    """Return n scans, uint16 of shape (n, size, size), from 0 to 4,095."""
    y, x = np.mgrid[:size, :size] / (size - 1) * 2 - 1
    turn = rng.uniform(-0.4, 0.4, (n, 1, 1))
    wide, high = rng.uniform(0.55, 0.7, (n, 1, 1)), rng.uniform(0.7, 0.85, (n, 1, 1))
    u = (np.cos(turn) * x + np.sin(turn) * y) / wide
    v = (np.cos(turn) * y - np.sin(turn) * x) / high
    radius = np.hypot(u, v)
    phase = rng.uniform(0, 2 * np.pi, (n, 1, 1))
    tissue = 1100 + 120 * np.sin(4 * u + phase) * np.cos(3 * v - phase)
    image = np.where(radius < 0.85, tissue, np.where(radius < 1, 2900.0, 60.0))
    if lesion:
        at_x, at_y = rng.uniform(-0.3, 0.3, (2, n, 1, 1))
        image += 900 * np.exp(-((x - at_x) ** 2 + (y - at_y) ** 2) / 0.01)
    image += rng.normal(0, 25, image.shape)
    return np.clip(np.rint(image), 0, LEVELS - 1).astype(np.uint16)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new folder.")
@click.option("--count", type=int, default=2000, show_default=True)
@click.option("--size", type=int, default=24, show_default=True, help="Pixels each way.")
@click.option("--minutes", type=float, default=5.0, show_default=True)
def main(out: Path, count: int, size: int, minutes: float) -> None:
    """Make scans, train on them, and compare those with and without a lesion."""
    rng = np.random.default_rng(0)
    folder = out / "healthy"
    folder.mkdir(parents=True)
    for i, scan in enumerate(scans(count, size, rng)):
        Image.fromarray(scan).save(folder / f"{i:04}.png")

    dataset = vd.open_dataset(folder, levels=LEVELS)
    print(f"{count} scans of shape {dataset.shape} with {dataset.levels} levels")
    run = vd.train(dataset, out / "run", minutes=minutes)

    test = dataset.splits["test"].read()
    ill = scans(len(test), size, rng, lesion=True)[:, None]
    # the same noise for both
    estimates = [
        vd.evaluate(run, each.astype(np.int32), draws=8, rounds=1).table["bits_per_dim"]
        for each in (test, ill)
    ]
    for name, bits in zip(("healthy", "with a lesion"), estimates, strict=True):
        print(f"{name}: {bits.mean():.3f} bits per dimension")
    for name, bits_per_dim in code_lengths(test, LEVELS).items():
        print(f"{name}: {bits_per_dim:.3f} bits per dimension")
    share = float(np.mean(estimates[1][:, None] > estimates[0][None]))
    print(f"a scan with a lesion costs more than a healthy one in {100 * share:.0f} % of pairs")


if __name__ == "__main__":
    main()
