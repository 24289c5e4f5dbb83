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

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from variational_diffusion.conditions import Batch, as_batch, parted
from variational_diffusion.config import TrainingConfig
from variational_diffusion.decoders import Discretized
from variational_diffusion.errors import DivergedError, InputError
from variational_diffusion.lattice import LEAST_RECORDED_SPACING
from variational_diffusion.machine.cuda_graphs import Recorded
from variational_diffusion.machine.distributed import Place, here, largest_over_processes, whole
from variational_diffusion.machine.threads import paced
from variational_diffusion.model import VDM
from variational_diffusion.networks.dropout import draw_keys, dropout_layers, keyed
from variational_diffusion.numerics import bits_per_dim, derived_seed, expand
from variational_diffusion.objective import Bound
from variational_diffusion.training.ema import ExponentialAverage
from variational_diffusion.training.optimizers import Muon
from variational_diffusion.training.posthoc import PowerAverages
from variational_diffusion.weightings import weighting_named

Function = Callable[..., Sequence[Tensor]]

_PATIENCE = 10  # steps in a row that are not finite
_HALF = 0.5
_MATRIX_SIDE = 8


@dataclass
class TrainingState:
    """A model in training. `fit` changes it in place.

    Attributes:
        vdm: The model.
        average: Its weights averaged over the steps.
        optimizers: By the name of what they train.
        step: Number of steps done.
        seconds: Spent in them.
        skipped: Steps among them whose numbers were not finite, and which changed nothing.
        rate: What all learning rates are multiplied by; a run that went back to an earlier state
            goes on with less than one.
        power_averages: None where the configuration does not ask for them, and in a run that was
            begun without them.
        before_tail: The step after which the learning rate was about to fall, 0 before it.
        whole: False while a step changes it, so that what is cut short there is not saved.
    """

    vdm: VDM
    average: ExponentialAverage[VDM]
    optimizers: dict[str, torch.optim.Optimizer]
    step: int = 0
    seconds: float = 0.0
    skipped: int = 0
    rate: float = 1.0
    power_averages: PowerAverages | None = None
    before_tail: int = 0
    whole: bool = True

    @classmethod
    def start(
        cls,
        vdm: VDM,
        config: TrainingConfig,
        *,
        distribute: Callable[[VDM], object] | None = None,
    ) -> TrainingState:
        """Return the state before the first step.

        Args:
            vdm: The model, which `fit` trains in place.
            config: The settings of its optimizers and averages.
            distribute: Shards the weights of a model over the processes, in place.

        Returns:
            The state, with new optimizers.
        """
        average = ExponentialAverage(vdm, config.ema_decay)
        if distribute is not None:
            distribute(vdm)
            distribute(average.module)
        return cls(
            vdm,
            average,
            make_optimizers(vdm, config),
            power_averages=PowerAverages(vdm) if config.posthoc_ema else None,
        )


@dataclass(frozen=True)
class StepRecord:
    """One step of training.

    Attributes:
        step: Its number, from 1.
        bound: Of this process's examples, in nats, detached.
        bits_per_dim: The mean of the bound.
        gradient_norm: Of the network, before clipping.
        learning_rate: Of the network.
        progress: Share of the budget that is spent after it.
        seconds: Of training so far.
        skipped: Whether its numbers were not finite.
    """

    step: int
    bound: Bound
    bits_per_dim: float
    gradient_norm: float
    learning_rate: float
    progress: float
    seconds: float
    skipped: bool


@dataclass(frozen=True)
class Engine:
    """How the arithmetic of a step is carried out; the numbers are the same for all of them.

    bound: what is called as bound(x, draws=…, weighting=…) in place of the model, such as a
        wrapper that averages gradients over processes; None: the model.
    parts: the batch goes through the model in so many equal parts, one after the other, which
        takes that much less memory.
    graphs: record a step as CUDA graphs and replay them; one process, one part.
    """

    bound: Callable[..., Bound] | None = None
    parts: int = 1
    graphs: bool = False


