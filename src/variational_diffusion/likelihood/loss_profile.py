"""The loss profile m(γ) of a trained model, and the variance that it means for a schedule.

The diffusion loss is L = m(γ) γ'(t) with m = ½‖ε − ε̂‖², estimated from one example x, one time t
and one noise ε. Its mean, ∫ E[m] dγ, is the same under every schedule with the same end points; its
second moment is not: E[L²] = ∫ E[m²]/p dγ, where p(γ) = 1/γ'(t) is the density that the schedule
gives γ. It is least for p* ∝ √E[m²], where it is (∫ √E[m²] dγ)².

Source: Kingma, Salimans, Poole, Ho, "Variational Diffusion Models" (2021), section 5.1 and
appendix I.2; the optimum is that of importance sampling.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from variational_diffusion import objective, process
from variational_diffusion.conditions import Batch
from variational_diffusion.errors import InputError
from variational_diffusion.grids import NoiseErrors, PredictedErrors
from variational_diffusion.model import VDM
from variational_diffusion.modes import in_evaluation_mode
from variational_diffusion.numerics import (
    bits_per_dim,
    expand,
    mean_interval,
    randn_like,
    skewness,
)
from variational_diffusion.schedules import Cosine, FixedLinear, Schedule

GROUPS = 20
"""Of the jackknife: as many parts of the examples as `measured_variances` leaves out."""

_PIECES = 1000  # of the range of γ, or a few more, that integrals over t are taken in
_TOGETHER = 4  # bins of which the optimum takes the mean
_NODES = 4  # of Gauss and Legendre, in each piece
_HALVINGS = 60  # of [0, 1]: the first piece may be as narrow as 1e-7


class Errors(NamedTuple):
    """m = ½‖ε − ε̂‖² at some γ, one of each for an evaluation of the network; m in bits/dim."""

    gamma: Tensor
    error: Tensor


@in_evaluation_mode
def measure(
    vdm: VDM, batches: Iterable[Batch], *, generator: torch.Generator | None = None
) -> Iterator[Errors]:
    """Yield the errors of every batch, with γ spread evenly over [γ_0, γ_1]."""
    gamma_0, gamma_1 = vdm.schedule.end_points.detach().unbind()
    for batch in batches:
        with torch.inference_mode():
            model, x = vdm.given_in(batch)
            encoded = vdm.encode(x)
            u = objective.low_discrepancy_times(len(x), generator, like=encoded)
            gamma = torch.lerp(gamma_0, gamma_1, u)
            noise = randn_like(encoded, generator)
            error = objective.noise_error(_predictor(model), encoded, gamma, noise)
        yield Errors(gamma.cpu(), bits_per_dim(error, vdm.dimensions).cpu())


@in_evaluation_mode
def noise_errors(
    vdm: VDM,
    batches: Iterable[Batch],
    *,
    bins: int = 100,
    generator: torch.Generator | None = None,
) -> Iterator[NoiseErrors]:
    """Yield E(ε − ε̂)² in bins of γ for every position, from all batches so far.

    γ is spread evenly over [γ_0, γ_1]. A bin without a measurement holds what those next to it that
    have one say, linear in γ between two of them. A hundred evaluations of the network a bin give a
    usable variance; batches may repeat examples (`data.loader.measuring_batches`).
    """
    gamma_0, gamma_1 = vdm.schedule.end_points.detach().unbind()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    middles = torch.lerp(
        gamma_0.double().cpu(), gamma_1.double().cpu(), (edges[1:] + edges[:-1]) / 2
    )
    total = torch.zeros(bins, *vdm.shape, dtype=torch.float64)
    count = torch.zeros(bins, dtype=torch.float64)
    for batch in batches:
        with torch.inference_mode():
            model, x = vdm.given_in(batch)
            encoded = vdm.encode(x)
            u = objective.low_discrepancy_times(len(x), generator, like=encoded)
            errors = 2 * objective.noise_errors(
                _predictor(model),
                encoded,
                torch.lerp(gamma_0, gamma_1, u),
                randn_like(encoded, generator),
            )
        index = (u.cpu() * bins).long().clamp(max=bins - 1)
        total.index_add_(0, index, errors.cpu().double())
        count.index_add_(0, index, torch.ones(len(x), dtype=torch.float64))
        seen = count > 0
        means = total[seen] / count[seen].reshape(-1, *(1,) * len(vdm.shape))
        yield NoiseErrors(middles, means if seen.all() else _between(middles, middles[seen], means))


def _between(
    gamma: Float[Tensor, " bins"],
    known: Float[Tensor, " some"],
    values: Float[Tensor, "some *shape"],
) -> Float[Tensor, "bins *shape"]:
    """Return values at every γ, linear between the known ones and constant beyond them."""
    above = torch.searchsorted(known, gamma).clamp(max=len(known) - 1)
    below = (above - 1).clamp(min=0)
    width = torch.where(above > below, known[above] - known[below], 1.0)
    share = ((gamma - known[below]) / width).clamp(0, 1)
    return torch.lerp(values[below], values[above], expand(share, values))


def _predictor(vdm: VDM) -> objective.PredictNoise:
    return lambda z, gamma: vdm.denoise(z, gamma).noise


@in_evaluation_mode
def predictions(
    vdm: VDM,
    assumed: PredictedErrors,
    batches: Iterable[Batch],
    *,
    groups: int = 200,
    generator: torch.Generator | None = None,
) -> tuple[NoiseErrors, NoiseErrors]:
    """Return the errors of entries of which about the same is assumed, and what is assumed.

    For each bin of γ one batch is taken. All its entries are sorted by what is assumed of them and
    put into groups of one size, whose means take the place of positions. Both are scaled to the
    measured mean of the bin, so that the choice of the batch matters less, and smoothed.

    batches: one or more for each bin, of one size. Raises InputError for fewer.
    """
    mean = assumed.mean.averaged()
    rows: list[Tensor] = []
    for gamma, measured, batch in zip(mean.gamma, mean.error.flatten(), batches, strict=False):
        with torch.inference_mode():
            model, examples = vdm.given_in(batch)
            x = vdm.encode(examples)
            gamma_t = gamma.to(x).expand(len(x))
            noise = randn_like(x, generator)
            q = process.q_t(x, gamma_t)
            z = q.mean + q.std * noise
            estimate = model.denoise(z, gamma_t).noise
            expected = assumed(z, gamma_t, estimate).flatten().double().cpu()
            error = (noise - estimate).square().flatten().double().cpu()
        size = max(1, len(error) // groups)
        order = expected.argsort()[: len(error) // size * size]
        both = torch.stack([error[order], expected[order]]).reshape(2, -1, size).mean(2)
        rows.append(both * measured.double().cpu() / both[0].mean())
    if len(rows) < len(mean.gamma):
        raise InputError(
            f"batches = {len(rows)}: one for each of the {len(mean.gamma)} bins of γ is needed"
        )
    errors, expectations = torch.stack(rows, 1)
    return (
        NoiseErrors(mean.gamma, errors).smoothed(),
        NoiseErrors(mean.gamma, expectations).smoothed(),
    )


@dataclass(frozen=True)
class Moments:
    """Moments of m(γ) over bins of one width between γ_0 and γ_1, per unit of γ.

    mean, mean_square: E[m] in bits per dimension and E[m²], of the shape (bins,).
    """

    gamma_0: float
    gamma_1: float
    mean: np.ndarray
    mean_square: np.ndarray

    @property
    def gamma(self) -> np.ndarray:
        """The middle of every bin."""
        bins = len(self.mean)
        return self.gamma_0 + (self.gamma_1 - self.gamma_0) * (np.arange(bins) + 0.5) / bins

    @property
    def best_density(self) -> np.ndarray:
        """p*(γ) ∝ √E[m²] in every bin; its integral over γ is 1."""
        root = np.sqrt(self.mean_square)
        return root / (root.mean() * (self.gamma_1 - self.gamma_0))

    @property
    def diffusion(self) -> float:
        """The diffusion loss ∫ E[m] dγ, in bits per dimension."""
        return float(self.mean.mean()) * (self.gamma_1 - self.gamma_0)

    @property
    def least_variance(self) -> float:
        """The variance of L under the best schedule, in (bits/dim)².

        Its density changes every four bins only: the root of a mean of few m² is too low.
        """
        bins = len(self.mean_square)
        wide = np.array_split(self.mean_square, -(-bins // _TOGETHER))
        root = sum(math.sqrt(part.mean()) * len(part) for part in wide) / bins
        return (root * (self.gamma_1 - self.gamma_0)) ** 2 - self.diffusion**2

    def variance(self, rates: Float[np.ndarray, " bins"]) -> float:
        """Return the variance of L under a schedule with these `rate_integrals`, in (bits/dim)²."""
        return float(rates @ self.mean_square) - self.diffusion**2


@dataclass(frozen=True)
class Profile(Moments):
    """m(γ) over bins: its moments, and how it spreads over examples and draws.

    low, high: the 10th and the 90th percentile of m, of the shape (bins,). evaluations: of the
    network.
    """

    low: np.ndarray
    high: np.ndarray
    evaluations: int


def rate_integrals(schedule: Schedule, bins: int) -> Float[np.ndarray, " bins"]:
    """Return ∫ γ' dγ = ∫ γ'(t)² dt over bins of γ of one width, from γ_0 to γ_1.

    γ' may be a million times larger at one end than in the middle, within a millionth of t, as the
    cosine's is at 16 bits; but over a narrow piece of γ it hardly changes. So the times at which γ
    enters such pieces are found by bisection, and within each the integral over t is Gauss's.
    """
    pieces = -(-_PIECES // bins)
    exact = copy.deepcopy(schedule).cpu().double()
    edges = torch.linspace(0, 1, bins * pieces + 1, dtype=torch.float64)
    with torch.no_grad():
        end_0, end_1 = exact.end_points.unbind()
        t = _times(exact, torch.lerp(end_0, end_1, edges))
        nodes, weights = (
            torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(_NODES)
        )
        width = t.diff()[:, None]
        rate = exact.gamma_and_rate(t[:-1, None] + 0.5 * (nodes + 1) * width)[1]
        integrals = (0.5 * width * weights * rate.square()).sum(1).reshape(bins, pieces).sum(1)
    return integrals.numpy()


def _times(schedule: Schedule, gamma: Tensor) -> Tensor:
    """Return the t of increasing γ, from 0 to 1, as exactly as float64 holds them."""
    low, high = torch.zeros_like(gamma), torch.ones_like(gamma)
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        below = schedule(middle) < gamma
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    t = 0.5 * (low + high)
    t[0], t[-1] = 0.0, 1.0
    return t


def profile(
    errors: Iterable[Errors], end_points: tuple[float, float], *, bins: int = 100
) -> Profile:
    """Sort measured errors into bins between the end points.

    Raises InputError when a bin has none: measure more, or take fewer bins.
    """
    gathered = list(errors)
    if not gathered:
        raise InputError("errors = none: a profile takes one measurement or more")
    index, error = _binned(gathered, end_points, bins)
    parts = np.split(
        error[index.argsort(kind="stable")], np.bincount(index, minlength=bins).cumsum()[:-1]
    )
    _none_empty(np.array([len(part) for part in parts]))
    low, high = np.transpose([np.quantile(part, [0.1, 0.9]) for part in parts])
    return Profile(
        *end_points,
        mean=np.array([part.mean() for part in parts]),
        mean_square=np.array([np.square(part).mean() for part in parts]),
        low=low,
        high=high,
        evaluations=len(error),
    )


def _binned(
    errors: list[Errors], end_points: tuple[float, float], bins: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the bin of every evaluation, and its error."""
    gamma_0, gamma_1 = end_points
    gamma = torch.cat([e.gamma for e in errors]).double().numpy()
    index = ((gamma - gamma_0) / (gamma_1 - gamma_0) * bins).astype(int).clip(0, bins - 1)
    return index, torch.cat([e.error for e in errors]).double().numpy()


