"""What a model is conditioned on: labels and arrays as tensors that a network takes.

Values of a condition come beside the examples, as the data have them: label numbers, vectors or
images. An entry of `CONDITIONS` encodes them, as a decoder encodes examples. In every encoding the
zero tensor means that there is no condition, so dropping one in training is a product with zero,
and a network that is called without one sees zeros: one network is both p(x|c) and p(x) (Ho and
Salimans, "Classifier-Free Diffusion Guidance", 2022).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Integer, Shaped
from torch import Tensor, nn

from variational_diffusion.errors import InputError, one_of
from variational_diffusion.units import Standardised

Batch = Tensor | tuple[Tensor, Tensor]
"""Examples, shape (batch, *shape); or a pair of them and of the values of their conditions."""


def parted(batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Return the examples and the values of their conditions, None where there are none."""
    return (batch, None) if isinstance(batch, Tensor) else (batch[0], batch[1])


def as_batch(made: object) -> Batch:
    """Return what a loader yields as a batch: a tensor, or one or two of them in a list or tuple.

    Raises InputError for anything else.
    """
    parts = [made] if isinstance(made, Tensor) else made
    if isinstance(parts, list | tuple):
        tensors = [part for part in parts if isinstance(part, Tensor)]
        if len(tensors) == len(parts) == 1:
            return tensors[0]
        if len(tensors) == len(parts) == 2:
            return tensors[0], tensors[1]
    raise InputError(
        f"the loader yields {type(made).__name__}: tensors of examples, or pairs of them and of "
        "their conditions, are allowed; give it another collate_fn"
    )


class Labels(nn.Module):
    """Classes by name, as one-hot vectors.

    Args:
        names: Of the classes; label k is the k-th.
        shares: Of the training examples that have each label.

    Raises:
        InputError: For no class, a name that is there twice, and another number of shares.

    Examples:
        >>> labels = vd.Labels(["cat", "dog"], shares=[0.5, 0.5])
        >>> labels.encode(labels.values(["dog", "cat"])).tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """

    shares: Tensor

    def __init__(self, names: Sequence[str], shares: Sequence[float]) -> None:
        super().__init__()
        if not names or len(set(names)) < len(names) or len(names) != len(shares):
            raise InputError(
                f"names = {list(names)}, shares = {list(shares)}: give one class or more, each "
                "name once, and a share for each"
            )
        self.names = tuple(names)
        self.register_buffer("shares", torch.tensor(list(shares)), persistent=False)
        self.shape: tuple[int, ...] = (len(names),)

    def encode(self, values: Integer[Tensor, " batch"]) -> Float[Tensor, "batch classes"]:
        """Return one-hot vectors; raise `InputError` for a number of no class."""
        known = range(len(self.names))
        if not values.is_cuda and len(values) and not {*values.unique().tolist()} <= {*known}:
            raise InputError(
                f"label = {int(values.min())} to {int(values.max())}: the model knows the numbers "
                f"0 to {known[-1]}"
            )
        return nn.functional.one_hot(values.long(), len(self.names)).to(self.shares.dtype)

    def values(self, names: Iterable[str]) -> Integer[Tensor, " n"]:
        """Return the labels of these names, on the CPU; raise `InputError` for an unknown one."""
        return torch.tensor([self._number(name) for name in names])

    def draw(self, n: int, generator: torch.Generator | None = None) -> Integer[Tensor, " n"]:
        """Draw labels by their shares, on the CPU.

        Args:
            n: Number of labels.
            generator: None: torch's global one.
        """
        return torch.multinomial(self.shares.cpu(), n, replacement=True, generator=generator)

    def _number(self, name: str) -> int:
        folded = [known.casefold() for known in self.names]
        if name not in self.names and folded.count(name.casefold()) == 1:
            return folded.index(name.casefold())
        one_of("label", name, self.names)
        return self.names.index(name)


class Arrays(Standardised):
    """Vectors, or images of the examples' height and width: standardised, and a one beside them.

    The ones are one more entry of a vector and one more channel of an image: the condition whose
    values are all the mean is another than none.

    value_shape: of one value, (n,) or (channels, height, width).
    location, scale: of each entry of its first axis.
    """

    def __init__(
        self, value_shape: Sequence[int], location: Sequence[float], scale: Sequence[float]
    ) -> None:
        super().__init__(location, scale, persistent=False)
        if not len(location) == len(scale) == value_shape[0]:
            raise InputError(
                f"location has {len(location)} and scale {len(scale)} entries: give "
                f"{value_shape[0]} of each, one for each entry of the first axis"
            )
        self.value_shape = tuple(value_shape)
        self.shape: tuple[int, ...] = (value_shape[0] + 1, *value_shape[1:])

    def encode(self, values: Shaped[Tensor, "batch *value"]) -> Float[Tensor, "batch *shape"]:
        """Return (values − location)/scale and the ones, in float64."""
        if tuple(values.shape[1:]) != self.value_shape:
            raise InputError(
                f"condition has shape {tuple(values.shape[1:])}: the model takes {self.value_shape}"
            )
        standard = self.standardise(values)
        return torch.cat([standard, torch.ones_like(standard[:, :1])], dim=1)


CONDITIONS: dict[str, type[Labels] | type[Arrays]] = {"label": Labels, "array": Arrays}
