"""Models and examples for the tests of lossless compression."""

import io

import numpy as np
import torch
from torch import nn

from variational_diffusion import process
from variational_diffusion.compression import (
    ChainCoder,
    Container,
    Header,
    ImageCoding,
    Writer,
    decode,
    encode,
)
from variational_diffusion.compression.chain import GAMMA_UNIT
from variational_diffusion.compression.stack import Stack
from variational_diffusion.decoders import Discretized
from variational_diffusion.grids import NoiseErrors
from variational_diffusion.model import VDM
from variational_diffusion.networks import UNet
from variational_diffusion.schedules import FixedLinear

SHAPE = (1, 6, 5)


def model(levels=256, shape=SHAPE, seed=0, steps=12):
    """A network of random weights, wrong by what its reverse variance assumes, and a chain."""
    low = np.rint((-13.3 + 2 * np.log(256 / levels)) / GAMMA_UNIT) * GAMMA_UNIT
    ends = {"gamma_min": float(low), "gamma_max": 5.0}
    torch.manual_seed(seed)
    network = UNet(shape, **ends, levels=levels, widths=[8], blocks=1, attention=False)
    vdm = VDM(network, FixedLinear(**ends), Discretized(levels), shape).eval()
    gamma = torch.linspace(ends["gamma_min"], ends["gamma_max"], 20)
    vdm = vdm.widened(NoiseErrors(gamma, torch.full((20, *(1 for _ in shape)), 0.7)))
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
    return ChainCoder(vdm.widened(NoiseErrors(gamma, error)), np.linspace(high, low, steps + 1))


def header_of(coder, **changes):
    return Header(
        model=coder.model,
        weights="ema",
        variance="position",
        shape=list(coder.shape),
        levels=coder.levels,
        precision="portable",
        gammas=Header.of_chain(coder.gammas),
    ).model_copy(update=changes)


def group_of(coder, x, names=None):
    coding = ImageCoding(coder, x, names)
    for _ in coding.run():
        pass
    return coding.done()


def file_of(coder, groups, header=None, identity=None):
    """Return the bytes of a file of groups (images, table, payload)."""
    file = io.BytesIO()
    with Writer(file, header or header_of(coder), identity=identity) as writer:
        for n, table, payload in groups:
            writer.add(n, table, payload)
    return file.getvalue()


def file_of_images(coder, *parts, **options):
    """Return the bytes of a file with a group of each part."""
    groups = [(len(part), group_of(coder, list(part))) for part in parts]
    return file_of(coder, [(n, g.table, g.payload) for n, g in groups], **options)


def opened(data):
    """Return what is in the bytes of a file."""
    return Container(io.BytesIO(data), "a.vdmz")


def read(data, coder):
    """Return what is in the bytes of a file, and its images by number."""
    container = opened(data)
    return container, {image.number: image.values for image in container.decoded(coder)}
