"""Models and examples for the tests of lossless compression."""

import numpy as np
import torch
from torch import nn

from variational_diffusion import process
from variational_diffusion.compression import ChainCoder, decode, encode
from variational_diffusion.compression.stack import Stack
from variational_diffusion.decoders import Discretized
from variational_diffusion.grids import NoiseErrors
from variational_diffusion.model import VDM
from variational_diffusion.networks import UNet
from variational_diffusion.schedules import FixedLinear

SHAPE = (1, 6, 5)


def model(levels=256, shape=SHAPE, seed=0, steps=12):
    """A network of random weights, wrong by what its reverse variance assumes, and a chain."""
    shift = 2 * np.log(256 / levels)
    ends = {"gamma_min": -13.3 + shift, "gamma_max": 5.0}
    torch.manual_seed(seed)
    network = UNet(shape, **ends, levels=levels, widths=[8], blocks=1, attention=False)
    vdm = VDM(network, FixedLinear(**ends), Discretized(levels), shape).eval()
    gamma = torch.linspace(ends["gamma_min"], ends["gamma_max"], 20)
    vdm.reverse_errors = NoiseErrors(gamma, torch.full((20, *(1 for _ in shape)), 0.7))
    return vdm, np.linspace(ends["gamma_max"], ends["gamma_min"], steps + 1)


def images(n, levels=256, shape=SHAPE, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, levels, (n, *shape))


def coded(coder, x):
    *_, done = encode(coder, x)
    return done


def decoded(coder, payload, n):
    x = np.full((n, *coder.shape), -1)
    for place, part in decode(coder, payload, n):
        x[place] = part
    return x


def random_stack(words=4000, seed=0):
    rng = np.random.default_rng(seed)
    return Stack(rng.integers(0, 2**32, words, dtype=np.uint32), sealed=True)


SPREAD = 0.03
"""Standard deviation of what `Remembering` knows, of values in (−1, 1)."""


class Remembering(nn.Module):
    """The best denoiser of x ~ N(mean, SPREAD²), with means made of integers: quick."""

    def __init__(self, shape):
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(means(shape)).float())

    def forward(self, z, gamma, conditioning=None):
        gamma = gamma[(...,) + (None,) * (z.ndim - 1)]
        alpha, sigma = process.alpha(gamma), process.sigma(gamma)
        return sigma * (z - alpha * self.mean) / (alpha**2 * SPREAD**2 + sigma**2)


def means(shape):
    """Return a mean in (−0.7, 0.7) for each position, far from its neighbours' means."""
    return ((np.arange(np.prod(shape)) * 37 + 11) % 101 - 50).reshape(shape) / 72


def known(n, shape, levels=256, seed=0):
    """Return examples of what `Remembering` knows, which classical coders find no pattern in."""
    values = np.random.default_rng(seed).normal(means(shape), SPREAD, (n, *shape))
    levels_of = np.floor((values + 1) * levels / 2).clip(0, levels - 1)
    return levels_of.astype(np.uint8 if levels <= 256 else np.uint16)


def quick_coder(levels=256, shape=(1, 12, 12), steps=6):
    """A coder whose network costs next to nothing."""
    low, high = -13.3 + 2 * np.log(256 / levels), 5.0
    schedule, decoder = FixedLinear(low, high), Discretized(levels)
    vdm = VDM(Remembering(shape), schedule, decoder, shape, prediction="noise").eval()
    gamma = torch.linspace(low, high, 50)
    share = SPREAD**2 * torch.exp(-gamma)
    error = (share / (1 + share)).reshape(-1, *(1 for _ in shape))
    vdm.reverse_errors = NoiseErrors(gamma, error)
    return ChainCoder(vdm, np.linspace(high, low, steps + 1))
