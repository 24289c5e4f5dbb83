"""Work in a process of its own, with limits: what it did, said and took, however it ended.

The process is a fork of this one, so that a case costs no import of torch.
"""

from __future__ import annotations

import os
import pickle
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from variational_diffusion.cli import run as vdm

GIBIBYTE = 2**30
SECONDS = 120.0
"""Time after which a case counts as hanging. Other programs may keep the machine busy."""
ROOM = 6 * GIBIBYTE
"""Address space of a case above that of this process: a case that asks for everything does not take
the machine with it."""


class Outcome(NamedTuple):
    """How work ended.

    Attributes:
        code: Exit code, or minus the number of the signal that ended it.
        value: What the work returned; None where it did not.
        printed: To standard output.
        said: To standard error, tracebacks included.
        memory: Bytes of the highest level of memory above that at the start; -1 where unknown.
    """

    code: int
    value: Any
    printed: str
    said: str
    memory: int

    @property
    def hung(self) -> bool:
        """Whether the time limit ended it."""
        return self.code == -signal.SIGALRM

    def fault(self, *, codes: tuple[int, ...] = (0, 2)) -> str | None:
        """Return what is wrong with how a command or a call ended; None if nothing is.

        codes: which exit codes are right. 2 also asks for a last line that begins with "vdm: ".
        """
        if self.hung:
            return "hangs"
        if "Traceback (most recent call last)" in self.said:
            return "traceback"
        if self.code not in codes:
            return f"exit code {self.code}"
        lines = [line for line in self.said.splitlines() if line.startswith("vdm: ")]
        if self.code == 2 and len(lines) != 1:
            return f"{len(lines)} lines for exit code 2"
        if self.memory > GIBIBYTE:
            return f"{self.memory / GIBIBYTE:.1f} GiB above what it began with"
        return None


def command(*arguments: str) -> Callable[[], int]:
    """Return work that runs a command of the command line."""
    return lambda: vdm(list(arguments))


def isolated(
    work: Callable[[], Any],
    *,
    before: Callable[[], None] = lambda: None,
    seconds: float = SECONDS,
) -> Outcome:
    """Do work in a child process.

    Args:
        work: Returns an exit code, or any other value, which is then that of the outcome.
        before: Called in the child before the work; may arm what will end it.
        seconds: Time limit.

    Returns:
        How it ended.
    """

    def armed() -> Any:
        before()
        return work()

    return isolated_each([armed], seconds=seconds)[0]


def isolated_each(works: Sequence[Callable[[], Any]], *, seconds: float = SECONDS) -> list[Outcome]:
    """Do works one after the other, in a child process that is made anew when one ends it.

    Args:
        works: As in `isolated`; one must not depend on those before it.
        seconds: Time limit of each.

    Returns:
        How each ended.
    """
    found: list[Outcome] = []
    while len(found) < len(works):
        found += _done_by_a_child(works[len(found) :], seconds)
    return found


def _done_by_a_child(works: Sequence[Callable[[], Any]], seconds: float) -> list[Outcome]:
    """Return the outcomes of works up to one that ended the child, or of all."""
    with TemporaryDirectory(prefix="attack-", ignore_cleanup_errors=True) as folder:
        place = Path(folder)
        place.chmod(0o777)  # the child may give up its powers
        child = os.fork()
        if child == 0:
            _in_child(works, seconds, place)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        printed, said = ((place / name).read_bytes() for name in ("printed", "said"))
        found, starts = [], (0, 0)
        with (place / "records").open("rb") as file, suppress(EOFError, pickle.UnpicklingError):
            while True:
                code, value, memory, ends = pickle.load(file)
                texts = (
                    text[start:end].decode(errors="replace")
                    for text, start, end in zip((printed, said), starts, ends, strict=True)
                )
                found.append(Outcome(code, value, *texts, memory))
                starts = ends
        if len(found) < len(works):
            texts = (
                text[start:].decode(errors="replace")
                for text, start in zip((printed, said), starts, strict=True)
            )
            found.append(Outcome(status, None, *texts, -1))
        return found


def _in_child(works: Sequence[Callable[[], Any]], seconds: float, place: Path) -> None:
    """Do the works and end the process; nothing that this process set up is the child's to end."""
    try:
        streams = [(place / name).open("w", buffering=1) for name in ("printed", "said")]
        for number, stream in enumerate(streams, 1):
            os.dup2(stream.fileno(), number)
        sys.stdout, sys.stderr = streams
        records = (place / "records").open("wb", buffering=0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + ROOM, hard))
        for work in works:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            start = _status("VmRSS")
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # the highest level begins anew
            try:
                value = work()
                code = value if isinstance(value, int) else 0
            except BaseException:
                value, code = None, 1
                traceback.print_exc()
            grown = _status("VmHWM") - start
            for stream in streams:
                stream.flush()
            ends = tuple(os.fstat(stream.fileno()).st_size for stream in streams)
            records.write(pickle.dumps((code, value, grown, ends)))
    finally:
        os._exit(1)


def _status(name: str) -> int:
    """Return a size of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
