"""The handwritten digits that come with scikit-learn."""

from __future__ import annotations

import numpy as np

from variational_diffusion.config import DataConfig
from variational_diffusion.data.arrays import ArraySource
from variational_diffusion.data.dataset import Dataset
from variational_diffusion.data.splits import random_splits

TEST_EXAMPLES = 297
"""Size of the test split, whatever `DataConfig.test` says: the figures of classical coders that
the documents compare with are of 297 images."""


def open_digits(config: DataConfig) -> Dataset:
    """Open 1,797 images of 8×8 pixels with 17 levels (E. Alpaydin and C. Kaynak, UCI, 1998)."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 (imports scipy: half a second)

    images = load_digits().images.astype(np.uint8)
    source = ArraySource(images, "digits", levels=config.levels or 17)
    splits = random_splits(
        source, validation=config.validation, test=TEST_EXAMPLES, seed=config.split_seed
    )
    return Dataset("digits", splits)
