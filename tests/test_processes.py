"""Training in several processes: as torchrun and accelerate start them, whole and in shards."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from variational_diffusion.checkpoint import Run
from variational_diffusion.cli import run as vdm
from variational_diffusion.tensors import read_tensors

BIN = Path(sys.executable).parent
TRAIN = [
    "train",
    "digits",
    "--batch-size",
    "12",
    "--every",
    "1000",
    "--json",
    "--threads",
    "1",
    "--set",
    "network.widths=[8,8]",
    "--set",
    "network.dropout=0",
    "--set",
    "training.warmup_steps=2",
]


def launched(processes: int, *arguments: str, launcher: str = "torchrun") -> None:
    """Run `vdm` in several processes on the loopback device."""
    count = str(processes)
    starts = {
        "torchrun": ["torchrun", "--standalone", "--nproc-per-node", count, "--no-python"],
        "accelerate": ["accelerate", "launch", "--cpu", "--num_processes", count, "--no_python"]
        + ["--num_cpu_threads_per_process", "1", "--main_process_port", "0"],
    }
    program, *options = starts[launcher]
    command = [str(BIN / program), *options, "--", str(BIN / "vdm"), *arguments]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


def metrics(path: Path) -> list[dict[str, float]]:
    """Return the figures of every line, nested ones by the last name, without those of time."""
    lines = []
    for line in Run.open(path).metrics():
        flat = {
            k: v
            for part in [line, *line.values()]
            if isinstance(part, dict)
            for k, v in part.items()
        }
        taken = ("seconds", "examples_per_second", "memory", "waiting", "interval")
        lines.append({k: v for k, v in flat.items() if isinstance(v, float) and k not in taken})
    return lines


def assert_same_curves(found: Path, expected: Path) -> None:
    first, second = metrics(found), metrics(expected)
    assert len(first) == len(second) > 1
    for a, b in zip(first, second, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process."""
    path = tmp_path_factory.mktemp("alone") / "run"
    assert vdm([*TRAIN, "--steps", "52", "--run", str(path)]) == 0
    return path


def test_two_processes_have_the_curves_of_one(alone, tmp_path):
    launched(2, *TRAIN, "--steps", "52", "--run", str(tmp_path / "run"))
    assert_same_curves(tmp_path / "run", alone)
    found, expected = (read_tensors(p / "ema.safetensors")[0] for p in (tmp_path / "run", alone))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-4, msg=name)


def test_three_sharded_processes_have_the_curves_of_one(alone, tmp_path):
    path = tmp_path / "run"
    launched(
        3, *TRAIN, "--steps", "52", "--run", str(path), "--sharding", "sharded", "--checkpointing"
    )
    assert_same_curves(path, alone)
    parts = sorted(file.name for file in (path / "state").iterdir())
    assert parts == [f"00000052-{k}-of-3.safetensors" for k in (1, 2, 3)]
    whole = sum(v.numel() for v in Run.open(alone).resume().state.vdm.parameters())
    for part in parts:  # nobody holds all: the network's weights are shared out evenly
        tensors = read_tensors(path / "state" / part)[0]
        held = sum(v.numel() for k, v in tensors.items() if k.startswith("model.network"))
        assert held < 0.5 * whole


def test_accelerate_launch_starts_it_and_another_number_of_processes_goes_on(alone, tmp_path):
    """20 steps in two processes, whole; the other 32 in one, from the state of the two."""
    path = tmp_path / "run"
    steps = ["--set", "training.decay_from=1.0"]
    assert vdm([*TRAIN, *steps, "--steps", "30", "--run", str(tmp_path / "one")]) == 0
    launched(2, *TRAIN, *steps, "--steps", "30", "--run", str(path), launcher="accelerate")
    assert_same_curves(path, tmp_path / "one") if len(metrics(path)) > 1 else None
    found, expected = (Run.open(p).resume().state for p in (path, tmp_path / "one"))
    for (name, weight), other in zip(
        found.vdm.named_parameters(), expected.vdm.parameters(), strict=True
    ):
        torch.testing.assert_close(weight, other, rtol=1e-3, atol=1e-4, msg=name)
