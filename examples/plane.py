"""A density on the plane: train on points, draw the model's density beside the truth.

    python examples/plane.py swirl --out swirl.png
    python examples/plane.py checkerboard --out checkerboard.png

Points of the plane are data with two entries, so the whole density can be looked at. The model is
the preset for vectors; its density comes from the probability-flow ODE with the exact divergence,
and must integrate to one, which is printed. The truth is drawn from its own points, as a histogram
of a million of them.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import click
import numpy as np
import torch
from matplotlib.figure import Figure

import variational_diffusion as vd
from variational_diffusion.likelihood import evaluate
from variational_diffusion.report.figures import save_figure

HALF = 5.0
"""The plane is looked at from −5 to 5, both ways."""


def swirl(n: int, rng: np.random.Generator) -> np.ndarray:
    """Return points around two arms of a spiral."""
    angle = 3 * math.pi * np.sqrt(rng.random(n))
    radius = angle / (3 * math.pi) * 3
    arm = rng.choice([0, math.pi], n)
    points = np.stack([np.cos(angle + arm), np.sin(angle + arm)], axis=1) * radius[:, None]
    return points + 0.12 * rng.normal(size=(n, 2))


def checkerboard(n: int, rng: np.random.Generator) -> np.ndarray:
    """Return points that are uniform on every second square of side 1.5."""
    row, column = rng.integers(0, 4, n), rng.integers(0, 2, n)
    corner = np.stack([2 * column + row % 2, row], axis=1)
    return 1.5 * (corner + rng.random((n, 2)) - 2)


SHAPES = {"swirl": swirl, "checkerboard": checkerboard}


def density(vdm: vd.VDM, points: int) -> np.ndarray:
    """Return the density at the middles of points × points cells, rows from the lowest."""
    axis = (torch.arange(points) + 0.5) / points * 2 * HALF - HALF
    grid = torch.cartesian_prod(axis, axis).flip(1)
    flow = vd.ODELikelihood(probes=None, tolerance=1e-4)
    parts = evaluate(vdm, grid.split(4096), flow)
    log_p = -torch.cat([part.total for part in parts])
    return log_p.exp().reshape(points, points).numpy()


@click.command()
@click.argument("shape", type=click.Choice(list(SHAPES)))
@click.option("--minutes", type=float, default=2.0, show_default=True)
@click.option("--points", type=int, default=200, show_default=True, help="Cells each way.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A .png or .svg file.")
def main(shape: str, minutes: float, points: int, out: Path) -> None:
    """Train on SHAPE and draw."""
    rng = np.random.default_rng(0)
    points_of_it = SHAPES[shape](50_000, rng).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        vdm = vd.train(points_of_it, folder, minutes=minutes).model()

    model = density(vdm, points)
    cell = (2 * HALF / points) ** 2
    print(f"the density integrates to {model.sum() * cell:.4f}")
    sample = SHAPES[shape](1_000_000, rng)
    edges = np.linspace(-HALF, HALF, points + 1)
    truth, _, _ = np.histogram2d(sample[:, 1], sample[:, 0], bins=[edges, edges], density=True)
    print(f"total variation from the truth {0.5 * np.abs(model - truth).sum() * cell:.3f}")

    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    for axes, values, title in zip(
        figure.subplots(1, 2), (truth, model), ("truth", "model"), strict=True
    ):
        axes.imshow(
            values, origin="lower", extent=(-HALF, HALF) * 2, vmin=0, vmax=truth.max(), cmap="magma"
        )
        axes.set_title(title)
    save_figure(figure, out, f"Density of the {shape}: the truth, and the model's")
    print(f"figure: {out}")


if __name__ == "__main__":
    main()
