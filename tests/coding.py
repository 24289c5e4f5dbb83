"""Models and examples for the tests of lossless compression."""

import numpy as np
import torch
from torch import nn

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


class Shrinking(nn.Module):
    """The best denoiser of N(0, 1) data, from one weight: quick, and the same on every machine."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, z, gamma, conditioning=None):
        share = torch.sigmoid(gamma)[(...,) + (None,) * (z.ndim - 1)].sqrt()
        return 2 * self.weight * share * z


def quick_coder(levels=17, shape=(1, 3, 4), steps=3):
    """A coder whose network costs next to nothing."""
    ends = {"gamma_min": -13.3 + 2 * np.log(256 / levels), "gamma_max": 5.0}
    vdm = VDM(Shrinking(), FixedLinear(**ends), Discretized(levels), shape, prediction="noise")
    gamma = torch.linspace(ends["gamma_min"], ends["gamma_max"], 20)
    vdm.eval().reverse_errors = NoiseErrors(gamma, torch.full((20, *(1 for _ in shape)), 0.3))
    return ChainCoder(vdm, np.linspace(ends["gamma_max"], ends["gamma_min"], steps + 1))
