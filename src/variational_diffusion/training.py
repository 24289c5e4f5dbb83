"""Training: a generator of step records.

Progress bars, logging, validating, saving and stopping are the caller's `for` loop:

    state = TrainingState.start(build(config.model), config.training)
    for record in fit(state, batches, config.training):
        ...

The state is everything that a run needs to go on: a loop that is left and entered again with the
same state does what an uninterrupted one does, step by step. The only other inputs of a step are
its number and the seed, which fix its batch, its times and its noise.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from variational_diffusion import process
from variational_diffusion.config import TrainingConfig
from variational_diffusion.ema import ExponentialAverage
from variational_diffusion.errors import DivergedError
from variational_diffusion.grids import NoiseErrors, PredictedErrors
from variational_diffusion.model import VDM
from variational_diffusion.numerics import bits_per_dim, derived_seed, randn_like
from variational_diffusion.objective import Bound, low_discrepancy_times
from variational_diffusion.optimizers import Muon
from variational_diffusion.posthoc import PowerAverages
from variational_diffusion.schedules import Schedule

_MATRIX_SIDE = 8


@dataclass
class TrainingState:
    """A model in training. `fit` changes it in place.

    step: number of steps done. seconds: spent in them. power_averages: None where the configuration
    does not ask for them, and in a run that was begun without them.
    """

    vdm: VDM
    average: ExponentialAverage[VDM]
    optimizers: dict[str, torch.optim.Optimizer]
    step: int = 0
    seconds: float = 0.0
    power_averages: PowerAverages | None = None

    @classmethod
    def start(cls, vdm: VDM, config: TrainingConfig) -> TrainingState:
        """Return the state before the first step."""
        return cls(
            vdm,
            ExponentialAverage(vdm, config.ema_decay),
            make_optimizers(vdm, config),
            power_averages=PowerAverages(vdm) if config.posthoc_ema else None,
        )


@dataclass(frozen=True)
class StepRecord:
    """One step of training.

    step: its number, from 1. bound: of the batch, in nats per example, detached. gradient_norm: of
    the network, before clipping. learning_rate: of the network. progress: share of the budget
    that is spent after it. seconds: of training so far.
    """

    step: int
    bound: Bound
    gradient_norm: Tensor
    learning_rate: float
    progress: float
    seconds: float


def fit(
    state: TrainingState, batches: Iterable[Tensor], config: TrainingConfig
) -> Iterator[StepRecord]:
    """Minimise the mean of the bound, in bits per dimension, until the budget is spent.

    The schedule learns as described at `objective.diffusion`, its end points with a small price on
    the range of γ.

    batches: the data from batch number `state.step` on, each of shape (batch, *shape).
    Raises DivergedError before the step that a bound or a gradient which is not finite would make.
    """
    vdm, optimizers = state.vdm, state.optimizers.values()
    device = next(vdm.parameters()).device
    network_parameters = list(vdm.network.parameters())
    start = time.monotonic() - state.seconds
    paused = 0.0

    for x in batches:
        progress = _progress(state, config)
        if progress >= 1:
            return
        factor = learning_rate_factor(state.step, progress, config)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

        if not vdm.training:
            vdm.train()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            seed = derived_seed(config.seed, state.step)
            torch.manual_seed(seed + 1)  # of dropout; never the stream of times and noise
            generator = torch.Generator(device).manual_seed(seed)
            bound = vdm.vlb(x.to(device), generator=generator)
            price = config.range_price * vdm.schedule.end_points.diff()
            (bits_per_dim(bound.total, vdm.dimensions).mean() + price).backward()
        gradient_norm = nn.utils.clip_grad_norm_(
            network_parameters, config.clip_norm if config.clip_norm is not None else torch.inf
        )
        _check_finite(bound, gradient_norm, vdm.schedule, state.step, config)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        state.average.update()
        if state.power_averages is not None:
            state.power_averages.update()
        state.step += 1
        state.seconds = time.monotonic() - start - paused

        before_yield = time.monotonic()
        yield StepRecord(
            step=state.step,
            bound=bound.detach(),
            gradient_norm=gradient_norm,
            learning_rate=config.learning_rate * factor,
            progress=min(1.0, _progress(state, config)),
            seconds=state.seconds,
        )
        paused += time.monotonic() - before_yield


def make_optimizers(vdm: VDM, config: TrainingConfig) -> dict[str, torch.optim.Optimizer]:
    """Return the optimizers by name: "adamw", and "muon" where the configuration asks for it.

    Muon takes the network's matrices that are `_MATRIX_SIDE` or more both ways: what is thinner,
    such as the last convolution to one channel, has no directions to balance. AdamW has the rest
    of the network, the schedule's shape and its ends.
    """
    network = list(vdm.network.parameters())
    matrices = [p for p in network if p.ndim > 1]
    vectors = [p for p in network if p.ndim <= 1]
    schedule = [p for p in vdm.schedule.parameters() if p.requires_grad]
    ends = [p for p in schedule if p is vdm.schedule.log_stretch]
    shape = [p for p in schedule if p is not vdm.schedule.log_stretch]
    by_muon: list[nn.Parameter] = []
    if config.optimizer == "muon":
        by_muon = [p for p in matrices if min(len(p), p[0].numel()) >= _MATRIX_SIDE]
        chosen = {id(p) for p in by_muon}
        matrices = [p for p in matrices if id(p) not in chosen]
    groups = [
        (matrices, config.learning_rate, config.weight_decay),
        (vectors, config.learning_rate, 0.0),
        (shape, config.schedule_learning_rate, 0.0),
        (ends, config.end_point_learning_rate, 0.0),
    ]
    optimizers: dict[str, torch.optim.Optimizer] = {
        "adamw": torch.optim.AdamW(
            [
                {"params": parameters, "lr": rate, "weight_decay": decay}
                for parameters, rate, decay in groups
                if parameters
            ],
            betas=config.betas,
            fused=True,
        )
    }
    if by_muon:
        rate, decay = config.matrix_learning_rate, config.weight_decay
        optimizers["muon"] = Muon(by_muon, lr=rate, weight_decay=decay)
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def fit_head(
    vdm: VDM,
    head: nn.Module,
    errors: NoiseErrors,
    batches: Iterable[Tensor],
    *,
    steps: int,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> Iterator[float]:
    """Train a head of `PredictedErrors` on a model that stays as it is; yield its loss in nats.

    The loss is ½(log m + (ε − ε̂)²/m), the cost of an entry in one wide step but for what no m
    changes, at γ spread evenly over [γ_0, γ_1]. Its minimum is m = E[(ε − ε̂)² | z].
    """
    vdm.eval()
    gamma_0, gamma_1 = vdm.schedule.end_points.detach()
    generator = torch.Generator(gamma_0.device).manual_seed(derived_seed(seed, 2))
    optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, betas=(0.9, 0.99))
    predicted = PredictedErrors(errors, head)
    for step, batch in zip(range(steps), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - step / steps)
        with torch.no_grad():
            x = vdm.encode(batch.to(gamma_0.device))
            gamma = torch.lerp(gamma_0, gamma_1, low_discrepancy_times(len(x), generator, like=x))
            noise = randn_like(x, generator)
            q = process.q_t(x, gamma)
            z = q.mean + q.std * noise
            estimate = vdm.denoise(z, gamma).noise
        assumed = predicted(z, gamma, estimate)
        loss = 0.5 * (assumed.log() + (noise - estimate).square() / assumed).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield float(loss.detach())


def learning_rate_factor(step: int, progress: float, config: TrainingConfig) -> float:
    """Return the share of the learning rate in use: a linear rise, a plateau, a linear fall."""
    rise = min(1.0, (step + 1) / (config.warmup_steps + 1))
    if progress <= config.decay_from:
        return rise
    return rise * max(0.0, 1 - progress) / (1 - config.decay_from)


def _check_finite(
    bound: Bound, gradient_norm: Tensor, schedule: Schedule, step: int, config: TrainingConfig
) -> None:
    numbers = {"bound": bound.total.detach().mean(), "network's gradient": gradient_norm}
    gradients = [p.grad for p in schedule.parameters() if p.grad is not None]
    if gradients:
        numbers["schedule's gradient"] = nn.utils.get_total_norm(gradients)
    if torch.stack(list(numbers.values())).isfinite().all():
        return
    name, value = next((k, v) for k, v in numbers.items() if not v.isfinite())
    rates = {
        "learning_rate": config.learning_rate,
        "matrix_learning_rate": config.matrix_learning_rate,
        "schedule_learning_rate": config.schedule_learning_rate,
        "end_point_learning_rate": config.end_point_learning_rate,
    }
    slower = f"--learning-rate {config.learning_rate / 10:.2g}"
    if config.optimizer == "muon":
        slower += f" --set training.matrix_learning_rate={config.matrix_learning_rate / 10:.2g}"
    raise DivergedError(
        f"training diverged in step {step + 1} (the {name} is {float(value)}): learn more slowly "
        f"than with {', '.join(f'{key} = {rate}' for key, rate in rates.items())}; "
        f"type, for example, {slower}"
    )


def _progress(state: TrainingState, config: TrainingConfig) -> float:
    if config.steps is not None:
        return state.step / config.steps
    assert config.minutes is not None
    return state.seconds / (60 * config.minutes)
