"""The number of threads: what a process may use, and what it chooses on machines that change."""

import os

import pytest
import torch

from variational_diffusion.errors import InputError
from variational_diffusion.machine import threads
from variational_diffusion.machine.execution import Execution
from variational_diffusion.machine.threads import (
    Follower,
    allowed,
    computing_with,
    cpu_quota,
    paced,
)


class Machine:
    """A simulated machine: how long a unit of work takes, by threads and by busy programs.

    cores, busy: processors, and programs that keep one each. serial: the share of the work that
    one thread does alone. wait: how much longer a unit takes when its threads have not a core each.
    """

    def __init__(self, cores, *, busy=0, serial=0.1, wait=10.0):
        self.cores, self.busy, self.serial, self.wait = cores, busy, serial, wait
        self.now, self.threads, self.used = 0.0, cores, []
        self.follower = Follower(
            cores,
            clock=lambda: self.now,
            use=self.use,
            busy=lambda: self.busy,
            idle=lambda: max(0.0, self.cores - self.busy - self.threads),
        )

    def use(self, count):
        self.threads = count

    def seconds(self, count):
        took = 0.05 * (self.serial + (1 - self.serial) / count)
        lacking = count > 1 and count + self.busy > self.cores
        return took * (self.wait if lacking else 1.0)

    def work(self, units):
        """Do units of work; return the mean time of one over the least that any number takes."""
        counts = [self.cores >> i for i in range(self.cores.bit_length())]
        start = self.now
        for _ in range(units):
            with self.follower.unit("work"):
                self.now += self.seconds(self.threads)
                self.used.append(self.threads)
        return (self.now - start) / units / min(map(self.seconds, counts))


@pytest.mark.parametrize("cores", [2, 3, 4, 16])
def test_an_idle_machine_gives_all_its_cores(cores):
    machine = Machine(cores)
    assert machine.used == []
    assert machine.work(1000) < 1.03
    assert machine.threads == cores


@pytest.mark.parametrize("cores", [2, 4, 16])
def test_work_that_gains_nothing_from_threads_gets_one(cores):
    machine = Machine(cores, serial=1.0)
    assert machine.work(1000) < 1.03
    assert machine.threads == 1


@pytest.mark.parametrize(("cores", "busy", "best"), [(2, 1, 1), (2, 2, 1), (4, 2, 2), (16, 5, 8)])
def test_a_busy_machine_gives_the_cores_that_are_free(cores, busy, best):
    machine = Machine(cores, busy=busy)
    assert machine.work(400) < 1.1
    assert machine.threads == best


@pytest.mark.parametrize("wait", [2.5, 10.0, 50.0])
def test_programs_that_come_and_go_are_followed(wait):
    machine = Machine(2, wait=wait)
    machine.work(200)
    machine.busy = 1
    machine.work(20)
    assert machine.threads == 1
    assert machine.work(300) < 1.05
    machine.busy = 0
    machine.work(600)  # half a minute
    assert machine.threads == 2
    assert machine.work(1000) < 1.03


def test_more_threads_that_do_not_pay_are_tried_ever_more_rarely():
    machine = Machine(2, serial=1.0, wait=1.0)
    machine.work(20_000)  # 1,000 seconds
    changes = sum(a != b for a, b in zip(machine.used, machine.used[1:], strict=False))
    assert 4 < changes < 30
    assert sum(count > 1 for count in machine.used) < 0.01 * len(machine.used)


def test_each_kind_of_work_has_its_own_number():
    used: list[int] = []
    follower = Follower(2, use=used.append, busy=int)
    clock = [0.0]
    follower._clock = lambda: clock[0]
    for _ in range(60):
        for kind, gains in (("large", True), ("small", False)):
            with follower.unit(kind):
                clock[0] += 0.1 / used[-1] if gains else 0.1
    with follower.unit("large"):
        assert used[-1] == 2
    with follower.unit("small"):
        assert used[-1] == 1


def test_the_number_is_what_it_was_when_the_work_is_done(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(threads, "allowed", lambda: 2)
    try:
        with Execution().begun():
            for _ in range(20):
                with paced("work"):
                    pass
        assert torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError), Execution(threads=1).begun():
            1 / 0  # noqa: B018
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_number_that_is_asked_for_is_kept(monkeypatch):
    """By the argument before VDM_THREADS, and by that before what torch has."""
    monkeypatch.setattr(threads, "others_running", lambda: 99)
    before = torch.get_num_threads()
    monkeypatch.setenv("VDM_THREADS", "3")
    for given, expected in ((None, 3), (2, 2)):
        with computing_with(given, follow=True):
            for _ in range(20):
                with paced("work"):
                    assert torch.get_num_threads() == expected
    monkeypatch.delenv("VDM_THREADS")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with computing_with(None, follow=True), paced("work"):
        assert torch.get_num_threads() == before


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "nan", "²"])
def test_a_number_of_threads_that_is_none_is_one_line(monkeypatch, value):
    monkeypatch.setenv("VDM_THREADS", value)
    with pytest.raises(InputError, match=f"VDM_THREADS = '{value}': give a whole number"):
        Execution().begun().__enter__()


@pytest.mark.parametrize(
    ("files", "groups", "expected"),
    [
        ({"a/b/cpu.max": "150000 100000"}, "0::/a/b", 1.5),
        ({"a/b/cpu.max": "max 100000"}, "0::/a/b", None),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000"}, "0::/a/b", 2.0),
        ({"a/cpu.max": "50000 100000", "cpu.max": "200000 100000"}, "0::/a", 0.5),
        (
            {"cpu/d/cpu.cfs_quota_us": "300000", "cpu/d/cpu.cfs_period_us": "100000"},
            "3:cpuacct,cpu:/d",
            3.0,
        ),
        (
            {"cpu/d/cpu.cfs_quota_us": "-1", "cpu/d/cpu.cfs_period_us": "100000"},
            "3:cpu:/d",
            None,
        ),
        ({}, "5:memory:/a\n0::/", None),
        ({"cpu.max": "no numbers"}, "0::/", None),
        ({"cpu.max": ""}, "0::/", None),
    ],
)
def test_the_quota_of_a_container_is_read(files, groups, expected, tmp_path):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "cgroup").write_text(groups)
    assert cpu_quota(tmp_path / "cgroup", tmp_path) == expected


def test_where_there_are_no_control_groups_there_is_no_quota(tmp_path):
    assert cpu_quota(tmp_path / "none", tmp_path) is None


def test_threads_are_within_quota_and_affinity(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for quota, expected in ((None, 8), (2.9, 2), (0.5, 1), (100.0, 8)):
        monkeypatch.setattr(threads, "cpu_quota", lambda quota=quota: quota)
        assert allowed() == expected


def test_the_device_of_the_environment_is_that_of_auto(monkeypatch):
    monkeypatch.setenv("VDM_DEVICE", "meta")
    assert Execution().target().type == "meta"
    assert Execution("cpu").target().type == "cpu"
    monkeypatch.setenv("VDM_DEVICE", "abacus")
    with pytest.raises(InputError, match="device = 'abacus' is not at hand"):
        Execution().target()
