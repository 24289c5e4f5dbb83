"""The attack of benchmarks/attack.py, shortened; and that it finds what is planted."""

import json
import os
import signal
import sys
import time

import numpy as np
import pytest

if sys.platform != "linux":
    pytest.skip("the attack reads /proc", allow_module_level=True)

from attack import Prepared, prepared, table
from attacks import corruption, disks, inputs, kills
from attacks.commands import COMMANDS, Command
from attacks.isolation import GIBIBYTE, command, isolated, isolated_each
from attacks.operations import Operations, failing, killed, limit_files
from attacks.reading import KINDS, Kind
from attacks.tally import Share, Tally

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

QUICK = ("sample: folder", "sample: array", "decompress: array", "ema")
CHEAP = [c for c in COMMANDS if c.name in QUICK]
READ = ("run: config.json", "run: ema", "run: metrics", "export: config.json", "image png", "npy")
FILES = [kind for kind in KINDS if kind.name in READ]


@pytest.fixture(scope="module")
def at(tmp_path_factory) -> Prepared:
    folder = tmp_path_factory.mktemp("attack")
    return prepared(folder, commands_=CHEAP, readers=FILES)


def test_killed_commands_end_well_when_they_are_repeated(at, tmp_path):
    tally = kills.attack(at.base, tmp_path, Share(0, most=8), at.known, CHEAP)
    assert tally.faults == []
    assert tally.answers["killed"] >= 6


def test_damaged_files_are_refused_or_read_as_they_were(at, tmp_path):
    tally = corruption.attack(at.files, tmp_path, Share(0, most=60), at.whole, FILES)
    assert tally.faults == []
    assert tally.memory < GIBIBYTE
    assert tally.answers["refused"] > 20


def test_hostile_inputs_are_refused_in_one_line(at, tmp_path):
    tally = inputs.attack(at.files, tmp_path, Share(0, most=len(inputs.HOSTILE)))
    assert tally.faults == []
    assert tally.memory < GIBIBYTE


def test_bad_disks_lose_nothing(at, tmp_path):
    tally = disks.attack(at.base, tmp_path, Share(0, most=6), at.known, CHEAP)
    assert tally.faults == []


def careless(here):
    """Write a result in two parts, each with a flush, under its final name."""
    with (here / "out" / "result.csv").open("w") as file:
        for part in ("a,b\n", "1,2\n"):
            file.write(part)
            file.flush()
            os.fsync(file.fileno())
    return 0


def overwriting(here):
    """Empty a file of the user, and write it again."""
    path = here / "photos" / "00.png"
    content = path.read_bytes()
    path.write_bytes(b"")
    path.write_bytes(content)
    (here / "out" / "done.txt").touch()
    return 0


@pytest.mark.parametrize("planted", [careless, overwriting])
def test_it_finds_writers_that_are_not_atomic(at, tmp_path, planted):
    bad = [Command("planted", planted)]
    known = kills.undisturbed(at.base, tmp_path / "undisturbed", bad)
    tally = kills.attack(at.base, tmp_path, Share(0, most=8), known, bad)
    assert any("half" in fault.what for fault in tally.faults)
    assert "| planted | 8 |" in table({"kills": tally})


def test_it_finds_a_figure_that_is_lost_with_the_disk(at, tmp_path):
    def measured(here):
        (here / "out" / "figure.txt").write_text("1")
        print(json.dumps({"figure": 1.5}))
        return 0

    bad = [Command("planted", measured, "figure")]
    known = kills.undisturbed(at.base, tmp_path / "undisturbed", bad)
    tally = disks.attack(at.base, tmp_path, Share(1, most=8), known, bad)
    assert {"traceback"} <= {fault.what.split(": ")[1].split(" (")[0] for fault in tally.faults}


def test_it_finds_values_that_damage_has_changed(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "a.bin").write_bytes(bytes(1000))
    kind = Kind("planted", "a.bin", "a.bin", lambda path: path.read_bytes())
    whole = corruption.undamaged(tmp_path / "base", tmp_path / "whole", [kind])
    tally = corruption.attack(tmp_path / "base", tmp_path, Share(0, most=9), whole, [kind])
    assert {"other values are read"} <= {fault.what.split(": ")[1] for fault in tally.faults}


def test_how_work_in_a_child_ends():
    def hungry():
        np.ones(int(1.2 * GIBIBYTE) // 8)
        return 0

    def broken():
        raise KeyError("x")

    works = [
        lambda: 0,
        broken,
        lambda: os.kill(os.getpid(), signal.SIGSEGV),
        hungry,
        command("evaluate", "nowhere"),
        lambda: 3,
    ]
    outcomes = isolated_each(works)
    assert [o.fault() and o.fault().split(" above")[0] for o in outcomes] == [
        None,
        "traceback",
        f"exit code -{signal.SIGSEGV.value}",
        "1.2 GiB",
        None,
        "exit code 3",
    ]
    assert isolated(lambda: time.sleep(60), seconds=0.1).fault() == "hangs"
    assert "run = 'nowhere'" in outcomes[4].said


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_operations_are_counted_in_their_order(tmp_path, number):
    path = tmp_path / "a"

    def work():
        with path.open("w") as file:
            file.write("x")
            file.flush()
            os.fsync(file.fileno())
        path.rename(tmp_path / "b")
        (tmp_path / "c").mkdir()
        (tmp_path / "b").unlink()
        return 0

    def states():
        return sorted(path.name for path in tmp_path.iterdir())

    assert isolated(work, before=lambda: Operations(tmp_path).before(number, killed)).code == -9
    assert states() == [[], ["a"], ["a"], ["b"], ["b", "c"]][number - 1]
    fail = failing(28)
    outcome = isolated(
        lambda: (path.open("w"), 0)[1], before=lambda: Operations(tmp_path).before(1, fail)
    )
    assert "No space left" in outcome.said


def test_a_write_beyond_the_largest_size_ends_the_process(tmp_path):
    def work():
        return (tmp_path / "a").write_bytes(bytes(100_000)) and 0

    assert isolated(work, before=lambda: limit_files(50_000, kill=True)).code == -signal.SIGXFSZ
    assert (tmp_path / "a").stat().st_size == 50_000
    assert "File too large" in isolated(work, before=lambda: limit_files(50_000, kill=False)).said


def test_one_seed_makes_the_same_cases_in_any_number_of_processes():
    assert list(Share(0, 1, 3, most=3)) == [1, 4, 7]
    assert list(Share(0, most=5).batches(2)) == [[0, 1], [2, 3], [4]]
    first, second = Tally("kills"), Tally("kills")
    first.add("a", 1, None)
    second.add("a", 2, "lost", "said")
    first.join(second)
    assert first.cases["a"] == 2
    assert [fault.case for fault in first.faults] == [2]
