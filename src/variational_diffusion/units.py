"""Units: real values as the data have them, and standardised for a network.

Networks work in float32 on values of the scale of one. Data have units of their own, where the
offset may be large beside the spread: a time of 1.7e9 seconds moves by 128 from one float32 to the
next. So the offset is taken off, and put back, in float64, whatever the precision of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from variational_diffusion.errors import InputError

Values = float | Sequence[float] | np.ndarray
"""One number, or several along an axis."""


class Standardised(nn.Module):
    """u = (x − location)/scale in float64, and back.

    Location and scale are buffers, so they move with the model from device to device, and stay
    float64 when its precision is changed.

    location, scale > 0: one number, or one for every entry of the first axis of an example
        (channels of an image, entries of a vector).
    persistent: whether they are stored with the weights.
    """

    location: Tensor
    scale: Tensor

    def __init__(
        self,
        location: Values,
        scale: Values,
        *,
        persistent: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (("location", location), ("scale", scale)):
            exact = torch.as_tensor(value, dtype=torch.float64)
            self.register_buffer(name, exact, persistent=persistent)
        _check(self.location, self.scale)

    def standardise(self, x: Shaped[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """Return (x − location)/scale, in float64."""
        return (x - self._of_entries(self.location, x)) / self._of_entries(self.scale, x)

    def restore(self, u: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """Return location + scale · u, in float64: the inverse of `standardise`."""
        return self._of_entries(self.location, u) + self._of_entries(self.scale, u) * u

    def log_scales(self, x: Shaped[Tensor, "batch *shape"]) -> Float[Tensor, ...]:
        """Return log scale of every entry, in float64, in a shape that broadcasts over x."""
        return self._of_entries(self.scale, x).log()

    def _of_entries(self, value: Tensor, x: Tensor) -> Tensor:
        # never of shape (): torch takes such a number for one without a precision of its own
        return value.reshape(-1, *(1,) * max(0, x.ndim - 2))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Standardised:
        """Do what `to`, `float`, `half` or `cuda` ask for, and keep the values in float64."""
        exact = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, value in exact.items():
            moved = self._buffers[name]
            assert value is not None
            assert moved is not None
            self._buffers[name] = moved if moved.dtype == value.dtype else value.to(moved.device)
        return self


def _check(location: Tensor, scale: Tensor) -> None:
    """Raise InputError for what no value can be standardised by."""
    for name, value, allowed, rule in (
        ("location", location, location.isfinite(), "a location is finite"),
        ("scale", scale, scale.isfinite() & (scale > 0), "a scale is positive and finite"),
    ):
        bad = (~allowed).flatten().nonzero().flatten().tolist()
        if bad:
            first = value.flatten()[bad[0]].item()
            which = f" of entry {bad[0]}" if value.ndim else ""
            others = f", as are {len(bad) - 1} others of {value.numel()}" if len(bad) > 1 else ""
            raise InputError(
                f"{name}{which} is {first:g}{others}: {rule}; leave constant columns out, as in "
                "x[:, x.std(0) > 0]"
            )
