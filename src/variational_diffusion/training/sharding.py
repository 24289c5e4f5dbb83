"""Models that are too large for one device: weights in shards, activations computed again.

Both act on the repeated blocks of a network, the entries of its outermost `nn.ModuleList`s, as
every built-in network has them; a network without any is one block.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from variational_diffusion.model import VDM


def shard(vdm: VDM) -> None:
    """Share the weights of the network out over all processes, in place (torch's FSDP2).

    Every process keeps its rows of every weight, and of its gradient and its optimizer's state; a
    block's weights are gathered while it is computed. The schedule, a few numbers, stays whole, and
    its gradients are averaged as they come.
    """
    for block in blocks(vdm.network):
        fully_shard(block)
    fully_shard(vdm.network)
    for parameter in vdm.schedule.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_average)


def recompute_activations(network: nn.Module) -> None:
    """Keep the inputs of blocks alone for the backward pass, in place, and compute the rest again.

    Dropout draws the same again. The numbers are those without it.
    """
    for block in blocks(network):
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the repeated blocks of a network."""
    for child in network.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from blocks(child)


def _average(parameter: Tensor) -> None:
    """Average a gradient over the processes; once averaged, doing so again leaves it as it is."""
    if parameter.grad is not None:
        distributed.all_reduce(parameter.grad)
        parameter.grad.div_(distributed.get_world_size())
