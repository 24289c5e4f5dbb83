"""Whether every error that the package prints is as large as it says.

    python benchmarks/calibration.py --repeats 1000

Each figure is computed again and again, with new examples and new draws, for models whose truth is
known (`exact.py`). "Found" is the share of the repetitions whose 95 % interval holds the truth, or
the share of false alarms, with its own standard error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache

import click
import numpy as np
import torch
from common import device_of, log_option, markdown, report, threads_option
from exact import Mixture, exact_model

from variational_diffusion import objective, process
from variational_diffusion.anomaly import SCORES, Profiles, Reference, profiles
from variational_diffusion.data import Split
from variational_diffusion.data.arrays import ArraySource
from variational_diffusion.grids import Gammas, uniform_in_time
from variational_diffusion.likelihood import (
    DEQUANTISATIONS,
    ContinuousBound,
    DiscreteBound,
    Estimator,
    ImportanceWeighted,
    ODELikelihood,
    evaluate_rounds,
)
from variational_diffusion.likelihood.classification import (
    Accuracy,
    accuracy,
    class_bounds,
    confusion,
)
from variational_diffusion.likelihood.loss_profile import Profile, measured_variances, variances
from variational_diffusion.likelihood.paired import compare_models
from variational_diffusion.model import VDM
from variational_diffusion.numerics import bits_per_dim, derived_seed, t_quantile
from variational_diffusion.presets import noise_range
from variational_diffusion.quality import Pixels
from variational_diffusion.quality import Reference as Examples
from variational_diffusion.run.learned_schedule import measure_split
from variational_diffusion.schedules import FixedLinear

Row = list[object]
"""Figure, case, what is claimed, what was found."""

LEVELS = 16
NOISES = 4000  # shared by the patterns, where a truth is a mean over noise
DENSITIES = 50  # times as many, where densities are in closed form and errors of draws small
EVALUATED = 20_000  # of the network by `vdm schedule`, by default
GAMMAS = 100  # at which it is integrated


# Populations


@dataclass(frozen=True, eq=False)
class Population:
    """Patterns, shape (K, *shape), each with its share, its kind, and the model that is exact."""

    patterns: np.ndarray
    shares: np.ndarray
    kinds: np.ndarray
    model: VDM

    def draw(self, n: int, rng: np.random.Generator, *, in_order: bool = False) -> np.ndarray:
        """Draw the numbers of n patterns; `in_order`: one kind after the other."""
        drawn = rng.choice(len(self.shares), n, p=self.shares)
        return drawn[np.argsort(self.kinds[drawn], kind="stable")] if in_order else drawn

    def split(self, drawn: np.ndarray) -> Split:
        """Return these patterns as examples."""
        levels = self.model.decoder.levels
        source = ArraySource(self.patterns[drawn], "drawn", levels=levels)
        return Split(source, np.arange(len(drawn)))


@cache
def population(rare: float = 0.1, near: int = 200, gamma_1: float | None = None) -> Population:
    """Return two kinds: eight patterns far apart, and with probability `rare` one of many `near`.

    gamma_1: of the model; None: as runs begin with. There, z_1 is not quite the noise that the
    ODE's density begins from, which is 0.001 bits/dim, more than the draws of `importance` leave.

    What tells a pattern of the first kind from others is seen through much noise, what tells one of
    the second only through little: their losses lie at different γ.
    """
    rng = np.random.default_rng(0)
    counts = [near, 8]
    close = LEVELS // 2 + rng.integers(-1, 2, (counts[0], 8))
    patterns = np.concatenate([close, rng.integers(0, LEVELS, (counts[1], 8))])
    weights = [np.exp(0.5 * rng.standard_normal(count)) for count in counts]
    shares = np.concatenate(
        [p * of / of.sum() for p, of in zip([rare, 1 - rare], weights, strict=True)]
    )
    patterns, kinds = patterns.astype(np.uint8), np.repeat([0, 1], counts)
    gamma_0, usual = noise_range(LEVELS)
    schedule = FixedLinear(gamma_0, usual if gamma_1 is None else gamma_1)
    model = exact_model(patterns, shares, LEVELS, schedule=schedule)
    return Population(patterns, shares, kinds, model)


# What is true: nats of every pattern, shape (K,)


def rows_of(of: Population) -> tuple[torch.Tensor, torch.Tensor]:
    """Return patterns, most often the likely ones, and their numbers."""
    counts = torch.from_numpy(np.maximum(10, NOISES * of.shares).astype(int))
    numbers = torch.arange(len(counts)).repeat_interleave(counts)
    return torch.from_numpy(of.patterns).long()[numbers], numbers


def means_of(values: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Return the mean of the values of each pattern."""
    sums = torch.zeros(int(numbers.max()) + 1, dtype=values.dtype).index_add(0, numbers, values)
    return sums / numbers.bincount()


