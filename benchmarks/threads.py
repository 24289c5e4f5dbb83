"""The number of threads that follows the machine, against fixed ones, on idle and busy machines.

    python benchmarks/threads.py [--seconds 8] [--rounds 3]

Every measurement is a process of its own that works for so many seconds; the settings take turns.
Programs beside it are endless loops. The quota is that of a control group, which takes root and
version 1 or 2 of control groups; where none can be made, the row is left out and says so.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
import torch
from common import log_option, markdown, report

SETTINGS = ("1", "all", "auto")
CONDITIONS = ("idle", "1 busy program", "as many busy programs as cores", "quota of 1 core")
WORK = ("train", "evaluate")


@click.group(invoke_without_command=True)
@click.option("--seconds", type=click.FloatRange(1), default=8.0, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--data", default="digits", show_default=True, help="digits or fashion-mnist.")
@log_option
@click.pass_context
def main(context: click.Context, seconds: float, rounds: int, data: str, log: bool) -> None:
    """Count steps a second with fixed numbers of threads and with the one that follows."""
    if context.invoked_subcommand is not None:
        return
    rows: list[list[object]] = []
    for condition in CONDITIONS:
        for work in WORK:
            rates: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
            for _ in range(rounds):
                for setting in SETTINGS:
                    rates[setting].append(measured(condition, work, setting, data, seconds))
            medians = {setting: statistics.median(found) for setting, found in rates.items()}
            best = max(medians["1"], medians["all"])
            shares = [medians["auto"] / best, medians["auto"] / medians["all"]]
            row = [f"{medians[setting]:.1f}" for setting in SETTINGS]
            rows.append([condition, work, *row, *(f"{share:.2f}" for share in shares)])
            click.echo(" | ".join(map(str, rows[-1])))
    header = ["machine", "work", *SETTINGS, "auto / best fixed", "auto / all"]
    note = f"Batches a second, medians of {rounds} rounds of {seconds:g} s, data {data}."
    report(f"{note}\n\n{markdown(header, rows)}", log=log)


def measured(condition: str, work: str, setting: str, data: str, seconds: float) -> float:
    """Return the batches a second of a process under a condition."""
    busy = {CONDITIONS[1]: 1, CONDITIONS[2]: os.cpu_count() or 1}.get(condition, 0)
    with ExitStack() as stack:
        for _ in range(busy):
            stack.enter_context(a_busy_program())
        join = stack.enter_context(a_quota()) if condition == CONDITIONS[3] else ()
        words = [sys.executable, __file__, "work", work, setting, data, str(seconds), *join]
        environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        done = subprocess.run(
            words,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=60 + 20 * seconds,
        )
    return float(done.stdout)


@contextmanager
def a_busy_program() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def a_quota() -> Iterator[list[str]]:
    """Make a control group of one core; yield the file that a process writes its number into."""
    root = Path("/sys/fs/cgroup")
    version_2 = (root / "cgroup.controllers").exists()
    group = (root if version_2 else root / "cpu") / f"vdm-threads-{os.getpid()}"
    try:
        group.mkdir()
        if version_2:
            (group / "cpu.max").write_text("100000 100000")
        else:
            (group / "cpu.cfs_quota_us").write_text("100000")
    except OSError as error:
        raise click.ClickException(f"no control group with a quota can be made: {error}") from error
    try:
        yield [str(group / "cgroup.procs")]
    finally:
        group.rmdir()


@main.command("work")
@click.argument("work", type=click.Choice(WORK))
@click.argument("setting", type=click.Choice(SETTINGS))
@click.argument("data")
@click.argument("seconds", type=float)
@click.argument("group", required=False)
def work_command(work: str, setting: str, data: str, seconds: float, group: str | None) -> None:
    """Print the batches a second of one kind of work."""
    if group is not None:
        Path(group).write_text(str(os.getpid()))
    from variational_diffusion.machine.execution import Execution

    threads = {"1": 1, "all": os.cpu_count(), "auto": None}[setting]
    with Execution("cpu", threads, precision="auto").begun():
        batches = training(data) if work == "train" else evaluation(data)
        next(batches)  # the first is of another kind: memory is found
        start, count = time.monotonic(), 0
        for _ in batches:
            count += 1
            if time.monotonic() - start > seconds:
                break
        click.echo(count / (time.monotonic() - start))


def training(data: str) -> Iterator[None]:
    from variational_diffusion import build
    from variational_diffusion.run.training import configuration
    from variational_diffusion.training.steps import TrainingState, fit

    asked = configuration(data, steps=10**6)
    state = TrainingState.start(build(asked.config.model), asked.config.training)
    x = asked.dataset.splits["train"].__getitems__(range(asked.config.training.batch_size))
    for _ in fit(state, [x], asked.config.training):
        yield


def evaluation(data: str) -> Iterator[None]:
    from variational_diffusion import build
    from variational_diffusion.run.training import configuration

    asked = configuration(data, steps=10**6)
    vdm = build(asked.config.model).eval()
    x = asked.dataset.splits["train"].__getitems__(range(200))
    while True:
        with torch.no_grad():
            vdm.vlb(x)
        yield


if __name__ == "__main__":
    main()
