"""What the benchmarks share: a description of the machine, timing, and the log."""

from __future__ import annotations

import contextlib
import math
import platform
import resource
import statistics
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
import torch

LOG = Path(__file__).parent.parent / "experiments" / "LOG.md"

threads_option = click.option(
    "--threads", type=click.IntRange(1), default=2, show_default=True, help="CPU threads of torch."
)
log_option = click.option(
    "--log/--no-log", default=True, help="Append what was found to experiments/LOG.md."
)


def machine() -> str:
    """Return the processor, threads, versions and commit that a figure belongs to, in one line."""
    accelerator = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{_processor()}{accelerator}, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}, commit {_commit()}"
    )


def report(command: str, table: str, *, log: bool) -> None:
    """Print a table in Markdown; with `log`, append it to the log, dated, with the machine."""
    print(f"\n{table}")
    if log:
        today = datetime.now(UTC).date()
        with LOG.open("a", encoding="utf-8") as file:
            file.write(f"\n### {today} `{command}`\n\n{machine()}\n\n{table}\n")


def markdown(header: list[str], rows: list[list[object]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def median_ratio(times: list[float], reference: list[float]) -> float:
    """Return the median of the ratios of calls that were made one after the other."""
    return statistics.median(a / b for a, b in zip(times, reference, strict=True))


@contextlib.contextmanager
def peak_growth() -> Iterator[list[float]]:
    """Measure by how many bytes this process grows, at most, inside; Linux only."""
    before = resident()
    found: list[float] = [math.nan]
    yield found
    found[0] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


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