def moments_at(of: Population, gamma: float) -> torch.Tensor:
    """Return the means of m = ½‖ε − ε̂‖² and of m² over noise, shape (2, K)."""
    rows, numbers = rows_of(of)
    x = of.model.encode(rows)
    generator = torch.Generator().manual_seed(derived_seed(0, round(1e6 * (100 + gamma))))
    noise = torch.randn(x.shape, dtype=x.dtype, generator=generator)
    level = torch.tensor(gamma, dtype=x.dtype).expand(len(x))
    m = objective.noise_error(lambda z, g: of.model.denoise(z, g).noise, x, level, noise)
    return torch.stack([means_of(m, numbers), means_of(m.square(), numbers)])


@cache
def moments(of: Population) -> torch.Tensor:
    """Return `moments_at` the middles of equal parts of [γ_0, γ_1], shape (parts, 2, K)."""
    gamma_0, gamma_1 = of.model.schedule.end_points.tolist()
    middles = gamma_0 + (gamma_1 - gamma_0) * (np.arange(GAMMAS) + 0.5) / GAMMAS
    return torch.stack([moments_at(of, gamma) for gamma in middles.tolist()])


def bound(of: Population, gammas: Gammas | None = None) -> torch.Tensor:
    """Return the bound for infinitely many steps, by the midpoint rule, or on a grid of γ."""
    vdm = of.model
    gamma_0, gamma_1 = vdm.schedule.end_points
    if gammas is None:
        diffusion = (gamma_1 - gamma_0) * moments(of)[:, 0].mean(0)
    else:
        rising = gammas.flip(0)
        weights = torch.expm1(rising.diff())
        m = torch.stack([moments_at(of, gamma)[0] for gamma in rising[1:].tolist()])
        diffusion = weights @ m
    rows, numbers = rows_of(of)
    z_0 = process.q_t(vdm.encode(rows), gamma_0).sample(torch.Generator().manual_seed(0))
    lost = means_of(-vdm.decoder.log_prob(rows, z_0, gamma_0), numbers)
    patterns = torch.from_numpy(of.patterns)
    return objective.prior(vdm.encode(patterns), gamma_1) + lost + diffusion


def density(of: Population, samples: int = 1) -> torch.Tensor:
    """Return the mean of −log 1/K Σ p(z_0)/q(z_0|x), the density p in closed form."""
    vdm, network = of.model, of.model.network
    assert isinstance(network, Mixture)
    rows, numbers = rows_of(of)
    generator = torch.Generator().manual_seed(0)
    means = []
    for _ in range(DENSITIES):
        weights = []
        for _ in range(samples):
            drawn = DEQUANTISATIONS["truncated-normal"](vdm, rows, generator)
            weights.append(network.log_prob(drawn.z_0, vdm.schedule.gamma_0) - drawn.cost)
        means.append(means_of(math.log(samples) - torch.stack(weights).logsumexp(0), numbers))
    return torch.stack(means).mean(0)


