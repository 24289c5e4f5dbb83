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
    combined     how strange the example's statistics are, and how much more every band costs than
                 the model's own data with the same statistics: the squared Mahalanobis distance of
                 the statistics, and the squares of what the logarithms of the bands have too much

The statistics say how complex an example is, whatever it shows: see `statistics`. Bounds differ
mostly by that; what is left when it is taken off is whether the model knows what it sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from torch import Tensor

from variational_diffusion import objective, process
from variational_diffusion.classical import code_length
from variational_diffusion.conditions import Batch
from variational_diffusion.decoders import Discretized
from variational_diffusion.errors import InputError
from variational_diffusion.model import VDM
from variational_diffusion.modes import in_evaluation_mode
from variational_diffusion.numerics import bits_per_dim

BANDS = 16
_FLOOR = 1e-7  # of a band's bits, for its logarithm
_FLOOR_OF_SPREAD = 1e-3  # of encoded data, which are of the order of one
_FOLDS = 5
_PENALTIES = np.logspace(-2, 4, 13)


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


@dataclass(frozen=True)
class Reference:
    """What the model's own data look like: what scores compare with.

    own: profiles of examples that the model was not trained on, a few hundred or more.
    """

    own: Profiles

    def score(self, of: Profiles, name: str = "combined") -> np.ndarray:
        """Return a score of `SCORES` for every example, shape (n,); larger is stranger."""
        check_reference(name, len(self.own), self.own.bands.shape[1])
        return SCORES[name](self.own, of)

    def own_score(self, name: str = "combined") -> np.ndarray:
        """Return the score of each of its own examples, by the others: what percentiles refer to.

        A fifth is left out at a time. Scored by themselves, they would look less strange than
        other examples of the same data.
        """
        check_reference(name, len(self.own), self.own.bands.shape[1])
        scores = np.empty(len(self.own))
        for left_out in np.array_split(np.random.default_rng(0).permutation(len(scores)), _FOLDS):
            others = np.setdiff1d(np.arange(len(scores)), left_out)
            scores[left_out] = SCORES[name](self.own.rows(others), self.own.rows(left_out))
        return scores


def check_reference(score: str, examples: int, bands: int = BANDS) -> None:
    """Raise InputError for an unknown score, and where it takes more examples to compare with."""
    if score not in SCORES:
        raise InputError(f"score = {score!r}: known are {', '.join(SCORES)}")
    least = 2 * (bands + 3) if score in _OF_BANDS else _FOLDS
    if examples < least:
        raise InputError(
            f"reference = {examples} validation examples: '{score}' takes {least} or more; type "
            "--score bits, or train with a larger share for --validation"
        )


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
    above = _excess(own.statistics, _log_bands(own), of.statistics, _log_bands(of))
    return _distance(own.statistics, of.statistics) ** 2 + np.square(above.clip(0)).sum(1)


SCORES: dict[str, Callable[[Profiles, Profiles], np.ndarray]] = {
    "bits": _raw,
    "typicality": _typicality,
    "complexity": _complexity,
    "profile": _profile,
    "combined": _combined,
}
"""(the model's own, the examples in question) → scores."""

_OF_BANDS = {"profile", "combined"}
"""Scores that compare every band with the own data's."""


def _log_bands(of: Profiles) -> np.ndarray:
    return np.log(of.bands + _FLOOR)


def _excess(x_own: np.ndarray, y_own: np.ndarray, x_of: np.ndarray, y_of: np.ndarray) -> np.ndarray:
    """Return how far y lies above what x lets expect, in standard deviations, by column.

    What is to be expected is a quadratic in x, fitted to the model's own data by ridge regression;
    an entry of x beyond all of theirs counts as the furthest of them. The standard deviations are
    those of the own data that a fit has not seen.
    """
    expected = make_pipeline(
        StandardScaler(),
        PolynomialFeatures(2, include_bias=False),
        StandardScaler(),
        RidgeCV(_PENALTIES),
    )
    unseen = cross_val_predict(expected, x_own, y_own, cv=_FOLDS)
    spread = (y_own - unseen).std(0) + 1e-9
    expected.fit(x_own, y_own)
    return np.asarray((y_of - expected.predict(x_of.clip(x_own.min(0), x_own.max(0)))) / spread)


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