def _none_empty(counts: np.ndarray) -> None:
    if not counts.all():
        bins = counts.shape[-1]
        raise InputError(
            f"bins = {bins}: some have none of the {counts.sum()} evaluations; "
            f"make {20 * bins} evaluations or more, or take fewer bins"
        )


class Variances(NamedTuple):
    """The variance of L under schedules with the same end points and weights, in (bits/dim)²."""

    learned: float
    linear: float
    cosine: float
    optimum: float


def variances(of: Moments, schedule: Schedule) -> Variances:
    """Return the variance under a schedule, under the usual fixed ones, and the least possible."""
    return _variances(of, _rates(schedule, (of.gamma_0, of.gamma_1), len(of.mean)))


def _rates(schedule: Schedule, ends: tuple[float, float], bins: int) -> list[np.ndarray]:
    """Return `rate_integrals` of a schedule and of the usual fixed ones."""
    kinds = schedule, FixedLinear(*ends), Cosine(*ends)
    return [rate_integrals(kind, bins) for kind in kinds]


def _variances(of: Moments, rates: list[np.ndarray]) -> Variances:
    learned, linear, cosine = (of.variance(each) for each in rates)
    return Variances(learned, linear, cosine, of.least_variance)


class MeasuredVariances(NamedTuple):
    """Variances, their standard errors, and the ends of their 95 % intervals."""

    values: Variances
    errors: Variances
    low: Variances
    high: Variances