# evaluate


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of so many examples of a population, as `vdm evaluate` makes it."""

    name: str
    estimator: Callable[[VDM], Estimator]
    truth: Callable[[Population], torch.Tensor]
    examples: int = 250
    in_order: bool = False
    batch_size: int = 250
    rounds: int | None = None
    rare: float = 0.1
    gamma_1: float | None = None

    @property
    def case(self) -> str:
        order = "sorted" if self.in_order else "shuffled"
        batches = f", batches of {self.batch_size}" if self.batch_size < self.examples else ""
        rounds = "" if self.rounds is None else f", --rounds {self.rounds}"
        return f"{self.examples} examples, {self.rare:.0%} rare, {order}{batches}{rounds}"


def grid(vdm: VDM) -> Gammas:
    return uniform_in_time(vdm.schedule, 20)


VLB = Evaluation("vlb", lambda vdm: ContinuousBound(2), bound)
SORTED = replace(VLB, in_order=True)
CHAIN = Evaluation(
    "discrete", lambda vdm: DiscreteBound(grid(vdm), 2), lambda of: bound(of, grid(of.model))
)
ODE = Evaluation("ode", lambda vdm: ODELikelihood(), density, 50, rare=0.5)
IMPORTANCE = Evaluation(
    "importance, 4 samples",
    lambda vdm: ImportanceWeighted(4, ODELikelihood(probes=None, tolerance=1e-7)),
    lambda of: density(of, 4),
    50,
    rare=0.5,
    gamma_1=11.0,
)
EVALUATIONS = {
    "vlb": [
        replace(VLB, rounds=2),
        replace(SORTED, rounds=2),
        replace(SORTED, rounds=1),
        *(replace(VLB, examples=n, rounds=2) for n in (20, 10, 5, 2)),
        *(replace(VLB, examples=n, rare=0.5, rounds=2) for n in (10, 2)),
        VLB,
        SORTED,
        replace(SORTED, batch_size=50),
        replace(VLB, examples=10),
        replace(VLB, examples=2),
    ],
    "discrete": [
        replace(CHAIN, rounds=2),
        replace(CHAIN, in_order=True, rounds=2),
        replace(
            CHAIN,
            name="discrete, exact",
            estimator=lambda vdm: DiscreteBound(grid(vdm), None),
            rounds=2,
        ),
    ],
    "ode": [ODE, replace(ODE, in_order=True), replace(ODE, examples=5)],
    "importance": [IMPORTANCE],
}


def evaluations(estimator: str) -> Callable[[int, int], Iterator[Row]]:
    """Return the study of an estimator's evaluations."""

    def study(repeats: int, seed: int) -> Iterator[Row]:
        for number, each in enumerate(EVALUATIONS[estimator]):
            yield from evaluated(each, repeats, derived_seed(seed, number))

    return study


def evaluated(each: Evaluation, repeats: int, seed: int) -> Iterator[Row]:
    """Yield how often the intervals of the examples and of the draws hold the truth."""
    of = population(each.rare, gamma_1=each.gamma_1)
    truth = bits_per_dim(each.truth(of), of.model.dimensions).numpy()
    estimator = each.estimator(of.model)
    inside, by_draws, larger = [], [], []
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, repeat])
        drawn = of.draw(each.examples, rng, in_order=each.in_order)
        done = evaluate_rounds(
            of.model,
            of.split(drawn),
            estimator,
            rounds=each.rounds,
            batch_size=each.batch_size,
            seed=derived_seed(seed, repeat),
        )
        found = done.summary
        low, high = found.interval
        inside.append(low <= truth @ of.shares <= high)
        if not math.isnan(found.draws_error):
            far = abs(found.bits_per_dim - truth[drawn].mean())
            by_draws.append(far <= t_quantile(found.degrees) * found.draws_error)
            larger.append(found.draws_error > found.standard_error)
    figure = f"evaluate, {each.name}"
    yield [figure, each.case, "95 %", share(inside)]
    if by_draws:
        yield [f"{figure}, error of the draws", each.case, "95 %", share(by_draws)]
        yield [f"{figure}, error of the draws above the whole", each.case, "0 %", share(larger)]


# compare


def compare(repeats: int, seed: int) -> Iterator[Row]:
    """Yield how often the interval of a difference holds that of the population.

    The second model takes the rare patterns for even rarer: it is worse by little.
    """
    of = population()
    other = of.shares * np.where(of.kinds == 0, 0.7, 1)
    worse = replace(of, model=exact_model(of.patterns, other / other.sum(), LEVELS))
    difference = bits_per_dim(bound(worse) - bound(of), of.model.dimensions).numpy()
    for in_order, rounds in ((False, 2), (True, 2), (True, None)):
        inside, larger = [], []
        for repeat in range(repeats):
            drawn = of.draw(250, np.random.default_rng([seed, repeat]), in_order=in_order)
            found = compare_models(
                [of.model, worse.model],
                of.split(drawn),
                rounds=rounds,
                seed=derived_seed(seed, repeat),
            )
            low, high = found.interval
            inside.append(low <= difference @ of.shares <= high)
            larger.append(found.pairs[0].draws_error > found.standard_error)
        case = replace(VLB, in_order=in_order, rounds=rounds).case
        yield ["compare, difference", case, "95 %", share(inside)]
        yield ["compare, error of the draws above the whole", case, "0 %", share(larger)]


