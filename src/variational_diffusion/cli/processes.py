"""Several processes, as `torchrun` starts them, that share the work of one command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
from torch import distributed

_PATIENCE = timedelta(days=2)  # for the slowest: how long a solver takes depends on the examples


class Place(NamedTuple):
    """Which of how many processes this one is."""

    rank: int
    processes: int

    @property
    def leads(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0


@contextmanager
def processes(device: torch.device) -> Iterator[Place]:
    """Join the processes that `torchrun` has started; alone, where it has not."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Place(0, 1)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield Place(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
