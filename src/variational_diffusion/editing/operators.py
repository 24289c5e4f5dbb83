"""What was seen of an example: y = A(x) + noise · N(0, I), for inverse problems.

A is a function of encoded data, shape (batch, *shape), that torch can differentiate and that keeps
examples apart; x and y are in the units of the encoding, where discrete data lie in (−1, 1). Any
such function makes a `Measurement`; the table has the usual ones for images, (channels, height,
width), each as a function of one example's shape and of its own options.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, pad

from variational_diffusion.errors import InputError, one_of
from variational_diffusion.numerics import randn_like

Function = Callable[[Tensor], Tensor]
Shape = tuple[int, ...]

_LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in the brightness of a picture (ITU-R BT.601)."""


@dataclass(frozen=True)
class Measurement:
    """y = function(x) + noise · N(0, I) of encoded data x; noise ≥ 0 is a standard deviation."""

    function: Function
    noise: float

    def __post_init__(self) -> None:
        if not self.noise >= 0:
            raise InputError(f"noise = {self.noise}: a standard deviation is 0 or more")

    def __call__(
        self, x: Float[Tensor, "batch *shape"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch *measured"]:
        """Measure x, with a draw of the noise."""
        exact = self.function(x)
        return exact + self.noise * randn_like(exact, generator)


def mask(shape: Shape, mask: Bool[Tensor, ...]) -> Function:
    """Return A that sees the entries of x where the mask is false, as one vector."""
    if tuple(mask.shape) != shape:
        raise InputError(f"mask has shape {tuple(mask.shape)}: it takes that of the data, {shape}")
    seen = torch.nonzero(~mask.flatten()).flatten()
    if len(seen) == 0:
        raise InputError("mask hides every entry: nothing of the data is seen")
    return lambda x: x.flatten(1)[:, seen.to(x.device)]


def downsample(shape: Shape, factor: int = 2) -> Function:
    """Return A that averages squares of factor × factor pixels."""
    _check_image("downsample", shape)
    if factor < 1 or any(side % factor for side in shape[1:]):
        raise InputError(
            f"factor = {factor}: images of {shape[1]}x{shape[2]} are not divided into squares of "
            "that side; give a number that divides both"
        )
    return lambda x: avg_pool2d(x, factor)


def blur(shape: Shape, width: float = 1.0) -> Function:
    """Return A that blurs by a Gaussian; width > 0 is its standard deviation in pixels."""
    _check_image("blur", shape)
    reach = round(3 * width) if width > 0 else 0
    if not 0 < reach < min(shape[1:]):
        raise InputError(
            f"width = {width}: a blur of images of {shape[1]}x{shape[2]} takes a standard "
            f"deviation of 0.2 to {(min(shape[1:]) - 1) / 3:.1f} pixels"
        )
    place = torch.arange(-reach, reach + 1, dtype=torch.float64)
    line = torch.exp(-0.5 * (place / width).square())
    line = line / line.sum()

    def blurred(x: Tensor) -> Tensor:
        channels = x.shape[1]
        kernel = line.to(x).expand(channels, 1, -1)
        x = pad(x, (reach,) * 4, mode="reflect")
        x = conv2d(x, kernel[..., None], groups=channels)
        return conv2d(x, kernel[:, :, None], groups=channels)

    return blurred


def grey(shape: Shape) -> Function:
    """Return A that sees the brightness of images with three channels."""
    if len(shape) != 3 or shape[0] != 3:
        raise InputError(f"grey: data of shape {shape} have no three channels to make grey")
    return lambda x: torch.einsum("bchw,c->bhw", x, torch.tensor(_LUMA).to(x))[:, None]


MEASUREMENTS: dict[str, Callable[..., Function]] = {
    "mask": mask,
    "downsample": downsample,
    "blur": blur,
    "grey": grey,
}


def measurement_named(name: str, shape: Shape, **options: Any) -> Function:
    """Return the function of a name of `MEASUREMENTS`; options that are None are left out.

    Raises InputError for an unknown name, for options that are not its own, and without a mask
    where it takes one.
    """
    one_of("measurement", name, MEASUREMENTS)
    own = list(inspect.signature(MEASUREMENTS[name]).parameters)[1:]
    given = {option: value for option, value in options.items() if value is not None}
    for option in given.keys() - set(own):
        takes = f"it takes --{own[0]}" if own else "it takes no option"
        value = "given" if isinstance(given[option], Tensor) else given[option]
        raise InputError(f"{option} = {value}: no option of {name}; {takes}")
    if "mask" in own and "mask" not in given:
        raise InputError("measurement = 'mask': name the picture of the mask with --mask")
    return MEASUREMENTS[name](shape, **given)


def _check_image(name: str, shape: Shape) -> None:
    if len(shape) != 3:
        raise InputError(
            f"{name}: data of shape {shape} are no images; it takes (channels, height, width)"
        )
