"""What anomaly scores are made of: the bound of every example, band by band of γ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from variational_diffusion import objective, process
from variational_diffusion.compression.baselines import code_length
from variational_diffusion.conditions import Batch
from variational_diffusion.data import Split
from variational_diffusion.data.loader import ordered_batches
from variational_diffusion.decoders import Discretized
from variational_diffusion.errors import InputError
from variational_diffusion.model import VDM
from variational_diffusion.modes import in_evaluation_mode
from variational_diffusion.numerics import bits_per_dim

BANDS = 16
_FLOOR_OF_SPREAD = 1e-3  # of encoded data, which are of the order of one
_BATCH = 200


@dataclass(frozen=True)
class Profiles:
    """The bound of examples, term by term and band by band of γ, in bits per dimension.

    prior, reconstruction: shape (n,). bands: shape (n, bands), the diffusion term in equal bands
    from γ_0 to γ_1; their sum is the term. classical: bits per dimension of a classical coder,
    shape (n,), NaN for real-valued data. statistics: shape (n, k), see `statistics`.
    """

    prior: np.ndarray
    reconstruction: np.ndarray
    bands: np.ndarray
    classical: np.ndarray
    statistics: np.ndarray

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
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def rows(self, rows: np.ndarray) -> Profiles:
        """Return the profiles of some of the examples."""
        return Profiles(*(getattr(self, field.name)[rows] for field in fields(self)))


@in_evaluation_mode
def profiles(
    vdm: VDM,
    batches: Iterable[Batch],
    *,
    bands: int = BANDS,
    draws: int = 2,
    generator: torch.Generator | None = None,
) -> Iterator[Profiles]:
    """Yield the profiles of every batch, from `draws` evaluations of the network a band.

    γ and the noise are the same for all examples, so that examples differ by what they are and not
    by their draws. Profiles that are to be compared need generators with the same seed. γ is at
    the middles of `draws` equal parts of a band: the midpoint rule.
    """
    if bands < 1 or draws < 1:
        raise InputError(f"bands = {bands}, draws = {draws}: give one or more of both")
    gamma_0, gamma_1 = vdm.schedule.end_points.detach()
    width = (gamma_1 - gamma_0) / bands
    levels = vdm.decoder.levels if isinstance(vdm.decoder, Discretized) else None
    noises = torch.randn(
        (draws, bands + 1, *vdm.shape),
        generator=generator,
        dtype=gamma_0.dtype,
        device=gamma_0.device,
    )
    for batch in batches:
        model, x = vdm.given_in(batch)

        def predict_noise(z: Tensor, gamma: Tensor, model: VDM = model) -> Tensor:
            return model.denoise(z, gamma).noise

        with torch.inference_mode():
            encoded = vdm.encode(x)
            reconstruction = torch.zeros(len(x), dtype=encoded.dtype, device=x.device)
            losses = torch.zeros(len(x), bands, dtype=encoded.dtype, device=x.device)
            for draw, (noise_0, *noise) in enumerate(noises):
                for band in range(bands):
                    gamma = gamma_0 + (band + (draw + 0.5) / draws) * width
                    error = objective.noise_error(
                        predict_noise,
                        encoded,
                        gamma.expand(len(x)),
                        noise[band].expand_as(encoded),
                    )
                    losses[:, band] += width * error / draws
                q_0 = process.q_t(encoded, gamma_0)
                z_0 = q_0.mean + q_0.std * noise_0
                reconstruction -= vdm.decoder.log_prob(x, z_0, gamma_0) / draws
            prior = objective.prior(encoded, gamma_1)
        bits = [
            bits_per_dim(nats.double(), vdm.dimensions).cpu().numpy()
            for nats in (prior, reconstruction, losses)
        ]
        yield Profiles(
            prior=bits[0],
            reconstruction=bits[1],
            bands=bits[2],
            classical=_classical(x.cpu().numpy(), levels),
            statistics=statistics(encoded.cpu().double()).numpy(),
        )


def measured(vdm: VDM, split: Split, *, draws: int = 2, seed: int = 0) -> Iterator[Profiles]:
    """Yield the profiles of a split, batch by batch; only those of equal seeds can be compared."""
    generator = torch.Generator(vdm.schedule.gamma_0.device).manual_seed(seed)
    batches = ordered_batches(split, _BATCH)
    yield from profiles(vdm, batches, draws=draws, generator=generator)


def statistics(x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n k"]:
    """Return numbers that say how complex encoded examples are: more complex ones cost more.

    They are the mean, the logarithm of the standard deviation, the share of the entries that equal
    the smallest one (background), and along every axis that is longer than one, the logarithm of
    the mean absolute difference between neighbours.
    """
    flat = x.flatten(1)
    spreads = [flat.std(1, correction=0)]
    for axis in range(1, x.ndim):
        if x.shape[axis] > 1:
            spreads.append(x.diff(dim=axis).abs().flatten(1).mean(1))
    logs = [torch.log(spread + _FLOOR_OF_SPREAD) for spread in spreads]
    background = (flat == flat.amin(1, keepdim=True)).double().mean(1)
    return torch.stack([flat.mean(1), background, *logs], dim=1)


def _classical(images: np.ndarray, levels: int | None) -> np.ndarray:
    if levels is None:
        return np.full(len(images), np.nan)
    return np.array([code_length(image, levels) for image in images])
