"""Real values with and without a floor of γ_0: where it matters, and that it does not elsewhere.

    python benchmarks/real_values.py --steps 1000

For each set of 2,000 examples a model is trained twice, with the floor that the data suggest and
with none, and evaluated on as many new examples: bits per dimension, γ_0, and the entropy of data
with a density. Coins and rounded values have none: without a floor their bits fall as long as one
trains.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from variational_diffusion.config import DataConfig
from variational_diffusion.data import open_dataset
from variational_diffusion.data.loader import training_batches
from variational_diffusion.likelihood import ContinuousBound, evaluate, summarize
from variational_diffusion.model import build
from variational_diffusion.presets import configure
from variational_diffusion.training import TrainingState, fit

EXAMPLES, COLUMNS = 2000, 2
WIDTH = 0.02

Draw = Callable[[np.random.Generator], np.ndarray]


def normal(rng: np.random.Generator) -> np.ndarray:
    """Draw from N(1e6, 1)."""
    return 1e6 + rng.normal(size=(EXAMPLES, COLUMNS))


def mixture(rng: np.random.Generator) -> np.ndarray:
    """Draw ±1, each with noise of 0.02."""
    signs = rng.choice([-1.0, 1.0], (EXAMPLES, COLUMNS))
    return signs + WIDTH * rng.normal(size=(EXAMPLES, COLUMNS))


def coins(rng: np.random.Generator) -> np.ndarray:
    """Draw 0 or 1."""
    return rng.integers(0, 2, (EXAMPLES, COLUMNS)).astype(float)


def rounded(rng: np.random.Generator) -> np.ndarray:
    """Draw from N(0, 1), rounded to one decimal."""
    return rng.normal(size=(EXAMPLES, COLUMNS)).round(1)


def zeros(rng: np.random.Generator) -> np.ndarray:
    """Draw 0 three times of ten, otherwise from N(0, 1)."""
    values = rng.normal(size=(EXAMPLES, COLUMNS))
    return np.where(rng.random(values.shape) < 0.3, 0.0, values)


NORMAL = 0.5 * math.log2(2 * math.pi * math.e)
DATA: dict[str, tuple[Draw, float]] = {
    "normal": (normal, NORMAL),
    "mixture": (mixture, 1 + NORMAL + math.log2(WIDTH)),
    "coins": (coins, math.nan),
    "rounded": (rounded, math.nan),
    "zeros": (zeros, math.nan),
}
"""Data, and their entropy in bits per dimension."""


def trained(draw: Draw, steps: int, floor: bool, folder: Path) -> tuple[float, float, float]:
    """Train; return bits per dimension of new examples, their standard error, and γ_0."""
    path = folder / "values.npy"
    np.save(path, draw(np.random.default_rng(0)))
    data = DataConfig(source=str(path))
    dataset = open_dataset(data)
    small = {"network.width": 64, "network.blocks": 2, "training.batch_size": 64}
    settings: dict[str, object] = {"training.steps": steps, **small}
    if not floor:
        settings |= {"schedule.floor": None, "schedule.gamma_min": -10.0}
    config = configure(data, dataset, settings=settings)
    state = TrainingState.start(build(config.model), config.training)
    batches = training_batches(dataset, config.training.batch_size, seed=0)
    for _ in fit(state, batches, config.training):
        pass
    model = state.average.module
    new = torch.from_numpy(draw(np.random.default_rng(1))).split(500)
    generator = torch.Generator().manual_seed(0)
    found = summarize(
        evaluate(model, new, ContinuousBound(8), generator=generator), dimensions=COLUMNS
    )
    return found.bits_per_dim, found.standard_error, float(model.schedule.gamma_0)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--data", nargs="*", default=list(DATA), choices=list(DATA))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'data':10} {'floor':>6} {'bits/dim':>18} {'entropy':>9} {'γ_0':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.data:
            draw, entropy = DATA[name]
            for floor in (True, False):
                bits, error, gamma = trained(draw, asked.steps, floor, Path(folder))
                said, has = f"{bits:9.4f} ± {error:.4f}", "yes" if floor else "no"
                print(f"{name:10} {has:>6} {said:>18} {entropy:9.4f} {gamma:8.3f}", flush=True)


if __name__ == "__main__":
    main()
