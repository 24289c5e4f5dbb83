"""One thread for every worker and its children: two on a busy machine run several times slower."""

import os

import pytest
import torch

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def generator():
    """A seeded source of randomness."""
    return torch.Generator().manual_seed(20210701)


@pytest.fixture
def offline(tmp_path_factory, monkeypatch):
    """The library `datasets` without a network, and with a cache of its own."""
    import datasets  # noqa: PLC0415 (a second, for the tests that ask for it)

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
