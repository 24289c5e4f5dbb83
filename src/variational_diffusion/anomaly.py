"""Anomaly scores: which examples do not belong to the data that a model was trained on.

The raw likelihood ranks simple foreign data (blurred, constant, smooth images) as more likely than
the model's own (Nalisnick et al., "Do Deep Generative Models Know What They Don't Know?", 2019): it
measures how complex an image is more than how strange. The scores here are made from the same few
evaluations of the network, and are larger for what is stranger:

    bits         the bound itself, in bits per dimension
    typicality   how far the bound is from the mean of the model's own data, on either side
                 (Nalisnick et al., "Detecting Out-of-Distribution Inputs to Deep Generative Models
                 Using Typicality", 2019)
    complexity   the bound less the length of a classical coder's file (Serrà et al., "Input
                 Complexity and Out-of-distribution Detection with Likelihood-based Generative
                 Models", 2020)
    profile      the Mahalanobis distance, from the model's own data, of the logarithm of the loss
                 in bands of γ: coarse shape, texture and last bits are judged one by one
    combined     how much more the parts cost than for the model's own data of the same classical
                 length: the loss in quarters of the range of γ, and the quarter that holds the
                 shape given the texture below it; squares of what is above, added up (real-valued
                 data have no classical length; there, of the distances either way)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor

from variational_diffusion import objective, process
from variational_diffusion.classical import code_length
from variational_diffusion.decoders import Discretized
from variational_diffusion.errors import InputError
from variational_diffusion.model import VDM
from variational_diffusion.numerics import bits_per_dim, randn_like

BANDS = 16
_FLOOR = 1e-7  # of a band's bits, for its logarithm


@dataclass(frozen=True)
class Profiles:
    """The bound of examples, term by term and band by band of γ, in bits per dimension.

    prior, reconstruction: shape (n,). bands: shape (n, bands), the diffusion term in equal bands
    from γ_0 to γ_1; their sum is the term. classical: bits per dimension of a classical coder,
    shape (n,), NaN for real-valued data.
    """

    prior: np.ndarray
    reconstruction: np.ndarray
    bands: np.ndarray
    classical: np.ndarray

    def __len__(self) -> int:
        return len(self.prior)

    @property
    def bits(self) -> np.ndarray:
        """The bound, shape (n,)."""
        return np.asarray(self.prior + self.reconstruction + self.bands.sum(1))

    @classmethod
    def joined(cls, parts: Iterable[Profiles]) -> Profiles:
        """Return the profiles of several batches as one."""
        parts = list(parts)
        if not parts:
            raise InputError("no examples: choose a split or a limit with one example or more")
        names = ("prior", "reconstruction", "bands", "classical")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def profiles(
    vdm: VDM,
    batches: Iterable[Tensor],
    *,
    bands: int = BANDS,
    draws: int = 2,
    generator: torch.Generator | None = None,
) -> Iterator[Profiles]:
    """Yield the profiles of every batch, from `draws` evaluations of the network a band.

    γ is spread evenly within a band over the draws and the examples of a batch.
    """
    if bands < 1 or draws < 1:
        raise InputError(f"bands = {bands}, draws = {draws}: give one or more of both")
    vdm.eval()
    gamma_0, gamma_1 = vdm.schedule.end_points.detach()
    width = (gamma_1 - gamma_0) / bands
    levels = vdm.decoder.levels if isinstance(vdm.decoder, Discretized) else None
    for batch in batches:
        x = batch.to(gamma_0.device)
        with torch.inference_mode():
            encoded = vdm.encode(x)
            reconstruction = torch.zeros(len(x), dtype=encoded.dtype, device=x.device)
            losses = torch.zeros(len(x), bands, dtype=encoded.dtype, device=x.device)
            for _ in range(draws):
                place = objective.low_discrepancy_times(len(x), generator, like=encoded)
                for band in range(bands):
                    error = objective.noise_error(
                        lambda z, gamma: vdm.denoise(z, gamma).noise,
                        encoded,
                        gamma_0 + (band + place) * width,
                        randn_like(encoded, generator),
                    )
                    losses[:, band] += width * error / draws
                z_0 = process.q_t(encoded, gamma_0).sample(generator)
                reconstruction -= vdm.decoder.log_prob(x, z_0, gamma_0) / draws
            prior = objective.prior(encoded, gamma_1)
        bits = [
            bits_per_dim(nats.double(), vdm.dimensions).cpu().numpy()
            for nats in (prior, reconstruction, losses)
        ]
        yield Profiles(bits[0], bits[1], bits[2], _classical(batch.numpy(), levels))


@dataclass(frozen=True)
class Reference:
    """What the model's own data look like: what scores compare with.

    own: profiles of examples that the model was not trained on, a few hundred or more.
    """

    own: Profiles

    def __post_init__(self) -> None:
        least = 2 * (self.own.bands.shape[1] + 3)
        if len(self.own) < least:
            raise InputError(
                f"reference = {len(self.own)} examples: to compare "
                f"{self.own.bands.shape[1]} bands takes {least} or more"
            )

    def score(self, of: Profiles, name: str = "combined") -> np.ndarray:
        """Return a score of `SCORES` for every example, shape (n,); larger is stranger."""
        if name not in SCORES:
            raise InputError(f"score = {name!r}: known are {', '.join(SCORES)}")
        return SCORES[name](self.own, of)


def _raw(own: Profiles, of: Profiles) -> np.ndarray:
    return of.bits


def _typicality(own: Profiles, of: Profiles) -> np.ndarray:
    return np.abs(of.bits - own.bits.mean())


def _complexity(own: Profiles, of: Profiles) -> np.ndarray:
    if np.isnan(of.classical).any():
        raise InputError("score = 'complexity': real-valued data have no classical code length")
    return of.bits - of.classical


def _profile(own: Profiles, of: Profiles) -> np.ndarray:
    return _distance(_log_bands(own), _log_bands(of))


def _combined(own: Profiles, of: Profiles) -> np.ndarray:
    quarters = _excess(_complexity_of(own), _quarters(own), _complexity_of(of), _quarters(of))
    shape = _excess(_texture(own), _shape(own), _texture(of), _shape(of))
    return np.square(np.concatenate([quarters, shape], axis=1)).sum(1)


SCORES: dict[str, Callable[[Profiles, Profiles], np.ndarray]] = {
    "bits": _raw,
    "typicality": _typicality,
    "complexity": _complexity,
    "profile": _profile,
    "combined": _combined,
}
"""(the model's own, the examples in question) → scores."""


def _log_bands(of: Profiles) -> np.ndarray:
    return np.log(of.bands + _FLOOR)


def _quarters(of: Profiles) -> np.ndarray:
    """Return the logarithm of the loss in quarters of the range of γ, shape (n, 4)."""
    parts = np.array_split(of.bands, 4, axis=1)
    return np.log(np.stack([part.sum(1) for part in parts], axis=1) + _FLOOR)


def _shape(of: Profiles) -> np.ndarray:
    """Return the quarter in which coarse shapes are found: just above the middle, shape (n, 1)."""
    return _quarters(of)[:, 2:3]


def _texture(of: Profiles) -> np.ndarray:
    """Return what the image costs below it, and its complexity."""
    lower = np.array_split(of.bands[:, : of.bands.shape[1] // 2], 4, axis=1)
    logs = np.log(np.stack([part.sum(1) for part in lower], axis=1) + _FLOOR)
    return np.concatenate([logs, _complexity_of(of)], axis=1)


def _complexity_of(of: Profiles) -> np.ndarray:
    """Return the logarithm of the classical length, shape (n, 1), or (n, 0) where there is none."""
    if np.isnan(of.classical).any():
        return np.empty((len(of), 0))
    return np.log(of.classical)[:, None]


def _excess(x_own: np.ndarray, y_own: np.ndarray, x_of: np.ndarray, y_of: np.ndarray) -> np.ndarray:
    """Return how far y lies above what x lets expect, in standard deviations.

    What is to be expected is a quadratic in every entry of x, fitted to the model's own data; an
    entry beyond all of theirs counts as the furthest of them. Zero where y lies below, unless
    there is no x: nothing says then that an example costs little because it is simple.
    """
    centre, scale = x_own.mean(0), x_own.std(0) + 1e-9
    low, high = x_own.min(0), x_own.max(0)

    def design(x: np.ndarray) -> np.ndarray:
        x = (x.clip(low, high) - centre) / scale
        return np.concatenate([np.ones((len(x), 1)), x, np.square(x)], axis=1)

    fitted, *_ = np.linalg.lstsq(design(x_own), y_own, rcond=None)
    spread = (y_own - design(x_own) @ fitted).std(0) + 1e-9
    above = (y_of - design(x_of) @ fitted) / spread
    return np.asarray(above.clip(0) if x_own.shape[1] else above)


def _distance(own: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Return Mahalanobis distances from the own data, by a shrunk covariance of their features."""
    scale = own.std(0) + 1e-9
    fitted = LedoitWolf().fit((own - own.mean(0)) / scale)
    squared = fitted.mahalanobis((of - own.mean(0)) / scale)
    return np.asarray(np.sqrt(squared))


def _classical(images: np.ndarray, levels: int | None) -> np.ndarray:
    if levels is None:
        return np.full(len(images), np.nan)
    return np.array([code_length(image, levels) for image in images])
