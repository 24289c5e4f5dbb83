"""Labels of the data sets that come with some, for the features."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from variational_diffusion.config import DataConfig
from variational_diffusion.data import open_dataset
from variational_diffusion.errors import InputError


def labels_of(config: DataConfig, split: str) -> Int[np.ndarray, " n"] | None:
    """Return the labels of a split's examples, as numbers from 0; None where there are none.

    config: of data that can be opened; whatever they are conditioned on otherwise.
    """
    if not (config.condition or "").startswith("label"):
        config = config.model_copy(update={"condition": "label"})
    try:
        dataset = open_dataset(config)
    except InputError:  # as they can be opened without labels, it is these that are missing
        return None
    examples = dataset.splits[split]
    if examples.conditions is None or len(dataset.labels or ()) < 2:
        return None
    return np.asarray(examples.conditions)[examples.indices].astype(np.int64)
