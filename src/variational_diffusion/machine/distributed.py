"""Several processes, as `torchrun` and `accelerate launch` start them, that share one command.

Collectives are torch's; alone, every function here returns what it was given.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

from variational_diffusion.errors import InputError

DAYS = timedelta(days=2)
"""To wait for the slowest of several solvers: how long one takes depends on the examples."""


class Place(NamedTuple):
    """Which of how many processes this one is."""

    rank: int = 0
    processes: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def share(self, name: str, count: int) -> int:
        """Return the equal share of a `count`; raise `InputError` where there is none."""
        if count % self.processes:
            raise InputError(
                f"{name} = {count}: {self.processes} processes need a multiple of "
                f"{self.processes}; give --{name.replace('_', '-')} "
                f"{-(-count // self.processes) * self.processes}"
            )
        return count // self.processes

    def rows(self, count: int) -> slice:
        """Return the rows of a batch of `count`, a multiple of the processes, that are ours."""
        share = count // self.processes
        return slice(self.rank * share, (self.rank + 1) * share)


ALONE = Place()
"""One process."""


def here() -> Place:
    """Return the place of this process."""
    if distributed.is_available() and distributed.is_initialized():
        return Place(distributed.get_rank(), distributed.get_world_size())
    return ALONE


def leads() -> bool:
    """Return whether this process leads, also before and after it has joined the others."""
    return here().leads and int(os.environ.get("RANK", "0")) == 0


def launched() -> int:
    """Return how many processes torchrun started on this machine; 1 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def processes(device: torch.device, patience: timedelta = timedelta(minutes=30)) -> Iterator[Place]:
    """Join the processes that a launcher has started; alone, where none has.

    patience: how long to wait for the others, here and later.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or here().processes > 1:
        yield here()
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    store, rank, count = next(distributed.rendezvous("env://", timeout=patience))
    # torchrun keeps its store when it starts processes again, with what those before wrote there
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    distributed.init_process_group(
        backend,
        store=distributed.PrefixStore(f"attempt {attempt}", store),
        rank=rank,
        world_size=count,
        timeout=patience,
    )
    try:
        yield here()
    finally:
        distributed.destroy_process_group()


def local_device(name: str) -> str:
    """Return the name of this process's own device, where a launcher started one for each."""
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if name == "cuda" and rank is not None else name


def sum_over_processes(values: Tensor) -> Tensor:
    if here().processes > 1:
        values = values.clone()
        distributed.all_reduce(values)
    return values


def texts_of_processes(text: str, device: torch.device) -> list[str]:
    """Return a text of every process, in their order."""
    place = here()
    if place.processes == 1:
        return [text]
    encoded = text.encode()
    (longest,) = largest_over_processes([len(encoded)], device)
    table = torch.zeros(place.processes, int(longest) + 8, dtype=torch.uint8, device=device)
    row = len(encoded).to_bytes(8, "big") + encoded
    table[place.rank, : len(row)] = torch.tensor(list(row), dtype=torch.uint8)
    rows = [bytes(row) for row in sum_over_processes(table).tolist()]
    return [row[8 : 8 + int.from_bytes(row[:8], "big")].decode() for row in rows]


def wait_for_all() -> None:
    """Return when every process has come here."""
    if here().processes > 1:
        distributed.barrier()


def largest_over_processes(values: Sequence[float], device: torch.device) -> list[float]:
    """Return the largest of each of a few numbers, so that all processes decide alike by them."""
    if here().processes == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
    return tensor.tolist()


def is_share(tensor: Tensor) -> bool:
    """Return whether a tensor is sharded over processes: torch's DTensor.

    Only who has loaded that module, which takes a second, can have made one.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that is sharded over processes as one; every process has to call this."""
    return tensor.full_tensor() if is_share(tensor) else tensor  # type: ignore[attr-defined]


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors on the CPU, sharded ones as a whole, in the leading process; none elsewhere.

    One after the other, so that a device holds one of them at a time; every process calls this.
    """
    leads = here().leads
    found = {}
    for name, tensor in tensors.items():
        value = whole(tensor.detach())
        if leads:
            found[name] = value.cpu()
    return found


def is_sharded(module: nn.Module) -> bool:
    """Return whether a model's weights are shared out over processes."""
    return any(map(is_share, module.parameters()))


def local(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor: all of it, or its rows, in the same memory."""
    return tensor.to_local() if is_share(tensor) else tensor  # type: ignore[attr-defined]


def laid_out_as(like: Tensor, values: Tensor) -> Tensor:
    """Return values that every process has, in the shape of `like` and sharded as it is."""
    values = values.view(like.shape)
    if not is_share(like):
        return values
    from torch.distributed.tensor import DTensor, distribute_tensor  # noqa: PLC0415 (a second)

    assert isinstance(like, DTensor)
    return distribute_tensor(values, like.device_mesh, like.placements, src_data_rank=None)
