"""Your own folder of images: train, evaluate, sample and score, in Python.

    python examples/folder.py photos --out result --minutes 10

Without a folder, one with pictures of discs is made to try it on. `vdm train --run result/run` goes
on with the run, and every other command takes it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import variational_diffusion as vd


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


parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
parser.add_argument("folder", type=Path, nargs="?")
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--minutes", type=float, default=10.0)
parser.add_argument("--steps", type=int, default=20, help="of the sampler")
asked = parser.parse_args()
folder = asked.folder or asked.out / "discs"
if not folder.exists():
    discs(folder, 600)

run = vd.train(folder, asked.out / "run", minutes=asked.minutes)
print(vd.evaluate(run, draws=4, rounds=2))
vd.show(run.sample(16, steps=asked.steps)).save(asked.out / "samples.png")
scores = vd.score(run, split="test", draws=1)
print(scores)
