"""Keeping freed memory: what the C library is told, and that nothing breaks where it is another."""

import subprocess
import sys

import pytest

from variational_diffusion.machine import memory

PAGES = """
import resource, sys, torch
from variational_diffusion.machine.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def touch():
    torch.ones(12_000_000)  # 48 MB: without a word, glibc keeps no more than 32

for _ in range(10):
    touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_pages_are_not_asked_for_again():
    faults = {
        kept: int(
            subprocess.run(
                [sys.executable, "-c", PAGES, kept], capture_output=True, text=True, check=True
            ).stdout
        )
        for kept in ("keep", "return")
    }
    assert faults["keep"] < 0.3 * faults["return"]


def test_another_system_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not memory.keep_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert not memory.keep_freed_memory()


def test_a_smaller_threshold_is_asked_for_where_a_large_one_is_refused(monkeypatch):
    asked = []

    class Library:
        def mallopt(self, parameter, value):
            asked.append((parameter, value))
            return parameter != -3 or value <= 2**25

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: Library())
    assert memory.keep_freed_memory()
    assert (-3, 2**25) in asked
    assert {parameter for parameter, _ in asked} == {-1, -2, -3}