def measured_variances(
    errors: Iterable[Errors],
    end_points: tuple[float, float],
    schedule: Schedule,
    *,
    bins: int = 100,
) -> MeasuredVariances:
    """Return `variances` without the bias of few evaluations, with standard errors and intervals.

    All by the jackknife over twenty groups, batch i in group i mod 20: with
    `measuring_batches(parts=GROUPS)` each has examples of its own, and the errors are for other
    examples and other draws. The bias is that of the optimum: the mean of the root of an estimate
    of E[m²] is below the root of E[m²]. Intervals are corrected for the skewness of the groups
    (`numerics.mean_interval`). Errors are NaN for one batch, and nothing is corrected.
    """
    gathered = list(errors)
    groups = min(GROUPS, len(gathered))
    rates = _rates(schedule, end_points, bins)
    if groups < 2:
        whole = _variances(profile(gathered, end_points, bins=bins), rates)
        unknown = Variances(*[float("nan")] * 4)
        return MeasuredVariances(whole, unknown, unknown, unknown)
    index, error = _binned(gathered, end_points, bins)
    group = np.repeat(np.arange(len(gathered)) % groups, [len(e.error) for e in gathered])
    counts, sums, squares = (
        np.bincount(group * bins + index, power, groups * bins).reshape(groups, bins)
        for power in (np.ones_like(error), error, np.square(error))
    )

    def of(kept: np.ndarray) -> Variances:
        """Return the variances from the groups of a mask."""
        count = counts[kept].sum(0)
        _none_empty(count)
        return _variances(
            Moments(*end_points, sums[kept].sum(0) / count, squares[kept].sum(0) / count), rates
        )

    whole = of(np.full(groups, True))
    without = np.array([of(np.arange(groups) != k) for k in range(groups)])
    of_groups = groups * np.array(whole) - (groups - 1) * without
    values = of_groups.mean(0)
    spread = of_groups.std(0, ddof=1) / math.sqrt(groups)
    low, high = np.transpose(
        [
            mean_interval(value, error, groups - 1, skewness(each) / math.sqrt(groups))
            for value, error, each in zip(
                values.tolist(), spread.tolist(), of_groups.T, strict=True
            )
        ]
    )
    return MeasuredVariances(*(Variances(*of.tolist()) for of in (values, spread, low, high)))
