"""What the benchmarks share: a description of the machine, timing, and the log."""

from __future__ import annotations

import platform
import resource
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
import torch

from variational_diffusion.cli.shared.options import (
    data_config,
    data_options,
    parsed_settings,
    training_speed_options,
)
from variational_diffusion.config import RunConfig
from variational_diffusion.data import Dataset, open_dataset
from variational_diffusion.machine.execution import Execution
from variational_diffusion.machine.memory import keep_freed_memory
from variational_diffusion.presets import configure

Command = TypeVar("Command", bound=Callable[..., Any])

LOG = Path(__file__).parent.parent / "experiments" / "LOG.md"

threads_option = click.option(
    "--threads", type=click.IntRange(1), default=2, show_default=True, help="CPU threads of torch."
)
log_option = click.option(
    "--log/--no-log", default=True, help="Append what was found to experiments/LOG.md."
)


def run_options(command: Command) -> Command:
    """Add DATA and the options that make a training run of it; `opened` takes them."""
    for parameter in (
        data_options,
        log_option,
        threads_option,
        training_speed_options,
        click.option("--set", "settings", multiple=True, metavar="SECTION.FIELD=VALUE"),
        click.option("--network", help="Default: the preset's."),
        click.option("--preset", help="Default: by the data."),
        click.argument("data"),
    ):
        command = parameter(command)
    return command


def opened(data: str, options: dict[str, Any]) -> tuple[Dataset, Callable[..., RunConfig]]:
    """Return the data, and settings → configuration of a run, from what `run_options` added."""
    source = data_config(data, options)
    dataset = open_dataset(source)
    chosen = parsed_settings(options["settings"])

    def configured(**training: object) -> RunConfig:
        fixed = {f"training.{name}": value for name, value in training.items()}
        return configure(
            source,
            dataset,
            preset=options["preset"],
            network=options["network"],
            settings={**chosen, **fixed},
        )

    return dataset, configured


def device_of(threads: int | None, name: str = "auto") -> torch.device:
    """Set the number of CPU threads for this process; return the device."""
    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    return Execution(name).target()


def machine() -> str:
    """Return the processor, threads, versions and commit that a figure belongs to, in one line."""
    accelerator = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{_processor()}{accelerator}, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}, commit {_commit()}"
    )


def report(table: str, *, log: bool) -> None:
    """Print a table in Markdown; with `log`, append it to the log: date, command and machine."""
    print(f"\n{table}")
    if log:
        today = datetime.now(UTC).date()
        command = shlex.join([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
        with LOG.open("a", encoding="utf-8") as file:
            file.write(f"\n### {today} `python {command}`\n\n{machine()}\n\n{table}\n")


def markdown(header: list[str], rows: list[list[object]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def median_ratio(times: list[float], reference: list[float]) -> float:
    """Return the median of the ratios of calls that were made one after the other."""
    return statistics.median(a / b for a, b in zip(times, reference, strict=True))


def peak() -> int:
    """Return the largest size that this process has had in memory, in bytes; Linux only.

    getrusage's maximum begins with that of the process which started this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def resident() -> int:
    """Return the size of this process in memory, in bytes; Linux only."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str:
    answer = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=LOG.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout.strip() or "unknown"
