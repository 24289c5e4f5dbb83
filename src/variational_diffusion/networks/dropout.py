"""Dropout with a mask for every example that does not depend on the batch around it.

A batch goes through a network in parts and in several processes. torch's own dropout draws its mask
in the order of the rows that it is given, so another number of parts or processes is another mask
and another training. Here the mask of an example is a function of two integer keys of the example,
which whoever knows the whole batch draws for all of its rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from variational_diffusion.errors import InputError


class Dropout(nn.Module):
    """In training, set entries to zero with probability p and multiply the others by 1/(1 − p).

    Entry e of row i is dropped where aᵢ hₑ + bᵢ mod 2³² is below p 2³², with the keys (aᵢ, bᵢ) of
    the row and a fixed hash hₑ of the entry's number. The masks of two entries or of two rows are
    independent, as of any linear hash with random coefficients (Carter and Wegman, "Universal
    classes of hash functions", 1979). It takes less time than drawing a number for each entry.

    Within `keyed` the keys are given; elsewhere they are drawn from torch's global generator.

    p: in [0, 1).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise InputError(f"dropout = {p}: give a probability of 0 or more and below 1")
        self.p = p
        self.keys: Tensor | None = None

    def forward(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        if not self.training or self.p == 0:
            return x
        keys = draw_keys(1, len(x), device=x.device)[0] if self.keys is None else self.keys
        rows = (-1, *(1,) * (x.ndim - 1))
        factor, offset = (key.reshape(rows) for key in keys)
        entries = _hashes(x)
        least = min(round(self.p * 2**32) - 2**31, 2**31 - 1)
        kept = torch.addcmul(offset, factor, entries) >= least
        return x * kept.to(x.dtype).mul_(1 / (1 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p}"


def draw_keys(
    layers: int,
    count: int,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> Int[Tensor, "layers 2 count"]:
    """Draw the keys of `count` examples for each of some layers, uniform 32-bit integers."""
    shape = layers, 2, count
    keys = torch.randint(
        -(2**31), 2**31, shape, generator=generator, dtype=torch.int32, device=device
    )
    keys[:, 0] |= 1  # an odd factor leaves all of the 2³² products possible
    return keys


def dropout_layers(network: nn.Module) -> list[Dropout]:
    """Return the layers of a network that drop something in training."""
    return [module for module in network.modules() if isinstance(module, Dropout) and module.p > 0]


@contextmanager
def keyed(layers: Sequence[Dropout], keys: Int[Tensor, "layers 2 batch"]) -> Iterator[None]:
    """Let layers take their masks from these keys, in all passes with these rows."""
    for layer, own in zip(layers, keys, strict=True):
        layer.keys = own
    try:
        yield
    finally:
        for layer in layers:
            layer.keys = None


def _hashes(x: Tensor) -> Int[Tensor, "1 *shape"]:
    """Return a hash of the number of every entry of an example, laid out in memory as x is."""
    number = torch.arange(x[0].numel(), dtype=torch.int32, device=x.device)
    for multiplier, shift in ((-1640531535, 15), (-2048144777, 13)):  # primes of xxHash32
        number = number * multiplier
        number = number ^ (number >> shift)
    return torch.empty_like(x[:1], dtype=torch.int32).copy_(number.view(1, *x.shape[1:]))
