"""Training of a run, from its start or its last state to the end of its budget.

`training_events` is the whole of it as a generator; `train` runs through it. What is drawn, saved
and logged is in the run directory (`run.directory`); what a run is, in `config`.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch.nn.parallel import DistributedDataParallel

from variational_diffusion.config import DEFAULT_MINUTES, DataConfig, RunConfig
from variational_diffusion.data import Dataset, open_dataset
from variational_diffusion.data.loader import (
    Batches,
    joined_positions,
    ordered_batches,
    training_batches,
)
from variational_diffusion.errors import DivergedError, InputError, one_of
from variational_diffusion.escaping import typed
from variational_diffusion.likelihood import Summary
from variational_diffusion.machine.distributed import (
    Place,
    leads,
    processes,
    texts_of_processes,
    wait_for_all,
)
from variational_diffusion.machine.execution import Execution
from variational_diffusion.machine.progress import Listener, nothing, telling
from variational_diffusion.machine.signals import stop_requested
from variational_diffusion.model import build
from variational_diffusion.networks.own import Factory, check, imported, is_path
from variational_diffusion.presets import configure
from variational_diffusion.run import averages
from variational_diffusion.run.directory import Run
from variational_diffusion.run.own_data import opened_own
from variational_diffusion.run.sheets import write_sheet
from variational_diffusion.run.tracking import Tracking
from variational_diffusion.run.upkeep import training_alone
from variational_diffusion.storage.files import expanded
from variational_diffusion.training.loop import Means, Validation, follow, validate
from variational_diffusion.training.overfit import OverfitCheck, overfit
from variational_diffusion.training.sharding import recompute_activations, shard
from variational_diffusion.training.steps import (
    Engine,
    StepRecord,
    TrainingState,
    spent,
    tail_begins,
)

LOG = logging.getLogger(__name__)

_SLOWER = 0.3  # what the learning rates are multiplied by after going back to a state
_BY_HEART = 8  # examples of `overfit_check`


@dataclass(frozen=True)
class Save:
    """The state of training was written. step: after which."""

    step: int


@dataclass(frozen=True)
class GoingBack:
    """Steps diverged, and training goes on from a state before.

    step: of that state. rate: what all learning rates are multiplied by from here. reason: what was
    seen.
    """

    step: int
    rate: float
    reason: str


@dataclass(frozen=True)
class End:
    """The budget is spent. validation: of the averaged weights at the end."""

    run: Run
    step: int
    seconds: float
    validation: Summary


Event = StepRecord | Means | Validation | Save | GoingBack | End


def train(
    data: Any = None,
    directory: str | Path | None = None,
    *,
    progress: bool | Listener = True,
    **options: Any,
) -> Run:
    """Train a model and keep it in a directory, or go on with the run that is there.

    A run of the same configuration goes on from its last state; with a larger budget than it had,
    from the one before its learning rate fell, so that it ends as if it had had this budget from
    the beginning. SIGINT (Ctrl-C) and SIGTERM end it after the step that is being done, which is
    saved, and raise KeyboardInterrupt; the same call goes on from there. For each step, validation
    and save as they come, see `training_events`.

    Args:
        data: What the command line calls DATA (a name, `hf:NAME`, a path), a `Dataset`, or data in
            memory, as of `open_dataset`. None: the data of the run in `directory`.
        directory: Of the run.
        progress: True for a bar, or a callable that is given a `Progress`.
        **options: Those of `training_events`: steps or minutes, preset, schedule, network,
            condition, seed, settings, device, threads, …

    Returns:
        The run, with its data attached as `Run.data`.

    Raises:
        InputError: For settings that cannot be, for a directory with a run of another
            configuration, and for a training that diverged twice.
        KeyboardInterrupt: After a signal; what was trained is saved.

    Examples:
        >>> x = np.random.default_rng(0).normal(size=(200, 2))
        >>> small = vd.train(x, "runs/small", steps=2, progress=False)
        >>> max(small.states())
        2
    """
    return finished(training_events(data, directory, **options), progress).run


def finished(events: Iterable[Event], progress: bool | Listener = False) -> End:
    """Run through the events of a training; return the last."""
    recent: deque[float] = deque(maxlen=50)
    event: Event | None = None
    with telling(leads() and progress, "training", "steps") as tell:
        for event in events:
            if isinstance(event, StepRecord):
                recent.append(event.bits_per_dim)
                tell(event.progress, event.step, lambda: f"{fmean(recent):.2f} bits/dim")
    assert isinstance(event, End)
    return event


def training_events(
    data: Any = None,
    directory: str | Path | None = None,
    *,
    every: float = 60.0,
    sheets_every: float = 30.0,
    log_every: int = 50,
    keep: int = 2,
    accumulate: int = 1,
    checkpointing: bool = False,
    sharding: str = "replicated",
    workers: int = 1,
    track: Sequence[str] = (),
    device: str = "auto",
    threads: int | None = None,
    precision: str = "auto",
    compile: str = "off",
    channels_last: bool = False,
    **choices: Any,
) -> Iterator[Event]:
    """Train as `train` does, step by step: a generator of what happens.

    Leaving the loop saves the state. Remarks of one line go to the logger "variational_diffusion".
    Several processes, started by torchrun or accelerate, all call this and share every batch.

    Args:
        data: As of `train`.
        directory: As of `train`.
        every: Seconds of training between two validations, each followed by saving.
        sheets_every: Minutes of training between two sheets of samples, of images.
        log_every: Steps between two lines of `metrics.jsonl`.
        keep: Number of states that stay, beside the one before the learning rate falls.
        accumulate: Parts that a batch goes through the network in, to take less memory.
        checkpointing: Compute activations again in the backward pass, to take less memory.
        sharding: "replicated" or "sharded": whether each of several processes has the whole model.
        workers: Threads that read ahead.
        track: Names of trackers: "tensorboard", "wandb", "trackio", ….
        device: As of `Execution`.
        threads: As of `Execution`.
        precision: As of `Execution`.
        compile: As of `Execution`.
        channels_last: As of `Execution`.
        **choices: Those of `configuration`: what is trained, and for how long.

    Yields:
        A `StepRecord` after each step, `Means` of those between two lines of the log, `Validation`,
        `Save`, `GoingBack` after divergence, and `End`.

    Raises:
        InputError: As `train`.
        KeyboardInterrupt: As `train`.

    Examples:
        >>> x = np.random.default_rng(0).normal(size=(200, 2))
        >>> for event in vd.training_events(x, "runs/events", steps=2):
        ...     print(type(event).__name__)
        StepRecord
        Save
        StepRecord
        Means
        Save
        Validation
        End
    """
    one_of("sharding", sharding, ("replicated", "sharded"))
    execution = Execution(device, threads, precision, compile, channels_last)
    with execution.begun() as target, processes(target) as place:
        asked = configuration(data, directory, **choices)
        for remark in asked.dataset.remarks if place.leads else ():
            LOG.info(remark)
        with Tracking(track if place.leads else ()) as tracking, ExitStack() as stack:
            yield from _Training(
                asked,
                directory,
                target,
                place,
                execution,
                tracking,
                stack,
                every=every,
                sheets_every=sheets_every,
                log_every=log_every,
                keep=keep,
                parts=accumulate,
                checkpointing=checkpointing,
                sharded=sharding == "sharded" and place.processes > 1,
                workers=workers,
            ).events()


class Asked(NamedTuple):
    """What a training is of.

    network: what makes its network, where that is one's own. changed_data: whether a run goes on
    although its data have changed.
    """

    dataset: Dataset
    config: RunConfig
    network: Factory | None
    changed_data: bool = False

    def on_changed_data(self, before: RunConfig) -> Asked:
        """Return the same for a run whose data have changed, with what it measured of them."""
        return self._replace(config=self.config.measured_as(before), changed_data=True)


def configuration(
    data: Any = None,
    directory: str | Path | None = None,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    preset: str | None = None,
    schedule: str | None = None,
    network: str | Factory | None = None,
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
    config: RunConfig | str | Path | None = None,
    changed_data: bool = False,
    **options: Any,
) -> Asked:
    """Return what `train` trains with these arguments; nothing is written.

    Args:
        data: As of `train`.
        directory: As of `train`.
        steps: The budget in steps.
        minutes: The budget in minutes; without either, that of the run, and 10 minutes for a new
            one.
        preset: A name of `PRESETS`; None: by the shape of the data.
        schedule: A name of `SCHEDULES`.
        network: A name of `NETWORKS`, a class or function of one's own (shape → module, see
            docs/network.md), or its import path, as "mypackage.nets:Tiny".
        seed: Of weights, order, times and noise; 0 by default.
        settings: "section.field" → value of any other setting, as in {"training.batch_size": 64}.
        config: A whole configuration, or a file of one (TOML, or JSON), in place of preset,
            schedule, seed and settings.
        changed_data: Go on with the run in `directory` although its data have changed since.
        **options: How the data are read, as of `open_dataset`: condition, levels, resize, ….

    Returns:
        The data set, the configuration, and what makes a network of one's own.

    Raises:
        InputError: For what cannot be; the message names it and what is allowed.
    """
    own = imported(network) if isinstance(network, str) and is_path(network) else network
    factory = None if isinstance(own, str) else own
    settings = dict(settings or {}) | ({} if seed is None else {"training.seed": seed})
    settings |= {
        f"training.{name}": value
        for name, value in (("steps", steps), ("minutes", minutes))
        if value is not None
    }
    there = None
    if directory is not None and os.path.exists(expanded(directory) / "config.json"):
        there = Run.open(directory, network=factory)
    if data is None and config is None:
        if there is None:
            where = "none" if directory is None else f"'{directory}'"
            raise InputError(f"run = {where}: there is no run to go on with; give the data too")
        config = there.config
    if there is not None and data is not None and not isinstance(data, Dataset):
        options = {"splits": there.config.data.splits} | options
    if config is not None:
        given = {"preset": preset, "schedule": schedule, **settings}
        given["network"] = own if isinstance(own, str) else None
        asked = _configured(config, data, given, options, factory)
        return asked if there is None or not changed_data else asked.on_changed_data(there.config)
    if settings.keys().isdisjoint({"training.steps", "training.minutes"}):
        budget = {"minutes": DEFAULT_MINUTES} if there is None else there.config.budget
        settings |= {f"training.{name}": value for name, value in budget.items()}
    dataset = open_dataset(data, **options)
    made = configure(
        dataset.config or DataConfig(source=dataset.source),
        dataset,
        preset=preset,
        schedule=schedule,
        network=own,
        settings=settings,
    )
    asked = Asked(dataset, made, factory)
    return asked if there is None or not changed_data else asked.on_changed_data(there.config)


def _configured(
    config: RunConfig | str | Path,
    data: Any,
    given: Mapping[str, Any],
    options: Mapping[str, Any],
    factory: Factory | None,
) -> Asked:
    """Return what a whole configuration asks for, with a budget of `given`, and maybe other data.

    given: settings, of which a configuration leaves the budget alone open. options: of the data.
    """
    if not isinstance(config, RunConfig):
        config = RunConfig.from_file(config)
    budget = {name: given.get(f"training.{name}") for name in ("steps", "minutes")}
    others = {k: v for k, v in given.items() if k.removeprefix("training.") not in budget}
    for name, value in (others | ({} if data is not None else dict(options))).items():
        if value is not None:
            raise InputError(
                f"{name} = {value!r}: the configuration says what it is; leave it out, or give the "
                "data and no configuration"
            )
    config = config.with_budget(**budget)
    dataset = opened_own(config.data) if data is None else open_dataset(data, **options)
    if (dataset.shape, dataset.levels) != (config.model.shape, config.data.levels):
        raise InputError(
            f"data = '{dataset.source}' has shape {dataset.shape} and levels {dataset.levels}: the "
            f"configuration is for shape {config.model.shape} and levels {config.data.levels}"
        )
    read = config.data
    if data is not None:
        read = dataset.config or DataConfig(source=dataset.source)
        read = read.model_copy(update={"levels": dataset.levels, "source": dataset.source})
    known = {
        "data": read.model_copy(update={"splits": dataset.rule}),
        "fingerprint": dataset.fingerprint,
    }
    config = config.model_copy(update=known)
    build(config.model, network=factory)  # what cannot be built is named here
    return Asked(dataset, config, factory)


def overfit_check(
    data: Any = None,
    *,
    device: str = "auto",
    threads: int | None = None,
    progress: bool | Listener = False,
    **choices: Any,
) -> OverfitCheck:
    """See for at most a minute whether a model can learn 8 examples by heart; write nothing.

    Args:
        data: As of `train`.
        device: As of `Execution`.
        threads: As of `Execution`.
        progress: As of `train`.
        **choices: Those of `configuration`.

    Returns:
        What came of it: `OverfitCheck.passed`, and `causes` where it failed.

    Raises:
        InputError: As `configuration`.

    Examples:
        >>> x = np.random.default_rng(0).normal(size=(200, 2))
        >>> vd.overfit_check(x, steps=5).steps
        5
    """
    with Execution(device, threads).begun() as target:
        asked = configuration(data, **choices)
        training = asked.config.training
        few = asked.dataset.splits["train"].sample(_BY_HEART)
        vdm = build(asked.config.model, seed=training.seed, network=asked.network).to(target)
        with telling(progress, "learning by heart", "steps") as tell:
            return overfit(
                vdm,
                next(ordered_batches(few, _BY_HEART)),
                training,
                lambda done, step: tell(done, step, nothing),
            )


class Reached(NamedTuple):
    """How far training has come: the number of the last step, and the position in a stream.

    One value, so that an interrupt never finds the one without the other.
    """

    step: int
    position: dict[str, Any]


class _Training:
    """A run in training, in one process or in each of several.

    The directory is made once the model and the batches are known to be possible. The leading
    process remarks and writes, and in a sharded run all of them write their part of the state.
    """

    def __init__(
        self,
        asked: Asked,
        directory: str | Path | None,
        device: torch.device,
        place: Place,
        execution: Execution,
        tracking: Tracking,
        stack: ExitStack,
        *,
        every: float,
        sheets_every: float,
        log_every: int,
        keep: int,
        parts: int,
        checkpointing: bool,
        sharded: bool,
        workers: int,
    ) -> None:
        self.dataset, self.config, network, _ = asked
        self.device, self.place, self.tracking = device, place, tracking
        self.execution = execution
        self.every, self.sheets_every, self.log_every = every, sheets_every, log_every
        self.keep, self.parts, self.checkpointing = keep, parts, checkpointing
        self.sharded, self.workers = sharded, workers
        if directory is None:
            raise InputError(
                "run = none: name the directory of the run, for example --run runs/first"
            )
        share = place.share("batch_size", self.config.training.batch_size)
        if share % parts:
            raise InputError(
                f"accumulate = {parts}: a batch of {share} in each process does not go into so "
                f"many equal parts; give a divisor of {share}"
            )
        if execution.compile == "cuda-graphs" and (place.processes > 1 or parts > 1):
            raise InputError(
                "compile = 'cuda-graphs' is for one process and --accumulate 1; "
                "type --compile default"
            )
        model = self.config.model
        first = build(model, seed=self.config.training.seed, network=network)
        if network is not None:
            one = None if first.condition is None else torch.zeros(first.condition.shape)
            check(first.network, model.network.name, model.shape, one)
        self._batches(0, {})
        self.reached = Reached(0, {})
        if place.leads:
            stack.enter_context(training_alone(directory))
        else:
            wait_for_all()
        self.run = Run.start(
            directory,
            self.config,
            network=network,
            data=self.dataset,
            changed_data=asked.changed_data,
        )
        if place.leads:
            self.run.forget_parts()
            wait_for_all()
        self.state = self._resumed() or TrainingState.start(
            first.to(device), self.config.training, distribute=self._distribute
        )
        if self.state.step and spent(self.state, self.config.training) >= 1:
            name, more = next(iter(self.config.budget.items()))
            further = f"vdm train --run {typed(directory)} --{name} {2 * more:g}"
            self._say(
                f"'{directory}' has done {self.state.step} steps, which is the budget; to train "
                f"it further, give a larger one, as in: {further}"
            )
        else:
            self._leave_tail()
            self.run.set_budget(self.config.training)
        if self.state.step and place.leads and not sharded:
            self.run.repair_weights(self.state)

    def events(self) -> Iterator[Event]:
        """Train until the budget is spent.

        Leaving for whatever reason saves the state. When steps diverge, training goes back to the
        last state once and goes on with smaller learning rates.
        """
        self._forget_later_steps()
        asked = json.loads(self.run.config.to_json())
        self.tracking.start(self.run.path, asked, self.state.step)
        while True:
            try:
                stopped = yield from self._until_stopped()
                break
            except DivergedError as error:
                going_back = self._go_back(error)
            yield going_back
        if stopped:
            self._say(f"stopped after step {self.state.step}; the same command goes on from there")
            raise KeyboardInterrupt
        validation = self._noted(validate(self.state, self.dataset.splits["validation"]))
        if self.sharded:
            self.run.write_weights(self.state)
        wait_for_all()
        yield validation
        yield End(self.run, self.state.step, self.state.seconds, validation.summary)

    def _until_stopped(self) -> Generator[Event, None, bool]:
        """Train; return whether a signal ended it before the budget was spent."""
        state = self.state
        self.stream = self._batches(state.step, self.reached.position)
        execution = replace(self.execution, device=str(self.device))
        state.vdm.prepare(execution)
        graphs = execution.compile == "cuda-graphs"
        engine = Engine(bound=self._wrapped(), parts=self.parts, graphs=graphs)
        tail, progress = tail_begins(self.config.training), spent(state, self.config.training)
        self.saved_step, drawn_at = state.step, state.seconds
        validation = self.dataset.splits["validation"]
        with stop_requested() as stopped:
            try:
                for event in follow(
                    state,
                    self.stream,
                    self.config.training,
                    validation,
                    engine=engine,
                    every=self.every,
                    log_every=self.log_every,
                    stopped=stopped,
                ):
                    due = isinstance(event, Validation)
                    if isinstance(event, StepRecord):
                        self.reached = Reached(event.step, self.stream.position())
                        before = progress
                        progress = event.progress
                        if before < tail <= progress < 1 and not event.skipped:
                            state.before_tail, due = state.step, True
                        averages.keep(self.run, state, last=progress >= 1)
                        if state.seconds - drawn_at > 60 * self.sheets_every:
                            write_sheet(self.run, state, self.tracking, validation)
                            drawn_at = state.seconds
                    elif isinstance(event, Means):
                        self._log(event.step, event.values)
                    else:
                        self._noted(event)
                        bits = event.summary.bits_per_dim
                        self._say(f"step {event.step}: validation {bits:.3f} bits/dim")
                    yield event
                    if due:
                        yield self._save()
            except DivergedError:
                raise  # what comes before a number that is not finite is no good either
            except BaseException:
                # others may not come here, and in the middle of a change there is nothing to save
                whole = state.whole and state.step == self.reached.step > self.saved_step
                if self.place.processes == 1 and whole:
                    self._save()
                raise
            if state.step > self.saved_step:
                yield self._save()
        return progress < 1

    @property
    def _distribute(self) -> Callable[[Any], object] | None:
        return shard if self.sharded else None

    def _resumed(self, step: int | None = None) -> TrainingState | None:
        resumed = self.run.resume(self.device, distribute=self._distribute, step=step)
        if resumed is None:
            self.reached = Reached(0, {})
            return None
        for line in resumed.damaged:
            self._say(f"{line}; going on from step {resumed.state.step}")
        self.reached = Reached(resumed.state.step, resumed.position)
        return resumed.state

    def _leave_tail(self) -> None:
        """Where the budget has grown, take the state from before the fall of the learning rate.

        What a small rate settles does not come loose again: a run that goes on from its end is
        behind one that had the larger budget from the beginning (experiments/LOG.md).
        """
        state, step = self.state, self.state.before_tail
        grown = spent(state, self.config.training) < spent(state, self.run.config.training)
        if not grown or not 0 < step < state.step or step not in self.run.states():
            return
        again = self._resumed(step)
        assert again is not None
        self._say(f"the budget has grown: going on from step {again.step}, before the rates fell")
        if self.place.leads:
            self.run.forget_states_after(again.step)
        wait_for_all()
        again.before_tail = 0
        self.state = again

    def _wrapped(self) -> Any:
        if self.checkpointing:
            recompute_activations(self.state.vdm.network)
        if self.place.processes > 1 and not self.sharded:
            return DistributedDataParallel(self.state.vdm)
        return self.state.vdm

    def _go_back(self, error: DivergedError) -> GoingBack:
        """Take the last state with smaller rates, once; the second time, give up."""
        name = self.run.path
        again = self._resumed()
        if self.state.rate < 1 or again is None:
            kept = f"keeps its state of step {again.step}" if again else "has no state yet"
            raise InputError(f"{error} and another --run; '{name}' {kept}") from error
        self._say(f"{error}; now going back to step {again.step} with {_SLOWER} of the rates")
        again.rate = _SLOWER
        self.state = again
        self._forget_later_steps()
        return GoingBack(again.step, again.rate, str(error))

    def _forget_later_steps(self) -> None:
        """Drop what was logged of steps that were not saved and will be done again."""
        self.validated: set[int] = set()
        if self.place.leads:
            self.run.forget_metrics_after(self.state.step)
            logged = self.run.metrics()
            self.validated = {line["step"] for line in logged if "validation" in line}
            averages.forget_after(self.run, self.state.step)
        wait_for_all()

    def _batches(self, start: int, position: dict[str, Any]) -> Batches:
        training = self.config.training
        return training_batches(
            self.dataset,
            training.batch_size,
            training.seed,
            start=start,
            position=position,
            part=self.place,
            workers=self.workers,
            device=self.device,
        )

    def _save(self) -> Save:
        """Write the state; with several processes, all of them come here after the same step."""
        own = json.dumps([secrets.token_hex(8), self.reached.position])
        told = list(map(json.loads, texts_of_processes(own, self.device)))
        position = joined_positions(position for _, position in told)
        if self.sharded:
            self.run.save(
                self.state,
                position=position,
                keep=self.keep,
                place=self.place,
                token=told[0][0],
            )
            wait_for_all()
        elif self.place.leads:
            self.run.save(self.state, position=position, keep=self.keep)
        self.saved_step = self.state.step
        return Save(self.state.step)

    def _noted(self, found: Validation) -> Validation:
        """Log a validation, once where a run ends again, and keep the weights if they are best."""
        if found.step not in self.validated:
            values = {"step": found.step, "seconds": found.seconds}
            self._log(found.step, {**values, "validation": found.summary.as_json()})
        if self.sharded or self.place.leads:
            self.run.save_best(self.state, found.summary.bits_per_dim)
        return found

    def _log(self, step: int, values: dict[str, Any]) -> None:
        if self.place.leads:
            self.run.log(**values)
            self.tracking.log(step, values)

    def _say(self, text: str) -> None:
        if self.place.leads:
            LOG.info(text)
