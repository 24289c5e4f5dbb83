"""Where the last step of a sampler may begin: samples of known patterns, by the exact denoiser.

    python benchmarks/patterns.py [--levels 17] … [--n 1000] [--steps 20]

The data are a few patterns of 8×8, all as likely, so x̂ has a closed form, a sample should be one of
the patterns to the last level, and nothing is a matter of training. *To the end* is the sampler of
the default on a grid that is even in γ down to γ_0; *by default* is what `sample` does. Real values
are a pattern where every entry is within five standard deviations of what z_0 and p(x|z_0) add.

    digits    200 handwritten digits             smooth   200 images of low frequencies
    dot       one of 64 pixels is on             noise    64 images of independent pixels
    finest    a dot of one level on gray: below the noise that an eye misses, it is lost
"""

from __future__ import annotations

import math
from collections.abc import Callable

import click
import numpy as np
import torch
from common import device_of, log_option, markdown, report, threads_option
from exact import Mixture, exact_model
from sklearn.datasets import load_digits
from torch import Tensor

from variational_diffusion.decoders import Discretized, Gaussian
from variational_diffusion.grids import Gammas, uniform_in_gamma
from variational_diffusion.model import VDM
from variational_diffusion.presets import noise_range
from variational_diffusion.sampling import DEFAULT_STEPS
from variational_diffusion.schedules import FixedLinear

LEVELS = (2, 3, 4, 8, 17, 32, 64, 86, 128, 256, 1024, 65_536)
REAL = "real"


def digits(rng: np.random.Generator) -> np.ndarray:
    return load_digits().images[:200] / 16


def dot(rng: np.random.Generator) -> np.ndarray:
    return np.eye(64).reshape(64, 8, 8)


def smooth(rng: np.random.Generator) -> np.ndarray:
    waves = np.cos(np.pi * np.outer(np.arange(3), (np.arange(8) + 0.5) / 8))
    size = 1 / (1 + np.add.outer(np.arange(3), np.arange(3)))
    images = np.einsum("nij,iy,jx->nyx", size * rng.standard_normal((200, 3, 3)), waves, waves)
    low, high = (of(axis=(1, 2), keepdims=True) for of in (images.min, images.max))
    return 0.1 + 0.8 * (images - low) / (high - low)


def noise(rng: np.random.Generator) -> np.ndarray:
    return rng.random((64, 8, 8))


PATTERNS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "digits": digits,
    "dot": dot,
    "smooth": smooth,
    "noise": noise,
}
"""Images of values in [0, 1]."""


def patterns(kind: str, levels: int | None) -> np.ndarray:
    """Return different patterns, shape (K, 8, 8), of integers, or of real values from −1 to 1."""
    if kind == "finest":
        assert levels is not None
        return levels // 2 - 1 + np.eye(64, dtype=int).reshape(64, 8, 8)
    images = PATTERNS[kind](np.random.default_rng(0))
    if levels is None:
        return 2 * images - 1
    return np.unique(np.rint((levels - 1) * images).astype(int), axis=0)


def known(images: np.ndarray, levels: int | None) -> VDM:
    """Return the model that is exact for patterns of one likelihood."""
    weights = np.full(len(images), 1 / len(images))
    if levels is not None:
        return exact_model(images, weights, levels)
    network = Mixture(torch.from_numpy(weights), torch.from_numpy(images))
    schedule = FixedLinear(*noise_range(None))
    return VDM(network, schedule, Gaussian(), images.shape[1:], "noise").double().eval()


def share(vdm: VDM, images: np.ndarray, gammas: Gammas, count: int, seed: int = 1) -> float:
    """Return the share of samples that are one of the patterns."""
    generator = torch.Generator().manual_seed(seed)
    x = vdm.sample(count, gammas=gammas, generator=generator).flatten(1).double()
    allowed = 0.5
    if not isinstance(vdm.decoder, Discretized):
        allowed = 5 * math.sqrt(2) * math.exp(0.5 * float(gammas[-1]))
    centres = torch.from_numpy(images).flatten(1).double()
    return float((_largest_difference(x, centres) < allowed).double().mean())


def _largest_difference(x: Tensor, centres: Tensor) -> Tensor:
    """Return for every example the largest difference of an entry from the nearest pattern."""
    nearest = torch.cdist(x, centres).argmin(1)
    return (x - centres[nearest]).abs().amax(1)


@click.command()
@click.option("--levels", "counts", multiple=True, default=[*map(str, LEVELS), REAL])
@click.option("--kind", "kinds", multiple=True, default=[*PATTERNS, "finest"])
@click.option("--n", "count", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--steps", type=click.IntRange(2), default=DEFAULT_STEPS, show_default=True)
@threads_option
@log_option
def main(
    counts: tuple[str, ...],
    kinds: tuple[str, ...],
    count: int,
    steps: int,
    threads: int,
    log: bool,
) -> None:
    """Compare the default grids with ones that go all the way, for every number of levels."""
    device_of(threads, "cpu")
    rows: list[list[object]] = []
    for kind in kinds:
        for text in counts:
            levels = None if text == REAL else int(text)
            if kind == "finest" and levels is None:
                continue
            for images in (patterns(kind, levels)[:, None], patterns(kind, levels).reshape(-1, 64)):
                vdm = known(images, levels)
                whole = uniform_in_gamma(vdm.schedule, steps)
                end = share(vdm, images, whole, count)
                default = share(vdm, images, vdm.sampling_grid(steps), count)
                what = "images" if images.ndim == 4 else "vectors"
                stop = vdm.stop_early(steps)
                begins = "all the way" if stop is None else f"γ = {stop:.2f}"
                ratio = default / end if end else math.nan
                rows.append(
                    [kind, text, what, begins, f"{end:.3f}", f"{default:.3f}", f"{ratio:.3f}"]
                )
                print(rows[-1], flush=True)
    header = ["patterns", "levels", "as", "last step from", "to the end", "by default", "ratio"]
    report(f"{count} samples, {steps} steps\n\n{markdown(header, rows)}", log=log)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
