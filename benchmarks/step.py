"""One training, sampling and evaluation step, against other code with the same network and batch.

    python -m pip install --no-deps -r benchmarks/requirements.txt
    python benchmarks/step.py [--network paper] [--network diffusers] … [--repeats 20]

For each network there is a loop that its own package has, or, for the paper's, one as published
code writes it: attention and the 256 levels of the decoder as full tensors, eager, dropout on. The
others are this package's. Every loop is a process of its own, with its own settings of memory; they
take their steps in turn, one at a time. Peak memory is the growth of a process over its size before
the first step.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import click
import torch
from common import log_option, markdown, median_ratio, peak, report, resident, threads_option
from loops import LOOPS


class Loop:
    """A process that makes one step for each line it is sent."""

    def __init__(self, network: str, kind: str, threads: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "loop", network, kind, "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, line: str) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@click.group(invoke_without_command=True)
@click.option("--network", "networks", multiple=True, type=click.Choice(list(LOOPS)))
@click.option("--repeats", type=click.IntRange(1), default=20, show_default=True)
@threads_option
@log_option
@click.pass_context
def main(
    context: click.Context, networks: tuple[str, ...], repeats: int, threads: int, log: bool
) -> None:
    """Time the steps of every loop around every NETWORK."""
    if context.invoked_subcommand is not None:
        return
    torch.set_num_threads(threads)
    rows = [row for name in networks or LOOPS for row in compared(name, repeats, threads)]
    header = ["network", "loop", "training", "sampling", "evaluation", "peak memory"]
    note = "Milliseconds (median) and the ratio to the first loop (median of neighbouring steps)."
    table = f"{note}\n\n{markdown(header, rows)}"
    report(table, log=log)


def compared(network: str, repeats: int, threads: int) -> Iterator[list[object]]:
    """Yield a row for every loop around a network."""
    loops = {kind: Loop(network, kind, threads) for kind in LOOPS[network]}
    times: dict[str, dict[str, list[float]]] = {kind: {} for kind in loops}
    memory = {}
    for step in ("training", "sampling", "evaluation"):
        for loop in loops.values():
            for _ in range(min(3, repeats)):
                loop.ask(step)
        for _ in range(repeats):
            for kind, loop in loops.items():
                times[kind].setdefault(step, []).append(loop.ask(step))
        if step == "training":
            memory = {kind: loop.ask("memory") for kind, loop in loops.items()}
    for loop in loops.values():
        loop.close()
    reference = times[next(iter(loops))]
    for kind, found in times.items():
        cells = [
            f"{1000 * statistics.median(found[s]):.1f} ({median_ratio(found[s], reference[s]):.3f})"
            for s in found
        ]
        yield [network, kind, *cells, f"{memory[kind] / 2**20:.0f} MiB"]


@main.command("loop")
@click.argument("network")
@click.argument("kind")
@threads_option
def loop_command(network: str, kind: str, threads: int) -> None:
    """Make a step for each line of standard input, and print its seconds (used by the parent)."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    steps = LOOPS[network][kind]()
    size = resident()
    for line in sys.stdin:
        if line.strip() == "memory":
            print(peak() - size, flush=True)
            continue
        begin = time.perf_counter()
        steps[line.strip()]()
        print(time.perf_counter() - begin, flush=True)


if __name__ == "__main__":
    main()
