"""Broadcasting, the Normal distribution and units: the arithmetic that every level shares."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def expand(per_example: Tensor, like: Tensor) -> Tensor:
    """Append axes of length one, so that a value per example broadcasts over `like`.

    per_example: shape (batch,) or (); like: shape (batch, ...).
    """
    if per_example.ndim == 0:
        return per_example
    return per_example.reshape(per_example.shape + (1,) * (like.ndim - per_example.ndim))


def sum_per_example(values: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
    """Sum over all axes but the first."""
    return values.flatten(1).sum(1) if values.ndim > 1 else values


def bits_per_dim(nats: Tensor, dimensions: int) -> Tensor:
    """Convert nats per example to bits per dimension: nats / (d ln 2)."""
    return nats / (dimensions * math.log(2))


def t_quantile(degrees: int | float, probability: float = 0.975) -> float:
    """Return a quantile of Student's t; of the normal distribution for infinitely many degrees.

    degrees: of freedom, > 0. probability: in (0, 1); 0.975 for the upper end of a 95 % interval.
    """
    from scipy.special import ndtri, stdtrit  # noqa: PLC0415 (a quarter of a second)

    if math.isinf(degrees):
        return float(ndtri(probability))
    return float(stdtrit(degrees, probability))


def skewness(values: Float[np.ndarray, " n"]) -> float:
    """Return the skewness G_1 of the distribution that values were drawn from; 0 for two."""
    n = len(values)
    centred = values - values.mean()
    square = float(np.square(centred).mean())
    if n < 3 or not square:
        return 0.0
    return float((centred**3).mean()) / square**1.5 * math.sqrt(n * (n - 1)) / (n - 2)


def mean_interval(
    mean: float,
    error: float,
    degrees: int | float,
    skewness: float = 0.0,
    probability: float = 0.95,
) -> tuple[float, float]:
    """Return the interval of a mean: Student's, corrected for the skewness of the mean.

    Few values of a distribution with a long tail upwards are mostly below its mean, and all the
    more certain of it the fewer they have of the tail. With T the mean less the truth, in errors,
    g(T) = T + k (T²/3 + 1/6) + k² T³/27 is distributed like Student's t to the order of k, and has
    an inverse.

    error: of the mean; degrees: of freedom of the error. skewness: k, of the mean: that of the
    values over √n. probability: with which the interval holds the truth.

    Source: Hall, "On the Removal of Skewness by Transformation" (1992), with the quantiles of
    Student's t for those of the normal distribution.
    """
    quantile = t_quantile(degrees, (1 + probability) / 2)

    def solved(value: float) -> float:
        if abs(skewness) < 1e-6:
            return value
        return 3 / skewness * (float(np.cbrt(1 + skewness * (value - skewness / 6))) - 1)

    return mean - solved(quantile) * error, mean - solved(-quantile) * error


def randn_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw independent N(0, 1) values with the shape, type and device of `x`."""
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def derived_seed(first: int, *others: int) -> int:
    """Return a seed of 63 bits that is a function of these numbers, 0 or more, and nothing else.

    Lists of different numbers or lengths give different seeds, but for chance (2^−63) and for pairs
    with a number of 2^32 or more.
    """
    numbers = (first, *others)
    # SeedSequence fills up with zeros and cuts long numbers into words of 32 bits: how many words
    # each number has tells the lists apart. Pairs are as they always were, (seed, step) of training
    # among them, so that runs go on as they began.
    words = tuple(max(1, -(-number.bit_length() // 32)) for number in numbers)
    key = () if len(numbers) == 2 else words
    low, high = np.random.SeedSequence(numbers, spawn_key=key).generate_state(2, np.uint32)
    return (int(low) | int(high) << 32) >> 1


@dataclass(frozen=True)
class Normal:
    """Independent normal distributions N(mean, std²), one per element.

    mean and std broadcast against each other. `torch.distributions.Normal` draws from the global
    generator only; this one is handed its generator.
    """

    mean: Tensor
    std: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw mean + std · N(0, 1)."""
        mean, std = torch.broadcast_tensors(self.mean, self.std)
        return mean + std * randn_like(mean, generator)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log density of every element, in nats."""
        standard = (x - self.mean) / self.std
        return -0.5 * (standard.square() + math.log(2 * math.pi)) - self.std.log()

    def kl(self, other: Normal) -> Tensor:
        """Return KL(self ‖ other) of every element, in nats.

        The variance part is u − log(1 + u) with u = var/var' − 1, which keeps its digits when the
        two variances are close.
        """
        excess = (self.std - other.std) * (self.std + other.std) / other.std.square()
        shift = (self.mean - other.mean) / other.std
        return 0.5 * (shift.square() + excess - torch.log1p(excess))
