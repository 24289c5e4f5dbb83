"""One training of a run, from its start or its last state to the end of its budget."""

from __future__ import annotations

import json
import resource
import sys
import time
from contextlib import nullcontext
from statistics import fmean
from typing import Any

import click
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from variational_diffusion.cli.devices import speed_up
from variational_diffusion.cli.shared.console import Meter
from variational_diffusion.cli.sheets import write_sheet
from variational_diffusion.config import RunConfig
from variational_diffusion.data import Dataset
from variational_diffusion.data.loader import Batches, joined_positions, training_batches
from variational_diffusion.errors import DivergedError, InputError
from variational_diffusion.likelihood import ContinuousBound, Summary, evaluate_rounds
from variational_diffusion.machine.distributed import (
    ALONE,
    Place,
    sum_over_processes,
    texts_of_processes,
    wait_for_all,
)
from variational_diffusion.machine.signals import stop_requested
from variational_diffusion.model import VDM, build
from variational_diffusion.numerics import bits_per_dim
from variational_diffusion.run import averages
from variational_diffusion.run.directory import Resumed, Run
from variational_diffusion.run.tracking import Tracking
from variational_diffusion.training import Engine, StepRecord, TrainingState, fit
from variational_diffusion.training.sharding import recompute_activations, shard

_LOG_STEPS = 50
_VALIDATION_EXAMPLES = 512  # enough to follow the run; `vdm evaluate` takes them all
_VALIDATION_BATCH = 64
_SLOWER = 0.3  # what the learning rates are multiplied by after going back to a state


