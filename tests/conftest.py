"""One thread for every worker: two on a busy machine run several times slower."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def generator():
    """A seeded source of randomness."""
    return torch.Generator().manual_seed(20210701)
