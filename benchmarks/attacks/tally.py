"""What an attack found: cases by what was attacked, and every fault with how to see it again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple


class Fault(NamedTuple):
    """What was wrong in a case.

    Attributes:
        attack: Kind of the attack.
        subject: What was attacked: a command, a kind of file.
        case: Number of the case; with the seed it is the same case again.
        what: Was wrong, in one line.
        seen: What was printed, or where the case is; for whoever mends it.
    """

    attack: str
    subject: str
    case: int
    what: str
    seen: str = ""


class Tally:
    """Counts cases and collects faults.

    Attributes:
        attack: Kind of the attack.
        cases: Subject → number of cases.
        answers: What right answers there were, as "refused" or "went on" → number.
        faults: In the order in which they came.
        memory: The most bytes that a case took above what it began with.
    """

    def __init__(self, attack: str) -> None:
        self.attack = attack
        self.cases: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.faults: list[Fault] = []
        self.memory = 0

    def add(self, subject: str, case: int, what: str | None, seen: str = "") -> None:
        """Count a case; `what` says what was wrong in it."""
        self.cases[subject] += 1
        if what is not None:
            self.faults.append(Fault(self.attack, subject, case, what, seen[-4000:]))

    def join(self, other: Tally) -> None:
        """Add what another found."""
        self.cases += other.cases
        self.answers += other.answers
        self.faults += other.faults
        self.memory = max(self.memory, other.memory)


@dataclass(frozen=True)
class Share:
    """Which cases a process does: every `step`-th from `first` on, until its time is over.

    Attributes:
        seed: From which, with the number of a case, all its draws follow.
        first: Number of the first case.
        step: Between two cases.
        until: Time (`time.monotonic`) after which no case is begun.
        most: Number of cases after which it ends, too.
    """

    seed: int
    first: int = 0
    step: int = 1
    until: float = float("inf")
    most: int | None = None

    def __iter__(self) -> Iterator[int]:
        """Yield the numbers of the cases."""
        case, done = self.first, 0
        while time.monotonic() < self.until and (self.most is None or done < self.most):
            yield case
            case, done = case + self.step, done + 1

    def batches(self, size: int) -> Iterator[list[int]]:
        """Yield the numbers of the cases, up to `size` of them at once."""
        numbers = iter(self)
        while batch := list(islice(numbers, size)):
            yield batch