class Session:
    """A run in training, in one process or in each of several.

    every: seconds of training between two validations, each followed by saving. sheets_every:
    minutes between two sheets of samples. keep: states that stay. parts: see `Engine`.
    checkpointing: compute activations again instead of keeping them. sharding: "replicated" or
    "sharded". workers: threads that read ahead. tracking: not started yet.

    The directory is made once the model and the batches are known to be possible. The leading
    process prints and writes, and in a sharded run all of them write their part of the state.
    """

    def __init__(
        self,
        directory: str,
        config: RunConfig,
        dataset: Dataset,
        device: torch.device,
        *,
        place: Place = ALONE,
        tracking: Tracking | None = None,
        every: float = 60.0,
        sheets_every: float = 30.0,
        keep: int = 2,
        compile_mode: str = "off",
        precision: str = "float32",
        channels_last: bool = False,
        parts: int = 1,
        checkpointing: bool = False,
        sharding: str = "replicated",
        workers: int = 1,
    ) -> None:
        self.config, self.dataset, self.device, self.place = config, dataset, device, place
        self.tracking = tracking or Tracking()
        self.every, self.sheets_every, self.keep = every, sheets_every, keep
        self.compile_mode = compile_mode
        self.precision, self.channels_last = precision, channels_last
        self.parts, self.checkpointing, self.workers = parts, checkpointing, workers
        self.sharded = sharding == "sharded" and place.processes > 1
        share = place.share("batch_size", config.training.batch_size)
        if share % parts:
            raise InputError(
                f"accumulate = {parts}: a batch of {share} in each process does not go into so "
                f"many equal parts; give a divisor of {share}"
            )
        if compile_mode == "cuda-graphs" and (place.processes > 1 or parts > 1):
            raise InputError(
                "compile = 'cuda-graphs' is for one process and --accumulate 1; "
                "type --compile default"
            )
        first = build(config.model, seed=config.training.seed).to(device)
        self._batches(0, {})
        if place.leads:
            self.run = Run.start(directory, config)
        wait_for_all()
        if not place.leads:
            self.run = Run.start(directory, config)
        distribute = shard if self.sharded else None
        self.state = self._resumed() or TrainingState.start(
            first, config.training, distribute=distribute
        )

    def train(self) -> Summary:
        """Train until the budget is spent; return the validation at the end.

        SIGINT and SIGTERM end it after the step that is being done; leaving for whatever reason
        saves the state. When steps diverge, training goes back to the last state once and goes on
        with smaller learning rates.
        """
        if self.place.leads:
            self.run.forget_metrics_after(self.state.step)
            averages.forget_after(self.run, self.state.step)
        wait_for_all()
        self.tracking.start(self.run.path, json.loads(self.config.to_json()), self.state.step)
        while True:
            try:
                stopped = self._until_stopped()
                break
            except DivergedError as error:
                self._go_back(error)
        if stopped:
            self._say(f"stopped after step {self.state.step}; the same command goes on from there")
            raise KeyboardInterrupt
        summary = self._validate()
        if self.sharded:
            self.run.write_weights(self.state)
        wait_for_all()
        return summary

    def _until_stopped(self) -> bool:
        """Train; return whether a signal ended it before the budget was spent."""
        state = self.state
        self.stream = self._batches(state.step, self.position)
        speed_up(
            state.vdm,
            compile_mode=self.compile_mode,
            precision=self.precision,
            channels_last=self.channels_last,
        )
        engine = Engine(
            bound=self._wrapped(), parts=self.parts, graphs=self.compile_mode == "cuda-graphs"
        )
        recent: list[StepRecord] = []
        progress = 1.0  # of a run that has no step left to do
        self.saved_step = state.step
        saved_at = drawn_at = state.seconds
        meter = Meter("training", "steps") if self.place.leads else None
        self.logged_at, self.waited = time.monotonic(), 0.0
        with meter or nullcontext(), stop_requested() as stopped:
            steps = fit(state, self.stream, self.config.training, engine=engine, stopped=stopped)
            try:
                for record in steps:
                    recent.append(record)
                    progress = record.progress
                    averages.keep(self.run, state, last=progress >= 1)
                    if meter is not None:
                        meter.update(progress, record.step, lambda: _short(state.vdm, recent))
                    if state.step % _LOG_STEPS == 0:
                        self._log(recent)
                        recent.clear()
                    if state.seconds - drawn_at > 60 * self.sheets_every:
                        write_sheet(
                            self.run, state, self.tracking, self.dataset.splits["validation"]
                        )
                        drawn_at = state.seconds
                    if state.seconds - saved_at > self.every and not record.skipped:
                        summary = self._validate()
                        self._say(
                            f"step {state.step}: validation {summary.bits_per_dim:.3f} bits/dim",
                            meter,
                        )
                        self._save()
                        saved_at = state.seconds
            except DivergedError:
                raise  # what comes before a number that is not finite is no good either
            except BaseException:
                # in the middle of a step: others may not come here, a stream may be one batch ahead
                if self.place.processes == 1 and not self.stream.position():
                    self._save_new()
                raise
            if recent:
                self._log(recent)
            self._save_new()
        return progress < 1

    def _resumed(self) -> TrainingState | None:
        distribute = shard if self.sharded else None
        resumed = self.run.resume(self.device, distribute=distribute)
        self.position: dict[str, Any] = {}
        if resumed is None:
            return None
        self._note_damaged(resumed)
        self.position = resumed.position
        return resumed.state

    def _note_damaged(self, resumed: Resumed) -> None:
        for line in resumed.damaged:
            self._say(f"{line}; going on from step {resumed.state.step}")

    def _wrapped(self) -> Any:
        if self.checkpointing:
            recompute_activations(self.state.vdm.network)
        if self.place.processes > 1 and not self.sharded:
            return DistributedDataParallel(self.state.vdm)
        return self.state.vdm

    def _go_back(self, error: DivergedError) -> None:
        """Go on from the last state with smaller rates, once; the second time, give up."""
        name = self.run.path
        again = self._resumed()
        if self.state.rate < 1 or again is None:
            kept = f"keeps its state of step {again.step}" if again else "has no state yet"
            raise InputError(f"{error} and another --run; '{name}' {kept}") from error
        self._say(f"{error}; now going back to step {again.step} with {_SLOWER} of the rates")
        again.rate = _SLOWER
        self.state = again
        if self.place.leads:
            self.run.forget_metrics_after(again.step)
            averages.forget_after(self.run, again.step)
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

    def _save_new(self) -> None:
        if self.state.step > self.saved_step:
            self._save()

    def _save(self) -> None:
        """Write the state; with several processes, all of them come here after the same step."""
        texts = texts_of_processes(json.dumps(self.stream.position()), self.device)
        position = joined_positions(json.loads(text) for text in texts)
        if self.sharded:
            self.run.save(self.state, position=position, keep=self.keep, place=self.place)
            wait_for_all()
        elif self.place.leads:
            self.run.save(self.state, position=position, keep=self.keep)
        self.saved_step = self.state.step

    def _validate(self) -> Summary:
        """Evaluate the averaged weights on the validation split, shared out; log it."""
        average = self.state.average.module
        split = self.dataset.splits["validation"].sample(_VALIDATION_EXAMPLES)
        done = evaluate_rounds(
            average,
            split,
            ContinuousBound(2),
            rounds=1,
            batch_size=_VALIDATION_BATCH,
            place=self.place,
            together=self.sharded,
        )
        summary = done.summary
        step = self.state.step
        if self.place.leads:
            values = {
                "step": step,
                "seconds": self.state.seconds,
                "validation": summary.as_json(),
            }
            self.run.log(**values)
            self.tracking.log(step, values)
        if self.sharded or self.place.leads:
            self.run.save_best(self.state, summary.bits_per_dim)
        return summary

    def _log(self, records: list[StepRecord]) -> None:
        """Log the means over some steps, of all processes, and what they took."""
        now = time.monotonic()
        values = _metrics(self.state, records)
        examples = self.config.training.batch_size * len(records)
        values |= {
            "examples_per_second": examples / (now - self.logged_at),
            "waiting": (self.stream.waited - self.waited) / (now - self.logged_at),
            "memory": _peak_memory(self.device),
        }
        self.logged_at, self.waited = now, self.stream.waited
        if self.place.leads:
            self.run.log(**values)
            self.tracking.log(self.state.step, values)

    def _say(self, text: str, meter: Meter | None = None) -> None:
        if not self.place.leads:
            return
        if meter is not None:
            meter.message(text)
        else:
            click.echo(text, err=True)


