"""Networks of one's own: found by their import path, and checked before the first step."""

from __future__ import annotations

import copy
import inspect
import os
import sys
from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor, nn

from variational_diffusion.errors import InputError
from variational_diffusion.sampling.contract import estimate

Factory = Callable[..., nn.Module]
"""Called with the shape of an example, and options by name, it makes a network."""

_BATCH = 3
_WIDTH = 0.05  # of what is added to weights, so that last layers that begin at zero hide nothing


def is_path(name: str) -> bool:
    """Return whether a name is an import path, as in "mypackage.nets:Tiny", and of no table."""
    return ":" in name


def path_of(factory: Factory) -> str:
    """Return the import path of a class or function, as in "mypackage.nets:Tiny"."""
    name = getattr(factory, "__qualname__", type(factory).__qualname__)
    return f"{getattr(factory, '__module__', '__main__')}:{name}"


def imported(path: str) -> Factory:
    """Import what a path names, from the working directory too, as `python -m` does.

    Raises InputError where there is no such module, or nothing of the name in it.
    """
    module, _, name = path.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"network = '{path}' cannot be imported ({error}); give MODULE:NAME of a module that "
            "python finds from here"
        ) from error
    if not callable(found):
        raise InputError(f"network = '{path}' cannot be called; name a class, or a function")
    return found


def made(factory: Factory, path: str, shape: tuple[int, ...], **options: object) -> nn.Module:
    """Return factory(shape, **options); raise `InputError` where that makes no network."""
    try:
        inspect.signature(factory).bind(shape, **options)
    except TypeError as error:
        raise InputError(
            f"network = '{path}' is called with the shape of an example"
            f"{''.join(f', {name}=…' for name in options)}, and takes other arguments ({error})"
        ) from error
    network = factory(shape, **options)
    if not isinstance(network, nn.Module):
        raise InputError(f"network = '{path}' makes {type(network).__name__}, and no nn.Module")
    return network


@torch.no_grad()
def check(
    network: nn.Module, path: str, shape: tuple[int, ...], conditioning: Tensor | None
) -> None:
    """Raise `InputError` for a network that does not do what a model asks of it.

    A copy of it is called, in training mode: network(z, gamma, conditioning) has the shape and the
    type of z, and what it gives for an example does not depend on the others of the batch, as with
    batch normalisation: the schedule learns from the loss of each example as a function of its γ.

    conditioning: as it is encoded, of one example; None for an unconditional model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = copy.deepcopy(network).cpu().train()
        for p in network.parameters():
            p.add_(_WIDTH * torch.randn_like(p))
        z = torch.randn(_BATCH, *shape)
        gamma = torch.linspace(-5.0, 3.0, _BATCH)
        given = conditioning
        if given is not None:
            given = given.cpu().expand(_BATCH, *given.shape)
        outputs = []
        for examples in (z, torch.cat([z[:1], torch.randn(_BATCH - 1, *shape)])):
            torch.manual_seed(1)  # of dropout
            try:
                outputs.append(estimate(network, examples, gamma, given))
            except (TypeError, RuntimeError, IndexError) as error:
                raise InputError(
                    f"network = '{path}': network(z, gamma, conditioning) with z of shape "
                    f"{tuple(z.shape)}, gamma of shape ({_BATCH},) and conditioning "
                    f"{'None' if given is None else f'of shape {tuple(given.shape)}'} raised "
                    f"{type(error).__name__}: {str(error).splitlines()[0]}"
                ) from error
    first, second = (output[0] for output in outputs)
    if not torch.allclose(first, second, rtol=1e-4, atol=1e-5):
        raise InputError(
            f"network = '{path}': what it gives for an example depends on the other examples of "
            "the batch, as with batch normalisation; normalise within an example, as GroupNorm and "
            "LayerNorm do"
        )
