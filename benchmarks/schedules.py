"""Noise schedules against each other: what each costs, learns and brings.

    python benchmarks/schedules.py train DATA [--steps N] [--seeds 3] [--schedule NAME ...]
    python benchmarks/schedules.py cost DATA [--repeats 200]
    python benchmarks/schedules.py ends DATA --start LOW HIGH ... [--fixed] [--seed S] [--steps N]

`train` trains the default preset with every schedule and seed, for the same number of steps, and
prints bits per dimension of the test set, the seconds to reach the worst schedule's final
validation, and the variances of `vdm schedule`. `cost` times a training step with and without what
a schedule adds. `ends` trains the adaptive schedule from several ranges of γ and prints where the
end points come to; with --fixed they stay, for comparison.

One process, `--threads` threads; nothing else should run beside it.
"""

from __future__ import annotations

import itertools
import statistics
import time
from typing import NamedTuple

import click
import torch

from variational_diffusion.config import DataConfig, RunConfig
from variational_diffusion.data import Dataset, open_dataset
from variational_diffusion.data.loader import training_batches
from variational_diffusion.likelihood import Summary, evaluate_rounds
from variational_diffusion.likelihood.loss_profile import Variances, measured_variances
from variational_diffusion.model import build
from variational_diffusion.presets import configure
from variational_diffusion.run.learned_schedule import measure_split
from variational_diffusion.training import TrainingState, fit

VALIDATIONS = 10
VALIDATION_EXAMPLES = 200
TEST_EXAMPLES = 1000
EVALUATIONS = 10_000


class Validation(NamedTuple):
    """Bits per dimension of the averaged weights, after so many steps and seconds of training."""

    step: int
    seconds: float
    value: float


class Result(NamedTuple):
    """One training run: validations along the way, and what it came to."""

    curve: list[Validation]
    test: Summary
    end_points: tuple[float, float]
    variances: Variances


