"""Disks that are full, may only be read, or fail once: one line, the figure, and nothing lost.

A full and a read-only disk are a file system in memory, where this process may mount one. Elsewhere
the same errors are made at the file operations of the process.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np

from attacks.commands import COMMANDS, Command, copied, figure, files, is_temporary, meanings
from attacks.isolation import Outcome, isolated
from attacks.kills import Reference, hurt
from attacks.operations import Operations, failing, limit_files
from attacks.tally import Share, Tally

SIZE = 64 * 2**20
"""Bytes of the file system in memory."""
NOBODY = 65534
WAYS = ("full", "read-only", "forbidden", "fails on", "fails once", "limited")


def attack(
    base: Path,
    place: Path,
    share: Share,
    known: Mapping[str, Reference],
    commands: Sequence[Command] = COMMANDS,
) -> Tally:
    """Run commands on bad disks until the time is over; arguments as in `kills.attack`."""
    tally = Tally("disks")
    with mounted(place / "disk") as disk:
        weights = np.array([1 / (0.3 + known[command.name].seconds) for command in commands])
        for case in share:
            rng = np.random.default_rng([share.seed, 4, case])
            command = commands[int(rng.choice(len(commands), p=weights / weights.sum()))]
            way = WAYS[int(rng.integers(len(WAYS)))]
            here = (disk or place) / "case"
            what, seen = _case(command, known[command.name], base, here, way, disk, rng)
            tally.answers[way] += 1
            tally.add(command.name, case, what and f"{way}: {what}", seen)
            shutil.rmtree(here)
    return tally


def _case(
    command: Command,
    expected: Reference,
    base: Path,
    here: Path,
    way: str,
    disk: Path | None,
    rng: np.random.Generator,
) -> tuple[str | None, str]:
    copied(base, here, command)
    original = files(here)
    number = int(rng.integers(1, expected.operations + 1))
    error = int(rng.choice([errno.ENOSPC, errno.EDQUOT, errno.EROFS]))
    free = int(rng.choice([0, rng.integers(expected.largest + 4096)]))
    size = int(rng.integers(2**16, max(expected.largest, 2**16) + 1))
    fail = failing({"full": errno.ENOSPC, "read-only": errno.EROFS}.get(way, error))
    first = 1 if way == "read-only" else number
    around: AbstractContextManager[None] = nullcontext()

    def before() -> None:
        Operations(here).before(first, fail, every=way != "fails once")

    if way == "full" and disk:
        around, before = _full(disk, free), _nothing
    elif way == "read-only" and disk:
        around, before = _read_only(disk), _nothing
    elif way == "forbidden":
        around, before = _forbidden(here), _give_up_powers
    elif way == "limited":
        before = partial(limit_files, size, kill=False)
    with around:
        outcome = isolated(command.work(here), before=before)
    what = _wrong(command, expected, here, original, outcome)
    told = f"operation {number}, {errno.errorcode[error]}, {free} bytes free, limit {size}"
    return what and f"{what} ({told})", outcome.said


def _wrong(
    command: Command,
    expected: Reference,
    here: Path,
    original: dict[str, bytes],
    outcome: Outcome,
) -> str | None:
    """Return what is wrong with how a command ended on a bad disk."""
    what = outcome.fault() or hurt(expected, here, original)
    if what is not None:
        return what
    left = [name for name in files(here) if is_temporary(name)]
    if left:
        return f"left behind: {', '.join(left)}"
    if outcome.code == 0:
        found = meanings(here)
        for name in expected.after.keys() - expected.before.keys():
            if name.startswith("out/") and found.get(name) != expected.after[name]:
                return f"exit code 0 without '{name}'"
    shown, right = figure(command, outcome), figure(command, expected.outcome)
    if right is not None and shown != right and not _refused_before_work(outcome):
        return f"the figure is not shown ({right}, here {shown})"
    return None


def _refused_before_work(outcome: Outcome) -> bool:
    """Whether a target that cannot be written was found before any work."""
    return outcome.code == 2 and "cannot be written" in outcome.said and not outcome.printed


@contextmanager
def mounted(place: Path) -> Iterator[Path | None]:
    """Mount a file system in memory; None where that is not allowed."""
    place.mkdir(parents=True)
    answer = _mount("-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place))
    if answer:
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def _mount(*arguments: str) -> int:
    if shutil.which("mount") is None:
        return 1
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode


@contextmanager
def _full(disk: Path, free: int) -> Iterator[None]:
    """Fill a file system but for some bytes."""
    filler = disk / "filler"
    room = os.statvfs(disk)
    with filler.open("wb") as file:
        left = room.f_bavail * room.f_frsize - free // room.f_frsize * room.f_frsize
        os.posix_fallocate(file.fileno(), 0, max(1, left))
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def _read_only(disk: Path) -> Iterator[None]:
    _mount("-o", "remount,ro", str(disk))
    try:
        yield
    finally:
        _mount("-o", "remount,rw", str(disk))


@contextmanager
def _forbidden(here: Path) -> Iterator[None]:
    """Take the right to write from all folders and files."""
    paths = [here, *here.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        yield
    finally:
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)


def _nothing() -> None:
    pass


def _give_up_powers() -> None:
    """Become an ordinary user, whom permissions concern."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
