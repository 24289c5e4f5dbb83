"""The handwritten digits that come with scikit-learn."""

from __future__ import annotations

import numpy as np

from variational_diffusion.config import DataConfig
from variational_diffusion.data.arrays import ArraySource
from variational_diffusion.data.beside import asked, labels_of, names_of
from variational_diffusion.data.dataset import Dataset
from variational_diffusion.data.splits import splits_of

TEST_EXAMPLES = 297
"""Size of the test split, whatever `DataConfig.test` says: the figures of classical coders that
the documents compare with are of 297 images."""


def open_digits(config: DataConfig) -> Dataset:
    """Open 1,797 images of 8×8 pixels with 17 levels (E. Alpaydin and C. Kaynak, UCI, 1998)."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 (imports scipy: half a second)

    digits = load_digits()
    source = ArraySource(digits.images.astype(np.uint8), "digits", levels=config.levels or 17)
    names = names_of(digits.target) if asked(config, ["label"]) else None
    labels = None if names is None else labels_of(digits.target, names)
    splits = splits_of(config, source, labels, test=TEST_EXAMPLES)
    return Dataset("digits", splits, labels=names)
