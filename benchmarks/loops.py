"""The loops that `step.py` compares: as published, of peers, and of this package.

A loop is a function that sets up a network and returns its training, sampling and evaluation step.
`LOOPS` names them by network. Peers are imported by the loops that need them.
"""

from __future__ import annotations

import copy
import importlib
import math
import sys
import types
from collections.abc import Callable
from itertools import repeat

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from variational_diffusion.config import TrainingConfig
from variational_diffusion.decoders import Discretized
from variational_diffusion.machine.memory import keep_freed_memory
from variational_diffusion.model import VDM
from variational_diffusion.networks import PaperUNet
from variational_diffusion.schedules import FixedLinear
from variational_diffusion.training import TrainingState, fit

ENDS = -13.3, 5.0
LEVELS = 256
Steps = dict[str, Callable[[], object]]
"""By name: one training step, one sampling step of half a batch, one evaluation of a batch."""


def ours(network: nn.Module, shape: tuple[int, ...], batch: int) -> Steps:
    """Return the steps of this package around any network, by AdamW as everybody's."""
    keep_freed_memory()
    vdm = VDM(network, FixedLinear(*ENDS), Discretized(LEVELS), shape, "noise")
    config = TrainingConfig(steps=10**9, optimizer="adamw", learning_rate=2e-4, posthoc_ema=False)
    x = images(batch, shape)
    training = fit(TrainingState.start(vdm, config), repeat(x), config)
    z, gamma_t, gamma_s = torch.randn(batch // 2, *shape), torch.tensor(0.0), torch.tensor(-0.02)

    @torch.inference_mode()
    def sample() -> Tensor:
        vdm.eval()
        return vdm.reverse(z, gamma_t, gamma_s).sample()

    @torch.inference_mode()
    def evaluate() -> Tensor:
        vdm.eval()
        return vdm.vlb(x).total

    return {"training": lambda: next(training), "sampling": sample, "evaluation": evaluate}


def images(batch: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randint(0, LEVELS, (batch, *shape), generator=torch.Generator().manual_seed(0))


def optimized(
    model: nn.Module, loss: Callable[[], Tensor], update: Callable[[], object], clip: bool
) -> Callable[[], None]:
    """Return the training step that examples and trainers write: AdamW, clipping, an average."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)

    def train() -> None:
        model.train()
        value = loss()
        value.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        update()
        value.item()  # every loop shows its loss

    return train


# The paper's network

PAPER_SHAPE, PAPER_BATCH = (1, 32, 32), 32


def paper_network(dropout: float) -> PaperUNet:
    return PaperUNet(PAPER_SHAPE, width=32, blocks=4, groups=8, dropout=dropout)


class WrittenOutAttention(nn.Module):
    """The attention block's sums with the matrix of all pairs of pixels."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.block.query_key_value(self.block.norm(x)).flatten(2).chunk(3, dim=1)
        weights = (q.mT @ k / math.sqrt(q.shape[1])).softmax(dim=-1)
        return x + self.block.project((v @ weights.mT).view_as(x))


def paper_plain() -> Steps:
    network = paper_network(dropout=0.1)
    network.middle_attention = WrittenOutAttention(network.middle_attention)
    average = copy.deepcopy(network)
    x = images(PAPER_BATCH, PAPER_SHAPE)
    values = 2 * (torch.arange(LEVELS) + 0.5) / LEVELS - 1
    low, high = ENDS

    def bound() -> Tensor:
        encoded = 2 * (x + 0.5) / LEVELS - 1
        t = (torch.rand(1) + torch.arange(len(x)) / len(x)) % 1
        with torch.enable_grad():
            gamma = low + (high - low) * t.requires_grad_()
            (rate,) = torch.autograd.grad(gamma.sum(), t)
        spread = gamma.detach().view(-1, 1, 1, 1)
        noise = torch.randn_like(encoded)
        z = (-spread).sigmoid().sqrt() * encoded + spread.sigmoid().sqrt() * noise
        error = (network(z, gamma.detach()) - noise).square().flatten(1).sum(1)
        ends = torch.tensor(ENDS)
        alpha, sigma = (-ends).sigmoid().sqrt(), ends.sigmoid().sqrt()
        z_0 = encoded + sigma[0] / alpha[0] * torch.randn_like(encoded)
        logits = -0.5 * math.exp(-low) * (z_0.unsqueeze(-1) - values).square()
        decoder = cross_entropy(logits.flatten(0, -2), x.flatten(), reduction="sum") / len(x)
        variance = sigma[1].square()
        prior = 0.5 * (variance + (alpha[1] * encoded).square() - variance.log() - 1).sum() / len(x)
        return (0.5 * rate * error).mean() + decoder + prior

    def update() -> None:
        with torch.no_grad():
            for ours_, theirs in zip(average.parameters(), network.parameters(), strict=True):
                ours_.lerp_(theirs, 1e-4)

    z = torch.randn(PAPER_BATCH // 2, *PAPER_SHAPE)

    @torch.no_grad()
    def sample() -> Tensor:
        network.eval()
        gamma_t, gamma_s = torch.tensor(0.0), torch.tensor(-0.02)
        c = -torch.expm1(gamma_s - gamma_t)
        alpha_t, alpha_s = (-gamma_t).sigmoid().sqrt(), (-gamma_s).sigmoid().sqrt()
        sigma_t, sigma_s = gamma_t.sigmoid().sqrt(), gamma_s.sigmoid().sqrt()
        predicted = network(z, gamma_t.expand(len(z)))
        mean = alpha_s / alpha_t * (z - c * sigma_t * predicted)
        return mean + sigma_s * c.sqrt() * torch.randn_like(z)

    return {
        "training": optimized(network, bound, update, clip=False),
        "sampling": sample,
        "evaluation": without_gradient(network, bound),
    }


def paper_ours(
    dropout: float = 0.1, *, compiled: bool = False, channels_last: bool = False
) -> Steps:
    network = paper_network(dropout)
    if channels_last:
        network.to(memory_format=torch.channels_last)
    if compiled:
        network.compile(dynamic=False)
    return ours(network, PAPER_SHAPE, PAPER_BATCH)


# Networks of others

SHAPE, BATCH = (1, 28, 28), 32


class Adapted(nn.Module):
    """A network of theirs as network(z, gamma, conditioning), with γ as their time."""

    def __init__(self, network: nn.Module, times: float, attribute: str | None = None) -> None:
        super().__init__()
        self.network, self.times, self.attribute = network, times, attribute

    def forward(self, z: Tensor, gamma: Tensor, conditioning: Tensor | None = None) -> Tensor:
        result = self.network(z, self.times * (gamma - ENDS[0]) / (ENDS[1] - ENDS[0]))
        return result if self.attribute is None else getattr(result, self.attribute)


def diffusers_network() -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=SHAPE[1],
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )


def diffusers_theirs() -> Steps:
    """The loop of the example for unconditional image generation."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    network = diffusers_network()
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    average = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True)
    x = images(BATCH, SHAPE).float() / 127.5 - 1

    def loss() -> Tensor:
        noise = torch.randn_like(x)
        t = torch.randint(0, 1000, (len(x),))
        predicted = network(scheduler.add_noise(x, noise, t), t).sample
        return mse_loss(predicted.float(), noise.float())

    z = torch.randn(BATCH // 2, *SHAPE)

    @torch.no_grad()
    def sample() -> Tensor:
        network.eval()
        return scheduler.step(network(z, 500).sample, 500, z).prev_sample

    return {
        "training": optimized(network, loss, lambda: average.step(network.parameters()), clip=True),
        "sampling": sample,
        "evaluation": without_gradient(network, loss),
    }


def lucid_package() -> types.ModuleType:
    """Import denoising-diffusion-pytorch, with nothing where it reads and writes image files."""
    for name in ("torchvision", "pytorch_fid", "pytorch_fid.fid_score", "pytorch_fid.inception"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["torchvision"].transforms = sys.modules["torchvision"].utils = None
    sys.modules["pytorch_fid.fid_score"].calculate_frechet_distance = None
    sys.modules["pytorch_fid.inception"].InceptionV3 = None
    return importlib.import_module("denoising_diffusion_pytorch")


def lucid_network() -> nn.Module:
    return lucid_package().Unet(dim=32, dim_mults=(1, 2), channels=1, flash_attn=True)


def lucid_theirs() -> Steps:
    from ema_pytorch import EMA

    network = lucid_network()
    diffusion = lucid_package().GaussianDiffusion(network, image_size=SHAPE[1], timesteps=1000)
    average = EMA(diffusion, beta=0.995, update_every=10)
    x = images(BATCH, SHAPE).float() / 255
    z = torch.randn(BATCH // 2, *SHAPE)

    def sample() -> object:
        diffusion.eval()
        return diffusion.p_sample(z, 500)

    return {
        "training": optimized(diffusion, lambda: diffusion(x), average.update, clip=True),
        "sampling": sample,
        "evaluation": without_gradient(diffusion, lambda: diffusion(x)),
    }


class AzulaNetwork(nn.Module):
    """azula's U-Net with the embedding of log SNR that its tutorials put before it."""

    def __init__(self) -> None:
        super().__init__()
        from azula.nn.layers import SineEncoding
        from azula.nn.unet import UNet

        self.encode = nn.Sequential(SineEncoding(64), nn.Linear(64, 64))
        self.network = UNet(1, 1, hid_channels=(32, 64), hid_blocks=(2, 2), mod_features=64)

    def forward(self, z: Tensor, time_: Tensor, **_: object) -> Tensor:
        return self.network(z, self.encode(time_.reshape(-1)).expand(len(z), -1))


def azula_theirs() -> Steps:
    from azula.denoise import KarrasDenoiser
    from azula.noise import VPSchedule
    from azula.sample import DDPMSampler

    denoiser = KarrasDenoiser(AzulaNetwork(), VPSchedule())
    sampler = DDPMSampler(denoiser, steps=1000, silent=True)
    average = torch.optim.swa_utils.AveragedModel(
        denoiser, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9999)
    )
    x = images(BATCH, SHAPE).float() / 127.5 - 1
    z = torch.randn(BATCH // 2, *SHAPE)
    t, s = torch.tensor(0.5), torch.tensor(0.499)

    def loss() -> Tensor:
        return denoiser.loss(x, t=torch.rand(len(x)))

    @torch.no_grad()
    def sample() -> Tensor:
        denoiser.eval()
        return sampler.step(z, t, s)

    return {
        "training": optimized(
            denoiser, loss, lambda: average.update_parameters(denoiser), clip=True
        ),
        "sampling": sample,
        "evaluation": without_gradient(denoiser, loss),
    }


def without_gradient(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    @torch.no_grad()
    def evaluate() -> Tensor:
        model.eval()
        return loss()

    return evaluate


LOOPS: dict[str, dict[str, Callable[[], Steps]]] = {
    "paper": {
        "as published": paper_plain,
        "ours": paper_ours,
        "ours, no dropout": lambda: paper_ours(dropout=0.0),
        "ours, channels last": lambda: paper_ours(channels_last=True),
        "ours, compiled": lambda: paper_ours(compiled=True),
        "ours, both": lambda: paper_ours(compiled=True, channels_last=True),
    },
    "diffusers": {
        "theirs": diffusers_theirs,
        "ours": lambda: ours(Adapted(diffusers_network(), 1000.0, "sample"), SHAPE, BATCH),
    },
    "lucidrains": {
        "theirs": lucid_theirs,
        "ours": lambda: ours(Adapted(lucid_network(), 1000.0), SHAPE, BATCH),
    },
    "azula": {
        "theirs": azula_theirs,
        "ours": lambda: ours(Adapted(AzulaNetwork(), 1.0), SHAPE, BATCH),
    },
}
"""By network, the loops around it; the first is what the others are compared with."""