def trained(config: RunConfig, dataset: Dataset) -> Result:
    training = config.training
    state = TrainingState.start(build(config.model, seed=training.seed), training)
    average = state.average.module
    stream = training_batches(dataset.splits["train"], training.batch_size, training.seed)
    assert training.steps is not None
    validation = dataset.splits["validation"].sample(VALIDATION_EXAMPLES)
    test = dataset.splits["test"].sample(TEST_EXAMPLES)
    curve = []
    for record in fit(state, stream, training):
        if record.step % (training.steps // VALIDATIONS) == 0:
            value = evaluate_rounds(average, validation).summary.bits_per_dim
            curve.append(Validation(record.step, record.seconds, value))
    gamma_0, gamma_1 = average.schedule.end_points.tolist()
    measured = measure_split(average, test, evaluations=EVALUATIONS)
    found = measured_variances(measured, (gamma_0, gamma_1), average.schedule).values
    return Result(curve, evaluate_rounds(average, test).summary, (gamma_0, gamma_1), found)


def reached(target: float, curve: list[Validation]) -> tuple[float, float]:
    """Return steps and seconds until a curve of validations, joined by lines, meets a target."""
    for before, after in itertools.pairwise(curve):
        if after.value <= target:
            share = max(0.0, (before.value - target) / (before.value - after.value))
            return (
                before.step + share * (after.step - before.step),
                before.seconds + share * (after.seconds - before.seconds),
            )
    return float("nan"), float("nan")


@click.group()
@click.option("--threads", type=int, default=2)
def main(threads: int) -> None:
    torch.set_num_threads(threads)


@main.command()
@click.argument("data")
@click.option("--steps", type=int, default=2000)
@click.option("--seeds", type=int, default=3)
@click.option(
    "--schedule", "names", multiple=True, default=("fixed-linear", "monotone", "adaptive")
)
def train(data: str, steps: int, seeds: int, names: tuple[str, ...]) -> None:
    source = DataConfig(source=data)
    dataset = open_dataset(source)
    results: dict[str, list[Result]] = {name: [] for name in names}
    for seed in range(seeds):
        for name in names:
            settings = {"training.steps": steps, "training.seed": seed}
            config = configure(source, dataset, schedule=name, settings=settings)
            result = trained(config, dataset)
            results[name].append(result)
            v = result.variances
            print(
                f"{data} {name} seed {seed}: test {result.test.bits_per_dim:.4f} "
                f"± {result.test.standard_error:.4f}, γ {result.end_points[0]:.2f} to "
                f"{result.end_points[1]:.2f}, variance {v.learned:.3f}, optimum {v.optimum:.3f}, "
                f"linear {v.linear:.3f}, cosine {v.cosine:.3f}, {result.curve[-1].seconds:.0f} s",
                *(f"{v.value:.3f}" for v in result.curve),
                flush=True,
            )
    target = max(r.curve[-1].value for runs in results.values() for r in runs)
    print(
        f"\n| schedule | test bits/dim, mean and {seeds} seeds | steps to {target:.3f} | seconds | "
        "variance / optimum | linear / variance |\n| --- | --- | --- | --- | --- | --- |"
    )
    for name, runs in results.items():
        bits = [r.test.bits_per_dim for r in runs]
        steps_to, seconds_to = zip(*(reached(target, r.curve) for r in runs), strict=True)
        excess = [r.variances.learned / r.variances.optimum for r in runs]
        gain = [r.variances.linear / r.variances.learned for r in runs]
        print(
            f"| {name} | {statistics.mean(bits):.4f} ({', '.join(f'{b:.4f}' for b in bits)}) | "
            f"{', '.join(f'{s:.0f}' for s in steps_to)} | "
            f"{', '.join(f'{s:.0f}' for s in seconds_to)} | "
            f"{', '.join(f'{r:.2f}' for r in excess)} | {', '.join(f'{r:.1f}' for r in gain)} |"
        )


@main.command()
@click.argument("data")
@click.option("--steps", type=int, default=3000)
@click.option("--start", "starts", type=(float, float), multiple=True, required=True)
@click.option("--fixed", is_flag=True, help="Do not learn the end points.")
@click.option("--seed", type=int, default=0)
def ends(
    data: str, steps: int, starts: tuple[tuple[float, float], ...], fixed: bool, seed: int
) -> None:
    source = DataConfig(source=data)
    dataset = open_dataset(source)
    for low, high in starts:
        settings = {
            "training.steps": steps,
            "training.seed": seed,
            "schedule.learn_end_points": not fixed,
            "schedule.gamma_min": low,
            "schedule.gamma_max": high,
        }
        config = configure(source, dataset, schedule="adaptive", settings=settings)
        result = trained(config, dataset)
        print(
            f"{data} from γ = {low} to {high}: came to {result.end_points[0]:.3f} to "
            f"{result.end_points[1]:.3f}, seed {seed}, test {result.test.bits_per_dim:.4f} "
            f"± {result.test.standard_error:.4f}",
            flush=True,
        )


@main.command()
@click.argument("data")
@click.option("--repeats", type=int, default=200)
def cost(data: str, repeats: int) -> None:
    """Time single steps, the kinds in turn; steps that measure the ends count one in 64."""
    source = DataConfig(source=data)
    dataset = open_dataset(source)
    kinds: dict[str, dict[str, object]] = {
        "fixed-linear": {},
        "fixed-linear, again": {},
        "adaptive, ends fixed": {"schedule.learn_end_points": False},
        "adaptive": {},
        "monotone, ends fixed": {"schedule.learn_end_points": False},
        "monotone": {},
    }
    steps = {}
    for kind, options in kinds.items():
        settings = {"training.steps": 10**9, **options}
        name = kind.split(",")[0]
        config = configure(source, dataset, schedule=name, settings=settings)
        state = TrainingState.start(build(config.model), config.training)
        stream = training_batches(dataset.splits["train"], config.training.batch_size, 0)
        steps[kind] = state.vdm.schedule, fit(state, stream, config.training)
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    measuring: dict[str, list[float]] = {kind: [] for kind in kinds}
    for i in range(repeats):
        for kind, (schedule, stream_of_steps) in steps.items():
            if i % 10 == 5:
                schedule.set_extra_state(
                    torch.tensor(0)
                )  # measure the ends in this step, if they are learned
            elif i % 10 == 6:
                schedule.set_extra_state(torch.tensor(1))
            begin = time.perf_counter()
            next(stream_of_steps)
            (measuring if i % 10 == 5 else times)[kind].append(time.perf_counter() - begin)
    plain, plain_measuring = times["fixed-linear"], measuring["fixed-linear"]
    for kind in kinds:
        ratio = statistics.median(a / b for a, b in zip(times[kind], plain, strict=True))
        both = zip(measuring[kind], plain_measuring, strict=True)
        ratio += (statistics.median(a / b for a, b in both) - ratio) / 64
        milliseconds = 1000 * statistics.median(times[kind])
        print(f"{kind}: {milliseconds:.2f} ms a step, {ratio:.4f} of the first")


if __name__ == "__main__":
    main()