# quality


def clusters(n: int, rng: np.random.Generator, missing: int = 0) -> np.ndarray:
    """Draw images of 2×8 real numbers from eight clusters, one after the other; the first lack."""
    which = np.sort(rng.integers(missing, 8, n))
    return (4 * np.eye(16)[which] + rng.standard_normal((n, 16))).reshape(n, 1, 2, 8)


def normal(n: int, rng: np.random.Generator, mean: float = 0.0, std: float = 1.0) -> np.ndarray:
    return mean + std * rng.standard_normal((n, 1, 2, 8))


Sets = Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]
SETS: dict[str, Sets] = {
    "drawn alike, 200 and 200": lambda rng: (normal(200, rng), normal(200, rng)),
    "shifted and wider, 400 and 200": lambda rng: (normal(400, rng, 0.3, 1.2), normal(200, rng)),
    "clusters missing, sorted, 200 and 200": lambda rng: (
        clusters(200, rng, 3),
        clusters(200, rng),
    ),
}


def quality(repeats: int, seed: int) -> Iterator[Row]:
    """Yield how often value ± 1.96 errors holds the value expected of sets of these sizes."""
    for case, sets in SETS.items():
        values: dict[str, list[tuple[float, float]]] = {}
        for repeat in range(repeats):
            samples, examples = sets(np.random.default_rng([seed, repeat]))
            reference = Examples(examples.astype(np.float32), Pixels(None), levels=None)
            for name, found in reference.distances(samples.astype(np.float32)).items():
                values.setdefault(name, []).append((found.value, found.error))
        for name, pairs in values.items():
            value, error = np.array(pairs).T
            inside = np.abs(value - value.mean()) <= 1.96 * error
            ratio = math.sqrt(np.square(error).mean()) / value.std(ddof=1)
            yield [
                f"quality, {name}",
                f"{case}; error {ratio:.2f} of the spread",
                "95 %",
                share(inside),
            ]


# classify


