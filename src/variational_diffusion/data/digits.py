"""The handwritten digits that come with scikit-learn."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from variational_diffusion.config import DataConfig
from variational_diffusion.data.arrays import ArraySource
from variational_diffusion.data.beside import asked, labels_of, names_of
from variational_diffusion.data.dataset import Dataset
from variational_diffusion.data.splits import IN_ORDER, splits_of

TEST_EXAMPLES = 297
"""Size of the test split, whatever `DataConfig.test` says: the figures of classical coders that
the documents compare with are of 297 images."""

_FILE = "datasets/data/digits.csv.gz"


def open_digits(config: DataConfig) -> Dataset:
    """Open 1,797 images of 8×8 pixels with 17 levels (E. Alpaydin and C. Kaynak, UCI, 1998)."""
    images, classes = _read()
    source = ArraySource(images, "digits", levels=config.levels or 17)
    names = names_of(classes) if asked(config, ["label"]) else None
    labels = None if names is None else labels_of(classes, names)
    fixed = config.model_copy(update={"splits": IN_ORDER})
    parts = splits_of(fixed, source, labels, test=TEST_EXAMPLES)
    return Dataset.of("digits", parts, labels=names)


def _read() -> tuple[np.ndarray, np.ndarray]:
    """Return images and classes as `sklearn.datasets.load_digits` does.

    They are read from scikit-learn's file: to import its data sets takes pandas, and a second.
    """
    spec = find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    rows = np.loadtxt(Path(spec.origin).parent / _FILE, delimiter=",", dtype=np.uint8)
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)
