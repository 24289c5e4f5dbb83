"""Attack the package: kills, damaged files, hostile inputs, bad disks; count cases and faults.

A case ends well when nothing that was there is lost, no file is half of one, no value is wrong,
and what is said is one line. Reliability is quoted from the table that this prints.

    python benchmarks/attack.py --minutes 30
    python benchmarks/attack.py --only kills --seed 3 --case 412    # one case again
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

import click
import torch
from attacks import commands, corruption, disks, inputs, kills, reading
from attacks.isolation import GIBIBYTE
from attacks.tally import Fault, Share, Tally
from common import log_option, markdown, report

KINDS = ("kills", "corruption", "inputs", "disks")
TIME = {"kills": 0.5, "corruption": 0.3, "inputs": 0.1, "disks": 0.1}
"""Shares of the time; a kill costs two commands, a damaged file a fortieth of a fork."""


class Prepared(NamedTuple):
    """What cases are copies of, and what they should come to.

    Attributes:
        base: Folder of photos, runs and a compressed file.
        files: The same, with files of every kind.
        known: What every command does undisturbed.
        whole: What is read of every kind of file that is not damaged.
    """

    base: Path
    files: Path
    known: dict[str, kills.Reference]
    whole: dict[str, Any]


def prepared(
    folder: Path,
    kinds: Sequence[str] = KINDS,
    commands_: Sequence[commands.Command] = commands.COMMANDS,
    readers: Sequence[reading.Kind] = reading.KINDS,
) -> Prepared:
    """Make runs and files in a folder; look at what commands and readers do with them."""
    base, files = folder / "base", folder / "files"
    commands.prepare(base)
    known, whole = {}, {}
    if {"kills", "disks"} & {*kinds}:
        known = kills.undisturbed(base, folder / "undisturbed", commands_)
    if {"corruption", "inputs"} & {*kinds}:
        shutil.copytree(base, files)
        reading.prepare(files)
        whole = corruption.undamaged(files, folder / "undamaged", readers)
    return Prepared(base, files, known, whole)


def attacked(kind: str, at: Prepared, place: Path, share: Share) -> Tally:
    """Do the cases of one kind that a process has."""
    attacks: dict[str, Callable[[], Tally]] = {
        "kills": lambda: kills.attack(at.base, place, share, at.known),
        "corruption": lambda: corruption.attack(at.files, place, share, at.whole),
        "inputs": lambda: inputs.attack(at.files, place, share),
        "disks": lambda: disks.attack(at.base, place, share, at.known),
    }
    return attacks[kind]()


def table(tallies: dict[str, Tally]) -> str:
    """Return cases and faults of every kind and subject as a table in Markdown."""
    rows: list[list[object]] = []
    for kind, tally in tallies.items():
        answers = ", ".join(f"{name} {n}" for name, n in tally.answers.most_common())
        top = f"{tally.memory / GIBIBYTE:.2f}"
        rows.append([f"**{kind}**", tally.cases.total(), len(tally.faults), top, answers])
        for subject, n in sorted(tally.cases.items()):
            faults = sum(fault.subject == subject for fault in tally.faults)
            rows.append([subject, n, faults, "", ""])
    return markdown(["attack", "cases", "faults", "GiB at most", "what happened"], rows)


@click.command()
@click.option("--minutes", type=click.FloatRange(0.05), default=30.0, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--only", type=click.Choice(KINDS), multiple=True, help="Default: all, in turns.")
@click.option("--case", type=click.IntRange(0), help="This case alone, with --only and --seed.")
@click.option("--processes", type=click.IntRange(1), default=os.cpu_count, show_default="cores")
@click.option(
    "--folder", type=click.Path(path_type=Path), help="For the cases; default: in memory."
)
@log_option
def main(
    minutes: float,
    seed: int,
    only: tuple[str, ...],
    case: int | None,
    processes: int,
    folder: Path | None,
    log: bool,
) -> None:
    """Attack the package for some minutes; print a table, and every fault with its case."""
    kinds = only or KINDS
    torch.set_num_threads(1)
    memory = Path("/dev/shm")
    place = folder or Path(mkdtemp(prefix="attack-", dir=memory if memory.is_dir() else None))
    place.mkdir(parents=True, exist_ok=True)
    place.chmod(0o755)  # a case may be an ordinary user's
    at = prepared(place, kinds)
    tallies = {kind: Tally(kind) for kind in kinds}
    try:
        for kind in kinds:
            seconds = 60 * minutes * TIME[kind] / sum(TIME[kind] for kind in kinds)
            until = time.monotonic() + seconds
            shares = [Share(seed, i, processes, until) for i in range(processes)]
            if case is not None:
                shares = [Share(seed, case, most=1)]
            with ProcessPoolExecutor(len(shares), mp_context=get_context("fork")) as pool:
                parts = [
                    pool.submit(attacked, kind, at, place / f"{kind}-{i}", share)
                    for i, share in enumerate(shares)
                ]
                for part in parts:
                    tallies[kind].join(part.result())
            for fault in tallies[kind].faults:
                show(fault, seed)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    report(table(tallies), log=log)
    raise SystemExit(1 if any(tally.faults for tally in tallies.values()) else 0)


def show(fault: Fault, seed: int) -> None:
    """Print a fault, and the command that repeats it."""
    print(f"\n{fault.attack}, {fault.subject}: {fault.what}")
    print(f"  again: benchmarks/attack.py --only {fault.attack} --seed {seed} --case {fault.case}")
    print("".join(f"  | {line}\n" for line in fault.seen.splitlines()[-12:]), end="")


if __name__ == "__main__":
    main()
