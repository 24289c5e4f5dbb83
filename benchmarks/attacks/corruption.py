"""Damaged files: each is refused in one line, or read as it was, or, without digests, in bounds."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attacks import reading
from attacks.isolation import isolated_each
from attacks.reading import KINDS, Kind
from attacks.tally import Share, Tally

PAGE = 512
TOGETHER = 40
"""Cases in one child process, for the costs of a fork."""


def undamaged(base: Path, place: Path, kinds: Sequence[Kind] = KINDS) -> dict[str, Any]:
    """Return what is read of every kind where nothing is damaged, by its name."""
    copies = [_copy(kind, base, place / str(number))[0] for number, kind in enumerate(kinds)]
    works = [reading.reader(kind, path) for kind, path in zip(kinds, copies, strict=True)]
    found = {}
    for kind, outcome in zip(kinds, isolated_each(works), strict=True):
        if outcome.code or outcome.value[0] != "read":
            raise SystemExit(f"{kind.name} cannot be read: {outcome.value} {outcome.said}")
        found[kind.name] = outcome.value[1]
    shutil.rmtree(place)
    return found


def _copy(kind: Kind, base: Path, here: Path) -> tuple[Path, Path]:
    """Copy what belongs to a kind; return where it is, and the folder that stands for `base`."""
    here.mkdir(parents=True)
    for path in (
        wholes := [path for part in kind.whole.split() for path in sorted(base.glob(part))]
    ):
        target = here / path.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if path.is_dir() else shutil.copy2)(path, target)
    several = len(kind.whole.split()) > 1
    return here if several else here / wholes[0].relative_to(base), here


def attack(
    base: Path, place: Path, share: Share, whole: Mapping[str, Any], kinds: Sequence[Kind] = KINDS
) -> Tally:
    """Damage files until the time is over.

    Args:
        base: The prepared folder.
        place: A folder for the cases of this process.
        share: Which cases.
        whole: What `undamaged` returned.
        kinds: Of files, taken in turns.

    Returns:
        What was found.
    """
    tally = Tally("corruption")
    for cases in share.batches(TOGETHER):
        chosen = [kinds[case % len(kinds)] for case in cases]
        prepared = [
            _damaged(kind, base, place / str(case), np.random.default_rng([share.seed, 2, case]))
            for kind, case in zip(chosen, cases, strict=True)
        ]
        works = [
            reading.reader(kind, path) for kind, (path, _) in zip(chosen, prepared, strict=True)
        ]
        outcomes = isolated_each(works, seconds=reading.SECONDS)
        for case, kind, (_, how), outcome in zip(cases, chosen, prepared, outcomes, strict=True):
            what = reading.fault(kind, outcome, whole[kind.name])
            tally.memory = max(tally.memory, outcome.memory)
            tally.answers[outcome.value[0] if outcome.value else "no answer"] += 1
            seen = f"{outcome.said}\n{outcome.value}"
            tally.add(kind.name, case, what and f"{how}: {what}", seen)
            shutil.rmtree(place / str(case), ignore_errors=True)
    return tally


def _damaged(kind: Kind, base: Path, here: Path, rng: np.random.Generator) -> tuple[Path, str]:
    """Copy what belongs to a kind and damage its file; return where it is, and how."""
    path, root = _copy(kind, base, here)
    victims = sorted(root.glob(kind.file))
    victim = path if path.is_file() else victims[int(rng.integers(len(victims)))]
    # a file that the user names is what was named, and lines of journals do not name their run
    alone = victim == path or kind.file == "photos.vdmz" or victim.suffix == ".jsonl"
    return path, damage(victim, rng, base, swap=kind.answer == "any" or not alone)


def damage(path: Path, rng: np.random.Generator, base: Path, *, swap: bool = True) -> str:
    """Damage a file; return how. swap: whether another file may stand in its place."""
    data = bytearray(path.read_bytes())
    hows = ["bits", "cut", "page", "junk", "number", "gap", "again", "swap"]
    how = str(rng.choice(hows[: 8 if swap else 7]))
    place = int(rng.integers(max(1, len(data))))
    if rng.integers(2):
        place = min(place, int(rng.integers(1, 400)))  # where headers are
    if how == "bits":
        for _ in range(int(rng.integers(1, 4)) if data else 0):
            data[min(place, len(data) - 1)] ^= 1 << int(rng.integers(8))
            place = int(rng.integers(len(data)))
    elif how == "cut":
        del data[place:]
    elif how == "page":
        start = place // PAGE * PAGE
        data[start : start + PAGE] = bytes(min(PAGE, max(0, len(data) - start)))
    elif how == "junk":
        data += rng.bytes(int(rng.choice([1, 8, 500, 5000])))
    elif how == "number":
        size = int(rng.choice([1, 2, 4, 8]))
        half = 2 ** (8 * size - 1)
        value = [0, 1, half - 1, half, 2 * half - 1][int(rng.integers(5))]
        data[place : place + size] = value.to_bytes(size, str(rng.choice(["little", "big"])))
    elif how == "gap":
        del data[place : place + int(rng.choice([1, 4, 40, 400]))]
    elif how == "again":
        data[place:place] = data[place : place + int(rng.choice([1, 4, 40, 400]))]
    else:
        others = [file for file in base.rglob("*") if file.is_file()]
        same = [file for file in others if file.suffix == path.suffix] or others
        chosen = same if rng.integers(3) else others
        other = sorted(chosen)[int(rng.integers(len(chosen)))]
        path.write_bytes(other.read_bytes())
        return f"in its place {other.relative_to(base)}"
    path.write_bytes(data)
    return f"{how} at {place} of '{path.name}'"