def labelled(n: int, rng: np.random.Generator, std: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw examples of three classes, one class after the other, and their classes."""
    classes = np.sort(rng.integers(0, 3, n))
    values = CENTRES[classes] + 8 * std * rng.standard_normal((n, 4))
    return torch.from_numpy(values.round().clip(0, 15).astype(np.uint8)), torch.from_numpy(classes)


CENTRES = np.array([[4, 4, 8, 8], [11, 4, 8, 8], [4, 11, 8, 8]])


def classify(repeats: int, seed: int) -> Iterator[Row]:
    """Yield how often the interval of the accuracy holds that of very many examples."""
    for std in (0.3, 0.2):
        vdm = exact_model(CENTRES, np.full(3, 1 / 3), 16, std=std, classes=np.arange(3))

        def found(n: int, *seeds: int, vdm: VDM = vdm, std: float = std) -> Accuracy:
            x, label = labelled(n, np.random.default_rng([seed, *seeds]), std)
            bounds = [
                class_bounds(vdm, part, ContinuousBound(4), seed=derived_seed(seed, *seeds, i))
                for i, part in enumerate(x.split(100))
            ]
            return accuracy(confusion(label, torch.cat(bounds).argmin(1), 3))

        truth = found(40_000, 0).share
        for n in (10, 20, 100, 400):
            all_found = [found(n, n, repeat) for repeat in range(repeats)]
            inside = [each.low <= truth <= each.high for each in all_found]
            case = f"{n} examples, accuracy {truth:.3f}"
            yield ["classify, accuracy", case, "95 %", share(inside)]


# schedule


def schedule(repeats: int, seed: int) -> Iterator[Row]:
    """Yield how often the interval of a variance holds that in the population."""
    of = population()
    end_points = tuple(of.model.schedule.end_points.tolist())
    per_bin = bits_per_dim(moments(of), of.model.dimensions).numpy()
    per_bin[:, 1] = bits_per_dim(torch.from_numpy(per_bin[:, 1]), of.model.dimensions)
    mean, square = (per_bin @ of.shares).T
    truth = variances(Profile(*end_points, mean, square, mean, mean, 0), of.model.schedule)
    for examples in (10_000, 300):
        inside: dict[str, list[bool]] = {}
        for repeat in range(repeats):
            drawn = of.draw(examples, np.random.default_rng([seed, examples, repeat]))
            measured = measure_split(of.model, of.split(drawn), evaluations=EVALUATED, seed=repeat)
            found = measured_variances(measured, end_points, of.model.schedule)
            for name, low, high, true in zip(
                truth._fields, found.low, found.high, truth, strict=True
            ):
                inside.setdefault(name, []).append(low <= true <= high)
        for name, hits in inside.items():
            case = f"{EVALUATED:,} evaluations of {examples} examples"
            yield [f"schedule, variance, {name}", case, "95 %", share(hits)]


# score


def noisy(n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw images of 6×6 pixels and 32 levels, of two kinds, one after the other."""
    kinds = np.sort(rng.random(n) < 0.9)[:, None, None, None]
    smooth = np.linspace(4, 26, 6)[:, None] + rng.normal(0, 3, (n, 1, 1, 1))
    rough = 16 + rng.normal(0, 6, (n, 1, 6, 6))
    values = np.where(kinds, smooth + rng.normal(0, 1, (n, 1, 6, 6)), rough)
    return values.round().clip(0, 31).astype(np.uint8)


def score(repeats: int, seed: int) -> Iterator[Row]:
    """Yield the share of new examples, drawn like the reference, that are called strange."""
    centres = noisy(64, np.random.default_rng(seed))
    vdm = exact_model(centres, np.full(64, 1 / 64), 32, std=0.1)
    alarms: dict[tuple[int, str, float], list[float]] = {}
    for size in (1000, 200):
        for repeat in range(max(2, repeats // 4)):
            x = noisy(size + 500, np.random.default_rng([seed, size, repeat]))
            order = np.random.default_rng([seed, repeat]).permutation(len(x))
            own, of = (
                Profiles.joined(
                    profiles(
                        vdm,
                        torch.from_numpy(x[rows]).split(250),
                        generator=torch.Generator().manual_seed(repeat),
                    )
                )
                for rows in (np.sort(order[:size]), np.sort(order[size:]))
            )
            for name in SCORES:
                _, p = Reference(own).judged(of, name)
                for level in (0.01, 0.05):
                    alarms.setdefault((size, name, level), []).append(float((p <= level).mean()))
    for (size, name, level), shares in alarms.items():
        error = np.std(shares, ddof=1) / math.sqrt(len(shares))
        found = f"{np.mean(shares):.2%} ± {error:.2%}"
        yield [f"score, {name}, false alarms", f"reference of {size}", f"{level:.0%}", found]


def share(hits: list[bool]) -> str:
    """Return a share with its binomial error, which is not zero where all or none are hits."""
    n = len(hits)
    p = (sum(hits) + 0.5) / (n + 1)
    return f"{np.mean(hits):.1%} ± {math.sqrt(p * (1 - p) / n):.1%}"


STUDIES: dict[str, Callable[[int, int], Iterator[Row]]] = {
    **{name: evaluations(name) for name in EVALUATIONS},
    "compare": compare,
    "quality": quality,
    "classify": classify,
    "schedule": schedule,
    "score": score,
}


@click.command()
@click.option("--repeats", type=click.IntRange(2), default=400, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(list(STUDIES)), help="Default: all.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@threads_option
@log_option
def main(repeats: int, only: tuple[str, ...], seed: int, threads: int, log: bool) -> None:
    """Repeat every figure with new draws and new examples."""
    device_of(threads, "cpu")
    rows: list[Row] = []
    for name in only or STUDIES:
        for row in STUDIES[name](repeats, seed):
            rows.append(row)
            print(*row, sep=" | ", flush=True)
    report(
        f"{repeats} repetitions, seed {seed}\n\n"
        f"{markdown(['figure', 'case', 'claimed', 'found'], rows)}",
        log=log,
    )


if __name__ == "__main__":
    main()