def _metrics(state: TrainingState, records: list[StepRecord]) -> dict[str, Any]:
    """Return the means over some steps, and where the schedule is after the last."""
    last, vdm = records[-1], state.vdm
    gamma_0, gamma_1 = vdm.schedule.end_points.tolist()
    good = [record for record in records if not record.skipped] or records
    names = ("prior", "reconstruction", "diffusion")
    terms = {name: torch.cat([getattr(r.bound, name) for r in good]).double() for name in names}
    moments = [terms[name].sum() for name in names]
    moments += [terms["diffusion"].square().sum(), torch.full_like(moments[0], len(terms["prior"]))]
    *sums, squares, count = sum_over_processes(torch.stack(moments)).tolist()
    to_bits = float(bits_per_dim(torch.ones((), dtype=torch.float64), vdm.dimensions))
    mean = sums[2] / count
    return {
        "step": last.step,
        "seconds": last.seconds,
        "train": {name: to_bits * value / count for name, value in zip(names, sums, strict=True)},
        "variance": to_bits**2 * (squares - count * mean**2) / max(1.0, count - 1),
        "gradient_norm": fmean(record.gradient_norm for record in good),
        "learning_rate": last.learning_rate,
        "skipped": state.skipped,
        "gamma_0": gamma_0,
        "gamma_1": gamma_1,
    }


def _peak_memory(device: torch.device) -> int:
    """Return the most bytes that were in use: on a GPU its own, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kilobytes = 1 if sys.platform == "darwin" else 1024
    return kilobytes * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _short(vdm: VDM, records: list[StepRecord]) -> str:
    """Return the mean bound of the steps since the last line of metrics, or of none yet."""
    if not records:
        return ""
    nats: Tensor = torch.stack([record.bound.total.mean() for record in records]).mean()
    return f"{float(bits_per_dim(nats, vdm.dimensions)):.2f} bits/dim"
