"""How many threads of a CPU compute: as many as pay at the moment.

Threads of OpenMP wait for each other after every operation. Where another program holds a core, or
a container may use less than it sees, the others wait for the one that is not running: two threads
were 2 to 50 times slower than one. No setting of their waiting is right for idle and busy machines
alike (docs/performance.md). So the number follows the machine: it is measured over the first steps
of a piece of work, a lower one is tried when steps become slow, and a higher one when processors
are idle.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import psutil
import torch

from variational_diffusion.errors import InputError
from variational_diffusion.machine.distributed import launched

VARIABLE = "VDM_THREADS"
"""Environment variable: the number of threads where none is given."""

_UNITS, _SECONDS = 3, 0.1  # of work, and of time, that a number of threads is tried for
_GAIN = 0.97  # of the time of fewer threads that more threads may take, at most
_SLOW = 1.2  # times what a unit of work took when its number of threads was chosen: try fewer
_PATIENCE, _LONGEST = 1.0, 300.0  # seconds until more threads are tried: at first, and at most
_IDLE = 0.7  # share of the processors for more threads that must be idle before they are tried

_following: ContextVar[Follower | None] = ContextVar("threads", default=None)


def allowed() -> int:
    """Return how many threads this process can run at once, one or more.

    The least of its processors, of those that it is bound to, and of the quota of its control
    groups (cpu.max, or cpu.cfs_quota_us of version 1), rounded down.
    """
    known = [os.cpu_count() or 1]
    if hasattr(os, "sched_getaffinity"):
        known.append(len(os.sched_getaffinity(0)))
    quota = cpu_quota()
    if quota is not None:
        known.append(math.floor(quota))
    return max(1, min(known))


def cpu_quota(
    proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> float | None:
    """Return how many processors' time the control groups of this process give it; None: all."""
    try:
        lines = proc.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return None
    found = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        for place in (Path(group), *Path(group).parents):
            inside = place.relative_to("/") if place.is_absolute() else place
            if controllers == "":
                found += _limit(root / inside / "cpu.max", None)
            elif "cpu" in controllers.split(","):
                folder = root / "cpu" / inside
                found += _limit(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")
    return min(found, default=None)


def _limit(quota: Path, period: Path | None) -> list[float]:
    """Return the processors of one control group, or nothing where it has no limit."""
    try:
        words = quota.read_text().split() + ([] if period is None else period.read_text().split())
        time_given, of = map(float, words)
    except (OSError, ValueError):  # not there; "max"
        return []
    return [time_given / of] if time_given > 0 and of > 0 else []


def from_environment() -> int | None:
    """Return the number of threads that `VDM_THREADS` asks for; None where it is not set."""
    value = os.environ.get(VARIABLE, "").strip()
    if not value:
        return None
    if not value.isdecimal() or int(value) < 1:
        raise InputError(f"{VARIABLE} = {value!r}: give a whole number from 1 on, or unset it")
    return int(value)


@contextmanager
def computing_with(threads: int | None, *, follow: bool) -> Iterator[None]:
    """Compute with so many threads; afterwards the number is what it was.

    threads: None: what `VDM_THREADS` says; without it, torch's number where OMP_NUM_THREADS sets
        one, and as many as are `allowed` otherwise.
    follow: whether that last number may follow the machine, in `paced` work.
    """
    before = torch.get_num_threads()
    wanted = threads or from_environment()
    follower = None
    if wanted is None and "OMP_NUM_THREADS" not in os.environ:
        wanted = min(before, max(1, allowed() // launched()))
        if follow and wanted > 1:
            follower = Follower(wanted)
    token = _following.set(follower)
    try:
        if wanted is not None:
            torch.set_num_threads(wanted)
        yield
    finally:
        torch.set_num_threads(before)
        try:
            _following.reset(token)
        except ValueError:  # a generator that is closed in another context than it began in
            _following.set(None)


@contextmanager
def paced(*work: Hashable) -> Iterator[None]:
    """Time a unit of work, of which there are many alike, and let it have the threads that pay.

    work: what units that take the same time have in common, such as the shape of a batch. Nothing
    happens outside of `computing_with(…, follow=True)` and within another unit.
    """
    follower = _following.get()
    if follower is None:
        yield
        return
    token = _following.set(None)
    try:
        with follower.unit(work):
            yield
    finally:
        _following.reset(token)


class Follower:
    """Chooses the number of threads for each kind of work.

    most: threads. clock: in seconds. use: is told the number to compute with. busy: how many
    threads of others run. idle: how many processors were idle lately.
    """

    def __init__(
        self,
        most: int,
        *,
        clock: Callable[[], float] = time.perf_counter,
        use: Callable[[int], None] = torch.set_num_threads,
        busy: Callable[[], int] | None = None,
        idle: Callable[[], float] | None = None,
    ) -> None:
        self._clock, self._use = clock, use
        self._busy, self._idle = busy or others_running, idle or idle_processors()
        self._counts = [most >> i for i in range(most.bit_length())]  # most, its half, …, 1
        self._kinds: dict[Hashable, _Choice] = {}
        self._now: int | None = None

    @contextmanager
    def unit(self, kind: Hashable) -> Iterator[None]:
        """Compute with the threads chosen for a kind of work, and learn from the time it takes."""
        choice = self._kinds.get(kind)
        if choice is None:
            choice = self._kinds[kind] = _Choice(self._counts, self._busy())
        if self._now != choice.threads:
            self._use(choice.threads)
            self._now = choice.threads
        start = self._clock()
        yield
        end = self._clock()
        choice.took(end - start, end, self._idle)


class _Choice:
    """The number of threads for one kind of work: the best of those tried, and the one on trial."""

    def __init__(self, counts: list[int], busy: int) -> None:
        self._counts = counts
        fitting = (i for i, count in enumerate(counts) if count <= counts[0] - busy)
        self._best = self._tried = next(fitting, len(counts) - 1)
        self._took: float | None = None  # by a unit with the best number
        self._units: list[float] = []
        self._warm = False
        self._patience = _PATIENCE
        self._again = 0.0  # when more threads are tried

    @property
    def threads(self) -> int:
        return self._counts[self._tried]

    def took(self, seconds: float, now: float, idle: Callable[[], float]) -> None:
        if not self._warm:  # the first unit with another number wakes threads and finds memory
            self._warm = True
            return
        self._units.append(seconds)
        if len(self._units) < _UNITS or sum(self._units) < _SECONDS:
            return
        mean = sum(self._units) / len(self._units)
        self._units.clear()
        if self._tried != self._best:
            self._compare(mean, now)
        elif self._took is None or mean > _SLOW * self._took:
            self._took = mean
            self._wait(now)
            self._try(self._best + 1)
        else:
            self._took = min(self._took, mean)
            if now > self._again and self._best > 0:
                self._wait(now)
                more = self._counts[self._best - 1] - self._counts[self._best]
                if idle() > _IDLE * more:
                    self._try(self._best - 1)

    def _compare(self, mean: float, now: float) -> None:
        """Take the number on trial if it is better than the best, and try further; or go back."""
        assert self._took is not None
        step = self._tried - self._best
        if _GAIN * mean < self._took if step > 0 else mean < _GAIN * self._took:
            self._best, self._took, self._patience = self._tried, mean, _PATIENCE
            self._try(self._best + step)
            return
        if step < 0:
            self._patience = min(2 * self._patience, _LONGEST)
        self._wait(now)
        self._try(self._best)

    def _try(self, index: int) -> None:
        if index != self._tried and 0 <= index < len(self._counts):
            self._tried, self._warm = index, False

    def _wait(self, now: float) -> None:
        self._again = now + self._patience


def others_running() -> int:
    """Return how many threads of other programs run or wait for a processor; 0: not known."""
    try:
        with open("/proc/loadavg", encoding="ascii") as file:
            running = int(file.read().split()[3].partition("/")[0])
        states = [
            task.read_text(encoding="utf-8", errors="replace").rpartition(") ")[2][0]
            for task in Path("/proc/self/task").glob("*/stat")
        ]
    except (OSError, ValueError, IndexError):  # not Linux; a thread that has just ended
        return 0
    return max(0, running - states.count("R"))


def idle_processors() -> Callable[[], float]:
    """Return a function: how many processors were idle, of this process's, since its last call."""
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None

    def idle_seconds() -> float:
        times = psutil.cpu_times(percpu=True)
        return sum(each.idle for i, each in enumerate(times) if mine is None or i in mine)

    before, at, found = idle_seconds(), time.monotonic(), 0.0

    def idle() -> float:
        nonlocal before, at, found
        now = time.monotonic()
        if now - at > _SECONDS:
            last, before = before, idle_seconds()
            found, at = (before - last) / (now - at), now
        return found

    return idle
