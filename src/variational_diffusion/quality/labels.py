"""Labels of the data sets that come with some, for the features."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from jaxtyping import Int

from variational_diffusion.data import Split
from variational_diffusion.data.idx import FASHION_MNIST

_HEADER = 8


def labels_of(split: Split, source: str) -> Int[np.ndarray, " n"] | None:
    """Return the labels of the training examples of the digits and of IDX folders, else None."""
    if source == "digits":
        from sklearn.datasets import load_digits  # noqa: PLC0415 (imports scipy: half a second)

        return np.asarray(load_digits().target)[split.indices]
    folder = FASHION_MNIST if source == "fashion-mnist" else Path(source)
    for path in sorted(folder.glob("train-labels-idx1-ubyte*")):
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rb") as file:
            labels = np.frombuffer(file.read()[_HEADER:], np.uint8)
        if len(labels) == len(split.source):
            return labels[split.indices]
    return None