def fit(
    state: TrainingState,
    batches: Iterable[Any],
    config: TrainingConfig,
    *,
    engine: Engine = Engine(),
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[StepRecord]:
    """Minimise the mean of the bound, in bits per dimension, until the budget is spent.

    With a `weighting` in the configuration, its diffusion loss is weighted in all gradients but
    those of the end points; the records are of the bound itself.

    The schedule learns as described at `objective.diffusion`, its end points with a small penalty
    on the range of γ. A step whose bound or gradient is not finite leaves the weights as they are.
    With several processes, all of them call this and get the records of the same steps.

    Args:
        state: What `TrainingState.start` returned; changed in place.
        batches: The data from batch number `state.step` on: this process's rows of each, of shape
            (batch / processes, *shape), in a pair with the values of their conditions where
            `vdm.condition` takes them. A loader that ends is begun again.
        config: How the model is trained, and for how long.
        engine: How the arithmetic of a step is carried out.
        stopped: Asked after every step; where it is true in any process, this step is the last.

    Yields:
        A record after each step.

    Raises:
        DivergedError: After ten steps in a row that were skipped.
        InputError: For batches that have ended and cannot be begun again, and for conditions that
            the model does not take.

    Examples:
        >>> vdm = vd.VDM(vd.MLP((2,), width=16), vd.Monotone(), vd.Gaussian(), shape=(2,))
        >>> config = vd.TrainingConfig(steps=3)
        >>> state = vd.TrainingState.start(vdm, config)
        >>> [record.step for record in vd.fit(state, [torch.randn(32, 2)], config)]
        [1, 2, 3]
    """
    place = here()
    step = _Step(state, config, engine, place)
    start = time.monotonic() - state.seconds
    paused = 0.0
    in_a_row = 0

    stream = _without_end(batches)
    while (progress := spent(state, config)) < 1:
        batch = next(stream)
        factor = state.rate * learning_rate_factor(state.step, progress, config)
        _set_rates(state.optimizers.values(), factor)
        if not state.vdm.training:
            state.vdm.train()
        with paced("step"):
            bound, numbers = step.measure(batch)
        mine = [
            float(not all(map(math.isfinite, numbers))),
            float(stopped()),
            time.monotonic() - start - paused,
        ]
        not_finite, stop, seconds = largest_over_processes(mine, step.device)
        if not_finite:
            state.skipped += 1
            in_a_row += 1
            if in_a_row == _PATIENCE:
                raise DivergedError(_diagnosis(state, config, numbers))
        else:
            step.update()
            in_a_row = 0
        step.forget()
        state.average.update()
        if state.power_averages is not None:
            state.power_averages.update()
        state.step += 1
        state.seconds = seconds
        state.whole = True

        before_yield = time.monotonic()
        yield StepRecord(
            step=state.step,
            bound=bound,
            bits_per_dim=numbers[0] / (state.vdm.dimensions * math.log(2)),
            gradient_norm=numbers[1],
            learning_rate=config.learning_rate * factor,
            progress=min(1.0, spent(state, config)),
            seconds=state.seconds,
            skipped=bool(not_finite),
        )
        paused += time.monotonic() - before_yield
        if stop:
            return


class _Step:
    """The arithmetic of one step: `measure`, then `update` or not, then `forget`."""

    def __init__(
        self, state: TrainingState, config: TrainingConfig, engine: Engine, place: Place
    ) -> None:
        self.state, self.config, self.engine, self.place = state, config, engine, place
        self.vdm = state.vdm
        self.device = state.vdm.schedule.initial_end_points.device
        self.generator = torch.Generator(self.device)
        self.network = list(self.vdm.network.parameters())
        self.has_buffers = any(True for _ in self.vdm.network.buffers())
        self.dropouts = dropout_layers(self.vdm.network)
        self.schedule = [p for p in self.vdm.schedule.parameters() if p.requires_grad]
        self.bound = engine.bound or self.vdm
        self.weighting = weighting_named(config.weighting)
        self._gradients: dict[bool, Callable[..., Sequence[Tensor]]] = dict.fromkeys(
            (False, True), self._gradients_of
        )
        self._update: Callable[[], Sequence[Tensor]] = self._optimise
        if engine.graphs:
            self._record()

    def measure(self, batch: Batch) -> tuple[Bound, list[float]]:
        """Leave the gradients of this batch in the parameters.

        Returns the bound of the examples, and its mean, the norm of the network's gradient before
        clipping and that of the schedule's gradient.
        """
        # recorded gradients remember errors unseen, and a network of one's own may do as it likes
        self.state.whole = not (self.engine.graphs or self.has_buffers)
        seed = derived_seed(self.config.seed, self.state.step)
        devices = [self.device] if self.device.type == "cuda" else []
        schedule = self.vdm.schedule
        with torch.random.fork_rng(devices=devices), schedule.one_step():
            # of what a network draws itself, such as torch's own dropout: another stream than that
            # of times and noise, and than other processes'
            torch.manual_seed(seed + 1 + self.place.rank)
            self.generator.manual_seed(seed)
            measures = schedule.measures_ends
            if self.engine.graphs and measures:
                self._check_recorded_sums()
            *terms, numbers = self._gradients[measures](*self._inputs(batch))
        return Bound(*terms), numbers.tolist()

    def update(self) -> None:
        """Let the optimizers make a step."""
        self.state.whole = False
        self._update()

    def forget(self) -> None:
        """Drop the gradients; graphs keep the memory they are in."""
        for optimizer in self.state.optimizers.values():
            optimizer.zero_grad(set_to_none=not self.engine.graphs)

    def _inputs(self, batch: Batch) -> list[Tensor]:
        """Return the examples, and the encoded conditions of a model that takes them."""
        x, condition = (
            part if part is None else part.to(self.device, non_blocking=True)
            for part in parted(batch)
        )
        assert x is not None
        if condition is None:
            return [x]
        if self.vdm.condition is None:
            raise InputError(
                "the batches are pairs of examples and conditions, such as labels, and this model "
                "is unconditional: give the examples alone, or train one with condition='label'"
            )
        return [x, self.vdm.encode_condition(condition)]

    def _gradients_of(self, x: Tensor, conditioning: Tensor | None = None) -> Sequence[Tensor]:
        count = self.place.processes * len(x)
        mine = self.place.rows(count)
        draws = self.vdm.draw(count, self.generator).rows(mine)
        if conditioning is not None:
            chance = torch.rand(count, generator=self.generator, device=self.device)[mine]
            kept = (chance >= self.config.condition_dropout).to(conditioning.dtype)
            conditioning = conditioning * expand(kept, conditioning)
        keys = draw_keys(len(self.dropouts), count, self.generator, self.device)[..., mine]
        bounds: list[Bound] = []
        size = len(x) // self.engine.parts
        for part in range(self.engine.parts):
            rows = slice(part * size, (part + 1) * size)
            stay = part < self.engine.parts - 1
            with self._gradients_stay_here(stay), keyed(self.dropouts, keys[..., rows]):
                given = {} if conditioning is None else {"conditioning": conditioning[rows]}
                bound = self.bound(
                    x[rows], draws=draws.rows(rows), weighting=self.weighting, **given
                )
                price = self.config.range_price * self.vdm.schedule.end_points.diff()
                loss = bits_per_dim(bound.total, self.vdm.dimensions).mean() + price
                (loss / self.engine.parts).backward()
            bounds.append(bound.detach())
        self.state.whole = False
        self.vdm.schedule.remember()
        joined = Bound(
            *(torch.cat([getattr(b, name) for b in bounds]) for name in Bound.__annotations__)
        )
        clip = torch.inf if self.config.clip_norm is None else self.config.clip_norm
        norm = whole(nn.utils.clip_grad_norm_(self.network, clip))
        gradients = [p.grad for p in self.schedule if p.grad is not None]
        of_schedule = nn.utils.get_total_norm(gradients) if gradients else torch.zeros_like(norm)
        numbers = torch.stack([joined.total.mean(), norm, of_schedule])
        return joined.prior, joined.reconstruction, joined.diffusion, numbers

    def _gradients_stay_here(self, stay: bool) -> AbstractContextManager[None]:
        """Return a context in which gradients of a part are added up and not yet averaged."""
        if stay and isinstance(self.bound, DistributedDataParallel):
            return self.bound.no_sync()
        return nullcontext()

    def _optimise(self) -> Sequence[Tensor]:
        for optimizer in self.state.optimizers.values():
            optimizer.step()
        self.vdm.schedule.stay_above_floor()
        return []

    def _check_recorded_sums(self) -> None:
        """Raise `InputError` where the decoder's sums would need more levels than were recorded."""
        decoder = self.vdm.decoder
        if isinstance(decoder, Discretized):
            spacing = float(decoder.spacing(self.vdm.schedule.gamma_0.detach()))
            if spacing < LEAST_RECORDED_SPACING:
                raise InputError(
                    f"compile = 'cuda-graphs': the least noise has become {1 / spacing:.1f} levels "
                    "wide, and 1 is allowed; go on with --compile default"
                )

    def _record(self) -> None:
        """Put graphs in the place of the functions, with rates that they can read."""
        for measures in self._gradients:
            self._gradients[measures] = Recorded(self._gradients_of, [self.generator])
        self._update = Recorded(self._optimise)
        for optimizer in self.state.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = torch.tensor(float(group["lr"]), device=self.device)
                group["capturable"] = True


def _set_rates(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            rate = group["initial_lr"] * factor
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


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


def learning_rate_factor(step: int, progress: float, config: TrainingConfig) -> float:
    """Return the share of the learning rate in use: a linear rise, a plateau, a linear fall."""
    rise = min(1.0, (step + 1) / (config.warmup_steps + 1))
    if progress <= config.decay_from:
        return rise
    return rise * max(0.0, 1 - progress) / (1 - config.decay_from)


def tail_begins(config: TrainingConfig) -> float:
    """Return the share of the budget from which on the learning rate is in its tail.

    A run with a larger budget goes on from there. It is where the rate begins to fall, and half of
    the budget where it falls from earlier on.
    """
    return max(_HALF, config.decay_from)


def _diagnosis(state: TrainingState, config: TrainingConfig, numbers: list[float]) -> str:
    names = ("bound", "network's gradient", "schedule's gradient")
    rates = {
        "learning_rate": config.learning_rate,
        "matrix_learning_rate": config.matrix_learning_rate,
        "schedule_learning_rate": config.schedule_learning_rate,
        "end_point_learning_rate": config.end_point_learning_rate,
    }
    slower = f"--learning-rate {config.learning_rate / 10:.2g}"
    if config.optimizer == "muon":
        slower += f" --set training.matrix_learning_rate={config.matrix_learning_rate / 10:.2g}"
    wrong = (k for k, value in enumerate(numbers) if not math.isfinite(value))
    first = next(wrong, None)
    what = "in another process" if first is None else f"the {names[first]} is {numbers[first]}"
    return (
        f"training diverged in step {state.step + 1}, after {_PATIENCE} steps in a row whose "
        f"numbers are not finite ({what}): learn more slowly than with "
        f"{', '.join(f'{key} = {state.rate * rate:.2g}' for key, rate in rates.items())}; "
        f"type, for example, {slower}"
    )


def _without_end(batches: Iterable[Any]) -> Iterator[Batch]:
    while True:
        empty = True
        for made in batches:
            empty = False
            yield as_batch(made)
        if empty:
            raise InputError(
                "batches: there are none, or they have ended and cannot be begun again; give a "
                "loader or a list in place of a generator"
            )


def spent(state: TrainingState, config: TrainingConfig) -> float:
    """Return the share of the budget that is spent; above 1 where it was larger before."""
    if config.steps is not None:
        return state.step / config.steps
    assert config.minutes is not None
    return state.seconds / (60 * config.minutes)
