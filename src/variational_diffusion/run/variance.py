"""The head that predicts the reverse variance of a run's model: what `vdm variance` trains."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean as mean
from typing import Any

import torch

from variational_diffusion.data.loader import training_batches
from variational_diffusion.machine.execution import Execution
from variational_diffusion.machine.progress import Listener, telling
from variational_diffusion.networks import VarianceHead
from variational_diffusion.run.directory import Run
from variational_diffusion.run.examples import own_data
from variational_diffusion.run.noise_errors import measured_errors, predicted_errors
from variational_diffusion.run.trained import Trained
from variational_diffusion.training.variance_head import fit_head

_BATCH = 32


def train_variance(
    run: Run | str | Path,
    *,
    steps: int = 1000,
    seed: int = 0,
    weights: str = "ema",
    progress: bool | Listener = False,
    **execution: Any,
) -> tuple[float, float]:
    """Train a small network that predicts where a run's model is wrong, and keep it in the run.

    `DiscreteBound(steps=20, variance="predicted")` then takes it for the variance of its reverse
    steps. The model itself stays as it is.

    Args:
        run: A run, or its directory.
        steps: Of training.
        seed: Of weights, order and noise.
        weights: As at `evaluate`.
        progress: As at `evaluate`.
        **execution: Those of `Execution`, as at `evaluate`.

    Returns:
        The head's loss over the first and over the last 50 steps, in nats an entry.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    carried = Execution(**execution)
    with carried.begun() as device:
        trained = Trained.open(run, weights, carried)
        vdm = trained.vdm
        errors = measured_errors(trained, progress=progress)
        gamma_min, gamma_max = vdm.schedule.end_points.tolist()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = VarianceHead(
                vdm.shape, gamma_min=gamma_min, gamma_max=gamma_max, levels=vdm.levels
            )
        head.to(device)
        split = own_data(run).splits["train"]
        stream = training_batches(split, min(_BATCH, len(split)), seed)
        losses: list[float] = []
        with telling(progress, "training the head", "steps") as tell:
            for loss in fit_head(vdm, head, errors, stream, steps=steps, seed=seed):
                losses.append(loss)
                tell(len(losses) / steps, len(losses), lambda: f"{mean(losses[-50:]):.4f} nats")
        run.save_head(head, weights)
        predicted_errors(trained, progress=progress)
    return mean(losses[:50]), mean(losses[-50:])
