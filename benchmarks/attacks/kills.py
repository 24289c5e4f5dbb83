"""Kills of commands that write: at a file operation, in the middle of a file, at any moment.

After a kill no file is half of one under its final name, and none that was there is lost. The same
command then ends well, with the files of a command that was never killed, and with no others.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from attacks.commands import COMMANDS, Command, copied, files, is_temporary, meanings
from attacks.isolation import SECONDS, Outcome, isolated
from attacks.operations import Operations, killed, limit_files
from attacks.tally import Share, Tally

LATER = 7200.0
"""Seconds by which files are made older before the command is run again: leftovers of other
commands are removed when they are an hour old, because somebody may still write them."""

KILLED = (-signal.SIGKILL, -signal.SIGXFSZ, -signal.SIGALRM)


class Reference(NamedTuple):
    """What a command does that is not disturbed.

    Attributes:
        operations: Number of its file operations.
        largest: Bytes of the largest file that it writes.
        seconds: It takes.
        before: Meaning of the files before it.
        after: And after it.
        outcome: What it printed.
    """

    operations: int
    largest: int
    seconds: float
    before: dict[str, Any]
    after: dict[str, Any]
    outcome: Outcome


def undisturbed(
    base: Path, place: Path, commands: Sequence[Command] = COMMANDS
) -> dict[str, Reference]:
    """Run every command in a copy of the prepared folder, and look at what it does.

    What they import is then imported in this process, so that no case has to.
    """
    found = {}
    for command in commands:
        copied(base, place, command)
        before, old = meanings(place), files(place)

        def work(command: Command = command) -> tuple[int, int, float, list[str]]:
            operations = Operations(place)
            start = time.monotonic()
            code = command.work(place)()
            return code, operations.seen, time.monotonic() - start, list(sys.modules)

        outcome = isolated(work)
        if outcome.value is None or outcome.value[0]:
            raise SystemExit(f"{command.name} does not work undisturbed:\n{outcome.said}")
        _, operations, seconds, modules = outcome.value
        new = [len(data) for name, data in files(place).items() if old.get(name) != data]
        found[command.name] = Reference(
            operations, max(new), seconds, before, meanings(place), outcome
        )
        shutil.rmtree(place)
        for name in modules:
            if name not in sys.modules:
                with suppress(Exception):
                    import_module(name)
    return found


def attack(
    base: Path,
    place: Path,
    share: Share,
    known: Mapping[str, Reference],
    commands: Sequence[Command] = COMMANDS,
) -> Tally:
    """Kill commands until the time is over.

    Args:
        base: The prepared folder.
        place: A folder for the cases of this process.
        share: Which cases.
        known: What `undisturbed` returned.
        commands: To choose from; cheap ones are chosen more often.

    Returns:
        What was found.
    """
    tally = Tally("kills")
    weights = np.array([1 / (0.3 + known[command.name].seconds) for command in commands])
    for case in share:
        rng = np.random.default_rng([share.seed, 1, case])
        command = commands[int(rng.choice(len(commands), p=weights / weights.sum()))]
        here = copied(base, place / str(case), command)
        what, seen = _case(command, known[command.name], here, rng, tally)
        tally.add(command.name, case, what, seen)
        shutil.rmtree(here, ignore_errors=True)
    return tally


def _case(
    command: Command, expected: Reference, here: Path, rng: np.random.Generator, tally: Tally
) -> tuple[str | None, str]:
    """Kill a command once to three times, then let it end; return what was wrong."""
    told = []
    original = files(here)
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        how, before, seconds = _kill(expected, here, rng)
        told.append(how)
        outcome = isolated(command.work(here), before=before, seconds=seconds)
        tally.answers["killed" if outcome.code in KILLED else "ended before the kill"] += 1
        if outcome.code not in KILLED:
            what = outcome.fault()
            if what is not None:
                return f"{what}, before it was killed {told}", outcome.said
            break
        what = hurt(expected, here, original)
        if what is not None:
            return f"after a kill {told}: {what}", outcome.said
    _grow_older(here)
    outcome = isolated(command.work(here))
    if outcome.code == 2 and "give another" in outcome.said and outcome.fault() is None:
        # one of its results is there, which is never overwritten: the user takes it away
        for path in (here / "out").iterdir():
            if not path.name.startswith("."):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        outcome = isolated(command.work(here))
    tally.memory = max(tally.memory, outcome.memory)
    what = outcome.fault(codes=(0,)) or _differs(expected.after, meanings(here))
    return (None, "") if what is None else (f"after {told} and again: {what}", outcome.said)


def _kill(expected: Reference, here: Path, rng: np.random.Generator) -> tuple[str, Any, float]:
    """Choose a kill: what it is, what arms it, and the time limit that it may be."""
    kind = rng.choice(["operation", "operation", "operation", "bytes", "moment"])
    if kind == "operation":
        number = int(rng.integers(1, expected.operations + 1))
        return (
            f"at operation {number} of {expected.operations}",
            lambda: Operations(here).before(number, killed),
            SECONDS,
        )
    if kind == "bytes":
        size = int(expected.largest * rng.random() ** 3)
        return f"at byte {size} of a file", lambda: limit_files(size, kill=True), SECONDS
    seconds = float(0.01 + rng.random() * expected.seconds)
    return f"after {seconds:.2f} s", lambda: None, seconds


def hurt(expected: Reference, here: Path, original: dict[str, bytes]) -> str | None:
    """Return what a kill has hurt: a file that is half of one, or one that is lost."""
    found = meanings(here)
    gone = [name for name in original.keys() - found.keys() if name in expected.after]
    lost = [name for name in gone if "/state/" not in name]  # of steps that are done again
    if gone and not any("/state/" in name and not is_temporary(name) for name in found):
        lost += gone
    half = [
        name
        for name, value in found.items()
        if not is_temporary(name)
        and value not in (expected.before.get(name), expected.after.get(name))
        and not _is_on_the_way(name, value, expected.before.get(name, []))
    ]
    new = expected.after.keys() - expected.before.keys()
    folders = {Path(name).parent for name in new} - {Path("out"), Path("run")}
    for folder in (folder for folder in folders if folder.parts[0] == "out"):
        there = {name for name in found if Path(name).parent == folder}
        half += (
            [f"{folder}/"]
            if there and not there >= {n for n in new if Path(n).parent == folder}
            else []
        )
    said = [f"lost: {', '.join(lost)}"] if lost else []
    said += [f"half: {', '.join(half)} ({found.get(half[0], '')!s:.200})"] if half else []
    return "; ".join(said) or None


def _is_on_the_way(name: str, value: Any, before: Any) -> bool:
    """Whether a file is neither the old nor the new one, and rightly so: whole, of another step."""
    if isinstance(value, str) and value.startswith("not whole"):
        return False
    if name.endswith(".jsonl"):  # lines of steps that are done again go from metrics alone
        return "metrics" in name or set(before) <= set(value)
    return name.endswith((".safetensors", ".lock", "config.json"))


def _differs(expected: dict[str, Any], found: dict[str, Any]) -> str | None:
    """Return how the files at the end differ from those of a command that was never killed."""
    left = [name for name in found if is_temporary(name)]
    if left:
        return f"left behind: {', '.join(left)}"
    names = expected.keys() ^ found.keys()
    if names:
        return f"there or not there: {', '.join(sorted(names))}"
    other = [name for name, value in expected.items() if found[name] != value]
    return f"other contents: {', '.join(other)}" if other else None


def _grow_older(here: Path) -> None:
    then = time.time() - LATER
    for path in here.rglob(".*"):
        os.utime(path, (then, then))
