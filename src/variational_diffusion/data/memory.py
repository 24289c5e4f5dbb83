"""Examples in memory: arrays, tensors, and what torch makes them of: data sets and loaders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data import Dataset as TorchDataset

from variational_diffusion.conditions import as_batch, parted
from variational_diffusion.config import DataConfig, validated
from variational_diffusion.data.arrays import ArraySource, conditions_beside
from variational_diffusion.data.beside import DEGRADATIONS, KINDS
from variational_diffusion.data.dataset import Dataset
from variational_diffusion.data.keys import keys_of_groups
from variational_diffusion.data.splits import splits_of
from variational_diffusion.errors import InputError

MEMORY = "memory:"
"""What the source of such data begins with; a digest of the values follows."""

_GIVEN = "given"
"""What stands in the configuration of data whose groups were given one by one."""

_OPTIONS = {
    *("levels", "value_range", "flip", "crop"),
    *("validation", "test", "split_seed", "group", "splits"),
}


def in_memory(values: Any, *, group: Any = None, **options: Any) -> Dataset:
    """Return examples that are in memory as a data set of three splits.

    What is not an array is read once, to its end, and kept. A loader may shuffle: its examples are
    put into an order that follows from their values alone, so that the same ones give the same
    splits. Nothing of torch's global generator is used up.

    Args:
        values: Examples along the first axis of an array or tensor; a torch data set of tensors; or
            a loader, which yields batches of tensors and ends. A pair of arrays, a data set of
            pairs and a loader of pairs hold conditions with the examples.
        group: One value for each example, the same for those that stay on one side of the splits,
            as the number of a patient or a film.
        **options: levels, value_range, validation, test, split_seed, flip, crop and condition of
            `DataConfig`; a condition is "label", "vector" or "image" for the second of a pair.

    Raises:
        InputError: For another option, for values that are not numbers or not finite, and for a
            condition without values for the examples.
    """
    if group is not None:
        options["group"] = _GIVEN
    config = validated(DataConfig, {"source": MEMORY, **options})
    for name in options.keys() - _OPTIONS - {"condition"}:
        known = ", ".join(sorted(_OPTIONS | {"condition"}))
        raise InputError(f"{name} = {options[name]!r}: data in memory have the options {known}")
    x, beside = _read(values)
    source = ArraySource(x, "data", levels=config.levels, value_range=config.value_range)
    kind = config.condition
    conditions, labels = None, None
    notes: tuple[str, ...] = ()
    if kind is not None and kind not in DEGRADATIONS:
        if kind not in KINDS:
            known = ", ".join([*KINDS, *DEGRADATIONS])
            raise InputError(f"condition = '{kind}': known for data in memory are {known}")
        if beside is None:
            raise InputError(
                f"condition = '{kind}': nothing stands beside the examples; give pairs of them and "
                "of their conditions"
            )
        conditions, labels = conditions_beside(beside, "the second of each pair", kind, source)
    elif beside is not None:
        notes = (
            "the data are pairs, and what stands beside the examples is left out: to train on it, "
            "give condition='label' (or 'vector', or 'image')",
        )
    groups = None if group is None else _groups(group, len(source))
    parts = splits_of(config, source, conditions, groups=groups)
    kept = (x,) if conditions is None else (x, conditions)
    name = MEMORY + _digest(*kept)
    config = config.model_copy(update={"source": name})
    return Dataset.of(name, parts, (*notes, *source.notes), labels).read_as(config)


def _groups(values: Any, n: int) -> np.ndarray:
    """Return one key for each example, the same for those of one group."""
    given = _array(values)
    if isinstance(values, str) or given.shape != (n,):
        raise InputError(
            f"group = {type(values).__name__} of shape {given.shape}: data in memory have no "
            f"names; give one value for each of the {n} examples"
        )
    return keys_of_groups(map(str, given.tolist()), "(?s:.*)")


def _read(values: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the examples, and what stands beside them."""
    if isinstance(values, np.ndarray | Tensor) or hasattr(values, "__array__"):
        return _array(values), None
    if isinstance(values, tuple) and len(values) == 2:
        return _array(values[0]), _array(values[1])
    if isinstance(values, TorchDataset) and not isinstance(values, IterableDataset):
        return _joined(_numbered(values))
    if not isinstance(values, Iterable):
        raise InputError(
            f"data = {type(values).__name__}: give a name or a path, an array, a tensor, a torch "
            "data set of tensors, or a loader of them"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x, beside = _joined(as_batch(made) for made in values)
    order = _order(x, beside)
    return x[order], None if beside is None else beside[order]


def in_order(values: Any) -> np.ndarray | Tensor:
    """Return examples in memory as an array, in the order in which they are given.

    values: an array or tensor, a torch data set, or a loader, of which what stands beside the
    examples is left out.
    """
    if isinstance(values, TorchDataset) and not isinstance(values, IterableDataset):
        return _joined(_numbered(values))[0]
    if isinstance(values, DataLoader | IterableDataset):
        return _joined(as_batch(made) for made in values)[0]
    return values if isinstance(values, Tensor) else np.asarray(values)


def _numbered(values: Any) -> Iterator[Any]:
    """Yield the items of a map-style data set as batches of one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for i in range(len(values)):
            item = values[i]
            parts = item if isinstance(item, list | tuple) else [item]
            yield as_batch([torch.as_tensor(part)[None] for part in parts])


def _joined(batches: Iterable[Any]) -> tuple[np.ndarray, np.ndarray | None]:
    pairs = [parted(batch) for batch in batches]
    if not pairs:
        raise InputError("data: there are no examples; a generator can be read once only")
    try:
        x = _array(torch.cat([x for x, _ in pairs]))
        beside = [condition for _, condition in pairs if condition is not None]
        return x, _array(torch.cat(beside)) if beside else None
    except RuntimeError as error:
        raise InputError(
            f"data: the examples are not of one shape and type ({str(error).splitlines()[0]}); "
            "resample them"
        ) from error


def _array(values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
        return values.numpy()
    return np.asarray(values)


def _order(*arrays: np.ndarray | None) -> np.ndarray:
    """Return an order of examples that follows from their values and not from where they stand."""
    there = [np.ascontiguousarray(array) for array in arrays if array is not None]
    digests = [_digest(*map(np.asarray, rows)) for rows in zip(*there, strict=True)]
    return np.argsort(np.array(digests), kind="stable")


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:32]
