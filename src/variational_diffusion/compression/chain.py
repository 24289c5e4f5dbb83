"""Bits back over the diffusion chain, in the Bit-Swap order.

A batch of examples x is pushed on a stack as

    pop z_0 ~ q(z_0|x), push x under p(x|z_0),
    pop z_t ~ q(z_t|z_s), push z_s under p(z_s|z_t) for every step of the grid, from low noise up,
    push z_1 under N(0, I),

which adds the bound of the chain to the stack: popping a latent gives back what drawing it costs.
The stack sinks by about two latents and then rises. Popping a batch is the same backwards.

Latents are integers: z is such an integer times a width that is the 16th part of the least standard
deviation of the two distributions that code it, so that neither changes much within a width.

Source: Kingma, Abbeel, Ho, "Bit-Swap: Recursive Bits-Back Coding for Lossless Compression with
Hierarchical Latent Variables" (2019); Kingma et al., "Variational Diffusion Models" (2021),
section 7.3, which uses the order from the top.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import numpy as np
import torch

from variational_diffusion import process
from variational_diffusion.compression import format2
from variational_diffusion.compression.exact import OCTAVE, PER_OCTAVE, on_grid
from variational_diffusion.compression.lattice import lattice_of
from variational_diffusion.compression.levels import nearest_of, pop_levels, push_levels
from variational_diffusion.compression.needed import converted, model_digest
from variational_diffusion.compression.rounding import Rounding
from variational_diffusion.compression.stack import UNIT, Stack
from variational_diffusion.decoders import Discretized
from variational_diffusion.errors import InputError
from variational_diffusion.lattice import log_lattice_sum
from variational_diffusion.model import VDM

VERSION = 3
"""The format of files that is written; format 2 is read, too."""

GAMMA_UNIT = 2.0**-10
"""γ on a chain is a multiple of this."""

FINEST = 8
"""Means are multiples of an eighth of a width."""

STD_SIZE = 2.0**17
"""Of what logarithms of deviations are made of, generously: hardly any lies in such a band."""

_LEAST_STD, _LARGEST_STD = UNIT // 2, UNIT << 20  # widths
_LARGEST_MEAN = 2.0**40  # widths
_EVALUATED = {"cpu": 1 << 13, "cuda": 1 << 20}  # entries that the network sees at once, about

_STDS = _LEAST_STD * np.append(
    np.ldexp(OCTAVE, np.arange(round(math.log2(_LARGEST_STD // _LEAST_STD)))[:, None]),
    _LARGEST_STD // _LEAST_STD,
)
"""Standard deviations that are coded: the powers of 2^(1/128)."""


class Reverse(NamedTuple):
    """p(z_s|z_t) of a batch in units of the width of z_s: float64, as the network gave it."""

    mean: np.ndarray
    std: np.ndarray


class Lengths(NamedTuple):
    """What a chain takes for a batch of examples: every entry's share, shape (n, *shape), in nats.

    bound: of the chain, with the one z_t of every step that was drawn. drawn: −log of the densities
    of all that was drawn and coded, whose mean over draws is the bound.
    """

    bound: np.ndarray
    drawn: np.ndarray


class ChainCoder:
    """Pushes batches of examples on a stack under a model with a chain of finitely many steps.

    vdm: a model of discrete data, in evaluation mode; its copy here is in float64 or float32.
    gammas: the chain, from γ_1 down to γ_0; rounded to multiples of 1/1024, as files keep it.
    portable: evaluate in float64 and write down close decisions, so that another machine decodes
        the same; otherwise in float32, which only this machine, with as many threads, repeats.

    together: examples that the network sees at once; a decoder may have another number. On a CPU
        few: the convolutions of a large batch in float64 leave the cache.
    """

    def __init__(self, vdm: VDM, gammas: np.ndarray, *, portable: bool = True) -> None:
        if not isinstance(vdm.decoder, Discretized):
            raise InputError(
                "decoder = 'gaussian': lossless compression is for integers of some number of "
                "levels; train on such data"
            )
        self.levels = vdm.decoder.levels
        self.shape = vdm.shape
        self.dimensions = vdm.dimensions
        self.gammas = np.rint(np.asarray(gammas, np.float64) / GAMMA_UNIT) * GAMMA_UNIT
        if not np.isfinite(gammas).all():
            raise InputError(
                "the chain is not finite, because the model's measured errors are not; take other "
                "--weights, or another run"
            )
        if len(gammas) < 2 or not (np.diff(self.gammas) < 0).all() or abs(self.gammas).max() >= 32:
            raise InputError(
                f"gammas: {len(gammas)} values that do not fall from γ_1 to γ_0 in steps of 1/1024 "
                "or more, within ±32; take fewer --steps"
            )
        self.portable, self.version = portable, VERSION
        self.model = model_digest(vdm)
        self._dtype = torch.float64 if portable else torch.float32
        self._vdm = converted(vdm, self._dtype)
        self._device = vdm.device
        self.together = max(1, _EVALUATED.get(self._device.type, 1 << 16) // self.dimensions)
        self._gamma = torch.from_numpy(self.gammas[::-1].copy())
        self._lattice = lattice_of(self.gammas, self.levels)

    def reading(self, version: int) -> ChainCoder:
        """Return the coder that pops what was pushed for a file of this format: 2 or `VERSION`."""
        if version == self.version:
            return self
        assert version == 2
        other = copy.copy(self)
        other.version, other._lattice = 2, format2.lattice_of(self.gammas, self.levels)
        return other

    @property
    def steps(self) -> int:
        """Number of steps T of the chain."""
        return len(self.gammas) - 1

    def rounding(self, decisions: list[int] | None = None) -> Rounding:
        """Return a `Rounding` for a group of batches: to decide anew, or to follow decisions."""
        return Rounding(decisions, portable=self.portable)

    def push(self, stack: Stack, x: np.ndarray, rounding: Rounding, batch: int = 0) -> Lengths:
        """Push examples, int64 of shape (n, *shape), and return what they take.

        batch: its number, below 2^20, for the rounding. Raises ExhaustedError, and leaves the stack
        undefined, where it holds too few bits.
        """
        assert self.version == VERSION, "format 2 is only read"
        lattice, encoded = self._lattice, self._encoded(x)
        mean = self._exact(lattice.signal * encoded)
        z_s = stack.draw(mean, lattice.drawn_std[0])
        drawn = _log_density(z_s, mean, lattice.drawn_std[0])
        position = self._position(z_s)
        push_levels(stack, x, position, lattice.spacing, self.levels)
        bound = -self._log_levels(x, position)
        drawn += bound
        for step in range(1, self.steps + 1):
            mean = self._exact(lattice.forward[step] * z_s)
            z_t = stack.draw(mean, lattice.drawn_std[step])
            reverse = self._reverse(z_t, step)
            stack.push(z_s, *self._rounded(reverse, rounding, batch, step))
            drawn += _log_density(z_t, mean, lattice.drawn_std[step]) - _log_density(z_s, *reverse)
            bound += self._divergence(reverse, z_t, encoded, step)
            z_s = z_t
        stack.push(z_s, np.zeros(x.shape), np.full(x.shape, lattice.prior_std))
        drawn -= _log_density(z_s, 0.0, lattice.prior_std)
        alpha, sigma = (float(f(self._gamma[-1])) for f in (process.alpha, process.sigma))
        prior = 0.5 * (sigma**2 + alpha**2 * encoded**2 - 1) - math.log(sigma)
        return Lengths(bound + prior, drawn)

    def pop(self, stack: Stack, n: int, rounding: Rounding, batch: int = 0) -> np.ndarray:
        """Return the n examples that `push` put on the stack last: int64, shape (n, *shape)."""
        lattice, shape = self._lattice, (n, *self.shape)
        z_t = stack.pop(np.zeros(shape), np.full(shape, lattice.prior_std))
        for step in range(self.steps, 0, -1):
            reverse = self._reverse(z_t, step)
            z_s = stack.pop(*self._rounded(reverse, rounding, batch, step))
            stack.undraw(z_t, self._exact(lattice.forward[step] * z_s), lattice.drawn_std[step])
            z_t = z_s
        pop = pop_levels if self.version == VERSION else format2.pop_levels
        x = pop(stack, self._position(z_t), lattice.spacing, self.levels)
        mean = self._exact(lattice.signal * self._encoded(x))
        stack.undraw(z_t, mean, lattice.drawn_std[0])
        return x

    def dip(self) -> float:
        """Return the bits per dimension by which pushing examples lowers the stack on its way."""
        drawn = np.log2(self._lattice.drawn_std * math.sqrt(2 * math.pi * math.e))
        least = np.log2(self._lattice.coded_std[:-2] * math.sqrt(2 * math.pi * math.e))
        lowest = np.cumsum(drawn) - np.concatenate([[0.0, 0.0], np.cumsum(least)])
        return float(lowest.max())

    def _encoded(self, x: np.ndarray) -> np.ndarray:
        return (2 * x + 1) / self.levels - 1

    def _exact(self, values: np.ndarray) -> np.ndarray:
        return on_grid(values) if self.version == VERSION else values

    def _position(self, z_0: np.ndarray) -> np.ndarray:
        return self._exact(self._lattice.to_levels * z_0 + 0.5 * (self.levels - 1))

    def _log_levels(self, x: np.ndarray, position: np.ndarray) -> np.ndarray:
        spacing, nearest = self._lattice.spacing, nearest_of(position, self.levels)
        offset, spacings = x - nearest, torch.full(x.shape, spacing, dtype=torch.float64)
        total = log_lattice_sum(torch.from_numpy(position), spacings, self.levels).numpy()
        return spacing**2 * (offset * (position - nearest) - 0.5 * offset**2) - total

    @torch.no_grad()
    def _reverse(self, z_t: np.ndarray, step: int) -> Reverse:
        """Return p(z_s|z_t) for a step of the grid, 1 … T."""
        gamma = self._gamma.to(self._device, self._dtype)
        z = torch.from_numpy(z_t * self._lattice.width[step]).to(self._device, self._dtype)
        parts = []
        for part in z.split(self.together):
            gamma_t, gamma_s = (gamma[i].expand(len(part)) for i in (step, step - 1))
            normal = self._vdm.reverse(part, gamma_t, gamma_s)
            parts.append((normal.mean, normal.std.expand_as(normal.mean)))
        mean, std = (
            torch.cat(values).double().cpu().numpy() for values in zip(*parts, strict=True)
        )
        if not (np.isfinite(mean).all() and np.isfinite(std).all()):
            raise InputError(
                f"the model's outputs at step {step} of {self.steps} are not finite; take other "
                "--weights, or another run"
            )
        width = self._lattice.width[step - 1]
        return Reverse(mean / width, std / width)

    def _rounded(
        self, reverse: Reverse, rounding: Rounding, batch: int, step: int
    ) -> tuple[np.ndarray, np.ndarray]:
        call = 2 * (batch * self.steps + step - 1)
        mean = np.clip(reverse.mean, -_LARGEST_MEAN, _LARGEST_MEAN)
        std = np.clip(reverse.std, _LEAST_STD, _LARGEST_STD)
        # a mean is the difference of numbers in (−1, 1), or larger, also where it is near zero
        mean = rounding(FINEST * mean, call, FINEST / self._lattice.width[step - 1]) / FINEST
        index = rounding(PER_OCTAVE * np.log2(std / _LEAST_STD), call + 1, STD_SIZE)
        return mean, _STDS[index.clip(0, len(_STDS) - 1)]

    def _divergence(
        self, reverse: Reverse, z_t: np.ndarray, encoded: np.ndarray, step: int
    ) -> np.ndarray:
        """Return KL(q(z_s|z_t, x) ‖ p(z_s|z_t)) of every entry, in nats."""
        z, x = torch.from_numpy(z_t * self._lattice.width[step]), torch.from_numpy(encoded)
        q = process.q_s_given_t(z, x, self._gamma[step - 1], self._gamma[step])
        width = self._lattice.width[step - 1]
        mean, std = q.mean.numpy() / width, q.std.numpy() / width
        ratio = std / reverse.std
        return 0.5 * (ratio**2 + ((mean - reverse.mean) / reverse.std) ** 2 - 1) - np.log(ratio)


def _log_density(
    values: np.ndarray, mean: np.ndarray | float, std: np.ndarray | float
) -> np.ndarray:
    """Return log N(values; mean, std²) of every entry, in nats."""
    return -0.5 * ((values - mean) / std) ** 2 - np.log(std) - 0.5 * math.log(2 * math.pi)
