"""The class under which each example is most likely: what `vdm classify` finds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from variational_diffusion.conditions import parted
from variational_diffusion.data import Split
from variational_diffusion.data.loader import ordered_batches
from variational_diffusion.data.originals import file_column
from variational_diffusion.errors import one_of, whole
from variational_diffusion.likelihood import ContinuousBound
from variational_diffusion.likelihood.classification import (
    Accuracy,
    accuracy,
    class_bounds,
    confusion,
    labels_of,
    probabilities,
)
from variational_diffusion.machine.execution import Execution
from variational_diffusion.machine.progress import Listener, nothing, telling
from variational_diffusion.numerics import bits_per_dim, derived_seed
from variational_diffusion.run.directory import Run
from variational_diffusion.run.examples import Data, examples_for
from variational_diffusion.run.trained import Trained

PRIORS = ("shares", "even")


@dataclass(frozen=True, eq=False)
class Classified:
    """Examples and the classes that a model takes them for.

    Attributes:
        names: Of the classes.
        predicted: Number of the class of each example, shape (n,).
        table: Columns by name, a row an example: predicted label, its probability, the true label
            where it is known, and the bits of each class.
        confusion: Counts of each class (rows) taken for each (columns); None where the examples
            have no labels.
        examples: What was classified.
    """

    names: tuple[str, ...]
    predicted: Tensor
    table: dict[str, np.ndarray]
    confusion: Tensor | None
    examples: Split

    @property
    def accuracy(self) -> Accuracy | None:
        """The share of right answers and its 95 % interval; None without labels."""
        return None if self.confusion is None else accuracy(self.confusion)

    @property
    def counts(self) -> list[int]:
        """How many examples are taken for each class."""
        return torch.bincount(self.predicted, minlength=len(self.names)).tolist()

    def as_json(self) -> dict[str, Any]:
        """Return what `vdm classify --json` prints."""
        values = {**self.examples.as_json(), "names": self.names, "predicted": self.counts}
        found = self.accuracy
        if found is None or self.confusion is None:
            return values
        return values | {
            "accuracy": found.share,
            "interval": [found.low, found.high],
            "confusion": self.confusion.tolist(),
        }


def classify(
    run: Run | str | Path,
    data: Data | None = None,
    *,
    draws: int = 16,
    prior: str = "shares",
    split: str | None = None,
    limit: int | None = None,
    condition: str = "own",
    weights: str = "ema",
    batch_size: int = 100,
    seed: int = 0,
    progress: bool | Listener = False,
    **execution: Any,
) -> Classified:
    """Name the class of each example under which a run's model finds it most likely.

    `vdm classify` gives the same figures.

    Args:
        run: A run whose model has learned labels, or its directory.
        data: As at `evaluate`; None: the run's own test examples.
        draws: Evaluations of the network for each example and class.
        prior: Of the classes: "shares" of the training data, or "even".
        split: As at `evaluate`.
        limit: As at `evaluate`.
        condition: As at `evaluate`.
        weights: As at `evaluate`.
        batch_size: As at `evaluate`.
        seed: As at `evaluate`.
        progress: As at `evaluate`.
        **execution: Those of `Execution`, as at `evaluate`.

    Returns:
        `.predicted`, `.table`, `.accuracy` and `.confusion`.

    Raises:
        InputError: For a model without labels, and as `evaluate`.

    Examples:
        >>> labelled = vd.train(
        ...     "digits", "runs/labelled", condition="label", network="mlp", steps=2, progress=False
        ... )
        >>> found = vd.classify(labelled, limit=20, draws=1)
        >>> found.predicted.shape, int(found.confusion.sum())
        (torch.Size([20]), 20)
    """
    whole("seed", seed, 0)
    one_of("prior", prior, PRIORS)
    run = run if isinstance(run, Run) else Run.open(run)
    carried = Execution(**execution)
    with carried.begun() as device:
        vdm = Trained.open(run, weights, carried).vdm
        labels = labels_of(vdm)
        examples = examples_for(run, data, split, limit, condition=condition)
        count = len(labels.names)
        shares = labels.shares.cpu() if prior == "shares" else torch.full((count,), 1 / count)
        found, truth, done = [], [], 0
        with telling(progress, "classifying", "examples") as tell:
            for b, batch in enumerate(ordered_batches(examples, batch_size)):
                x, label = parted(batch)
                bound = ContinuousBound(draws)
                bounds = class_bounds(vdm, x.to(device), bound, seed=derived_seed(seed, b))
                found.append(bounds.cpu())
                if label is not None:
                    truth.append(label)
                done += len(x)
                tell(done / len(examples), done, nothing)
    bounds = torch.cat(found).double()
    p = probabilities(bounds, shares.double())
    predicted = p.argmax(1)
    names = np.array(labels.names)
    table = {
        "example": examples.positions,
        **file_column(examples),
        "predicted": names[predicted],
        "probability": p.amax(1).numpy(),
    }
    if truth:
        table["label"] = names[torch.cat(truth)]
    bits = bits_per_dim(bounds, vdm.dimensions).numpy()
    table |= {f"bits_{name}": bits[:, k] for k, name in enumerate(labels.names)}
    counted = confusion(torch.cat(truth), predicted, count) if truth else None
    return Classified(labels.names, predicted, table, counted, examples)
