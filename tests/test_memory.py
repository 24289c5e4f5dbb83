"""Memory: freed pages are kept where the C library lets us, and batches are as large as fits."""

import re
import subprocess
import sys

import pytest
import torch

from commands import train_digits
from variational_diffusion.cli import run
from variational_diffusion.decoders import Gaussian
from variational_diffusion.machine import memory
from variational_diffusion.model import VDM
from variational_diffusion.schedules import FixedLinear

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


class Counting(torch.nn.Module):
    """A network that notes how many rows it gets; modules of it return 12 times the size of z."""

    def __init__(self):
        super().__init__()
        self.wide = torch.nn.Linear(2, 20)
        self.back = torch.nn.Linear(20, 2)
        self.rows = []

    def forward(self, z, gamma, conditioning=None):
        self.rows.append(len(z))
        shift = gamma[:, None] if conditioning is None else conditioning
        return self.back(self.wide(z)) + shift


@pytest.mark.parametrize("given", [False, True])
def test_a_batch_that_does_not_fit_goes_through_the_network_in_parts(monkeypatch, given):
    network = Counting()
    vdm = VDM(network, FixedLinear(-5.0, 5.0), Gaussian(), (2,)).eval()
    generator = torch.Generator().manual_seed(0)
    z, gamma = torch.randn(50, 2, generator=generator), torch.linspace(-5, 5, 50)
    conditioning = torch.randn(50, 2, generator=generator) if given else None
    with torch.no_grad():
        whole = vdm.denoise(z, gamma, conditioning)
        assert network.rows == [50]
        row = 4 * (20 + 2 + 2)  # bytes that the modules return: of both layers, and of the network
        monkeypatch.setattr(memory, "memory_of", lambda device: 7 * row / memory._SHARE)
        network.rows.clear()
        parts = vdm.denoise(z, gamma, conditioning)
        assert network.rows == [1, *[7] * 7, 1]  # measured once
        vdm.denoise(z[:7], gamma[:7], None if conditioning is None else conditioning[:7])
        assert network.rows[9:] == [7]
    torch.testing.assert_close(parts.noise, whole.noise)
    torch.testing.assert_close(parts.x, whole.x)
    network.rows.clear()
    vdm.denoise(z, gamma, conditioning)  # with gradients, whoever trains decides on the batch
    assert network.rows == [50]


def test_a_row_that_does_not_fit_goes_alone(monkeypatch):
    network = Counting()
    vdm = VDM(network, FixedLinear(-5.0, 5.0), Gaussian(), (2,)).eval()
    monkeypatch.setattr(memory, "memory_of", lambda device: 1)
    with torch.no_grad():
        vdm.denoise(torch.zeros(3, 2), torch.tensor(0.0))
    assert network.rows == [1, 1, 1, 1]


def test_more_samples_than_memory_holds_are_refused_before_the_work(capsys, tmp_path):
    path = train_digits(tmp_path)
    capsys.readouterr()
    assert run(["sample", path, "--n", str(10**12), "--out", str(tmp_path / "x.npy")]) == 2
    told = capsys.readouterr().err
    assert re.search(r"n = 1000000000000: the result takes .* GiB, .*give a smaller n", told)
    assert told.count("\n") == 1
