"""Training in several processes: as torchrun and accelerate start them, whole and in shards."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from variational_diffusion.cli import run as vdm
from variational_diffusion.errors import InputError
from variational_diffusion.machine.distributed import ALONE, Place, local_device, texts_of_processes
from variational_diffusion.model import build
from variational_diffusion.run.directory import Run
from variational_diffusion.run.training import training_events
from variational_diffusion.storage.tensors import read_tensors
from variational_diffusion.training import StepRecord
from variational_diffusion.training.sharding import blocks, recompute_activations

BIN = Path(sys.executable).parent
SETTINGS = ["network.widths=[8,8]", "network.dropout=0.1", "training.warmup_steps=2"]
TRAIN = ["train", "digits", "--batch-size", "12", "--every", "1000", "--json", "--threads", "1"]
TRAIN += ["--precision", "float32", "--condition", "label"]
TRAIN += [word for setting in SETTINGS for word in ("--set", setting)]
OPTIONS = {
    "condition": "label",
    "every": 1000.0,
    "threads": 1,
    "precision": "float32",
    "settings": {
        "network.widths": [8, 8],
        "network.dropout": 0.1,
        "training.warmup_steps": 2,
        "training.batch_size": 12,
    },
}
"""The same in Python."""
OF_TIME = ("seconds", "examples_per_second", "memory", "waiting")


def launched(processes: int, *arguments: str, launcher: str = "torchrun") -> None:
    """Run `vdm` in several processes on the loopback device."""
    count = str(processes)
    torchrun = f"torchrun --standalone --nproc-per-node {count} --no-python --"
    accelerate = (
        f"accelerate launch --cpu --num_processes {count} --num_cpu_threads_per_process 1 "
        "--main_process_port 0 --no_python --"
    )
    program, *options = {"torchrun": torchrun, "accelerate": accelerate}[launcher].split()
    ends_well([str(BIN / program), *options, str(BIN / "vdm"), *arguments])


def ends_well(command: list[str]) -> None:
    done = subprocess.run(
        command,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def curves(path: Path) -> list[dict[str, float]]:
    """Return the figures of every line of metrics, but those of time."""
    lines = []
    for line in Run.open(path).metrics():
        parts = [line, *(value for value in line.values() if isinstance(value, dict))]
        figures = [pair for part in parts for pair in part.items()]
        lines.append({k: v for k, v in figures if isinstance(v, float) and k not in OF_TIME})
    return lines


def assert_same_run(found: Path, expected: Path) -> None:
    first, second = curves(found), curves(expected)
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
    assert_same_weights(found, expected)


def assert_same_weights(found: Path, expected: Path) -> None:
    for name in ("ema", "raw", "best"):
        weights, others = (Run.open(path).load(name) for path in (found, expected))
        for (key, value), other in zip(
            weights.named_parameters(), others.parameters(), strict=True
        ):
            torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-4, msg=f"{name} {key}")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process."""
    path = tmp_path_factory.mktemp("alone") / "run"
    assert vdm([*TRAIN, "--steps", "52", "--run", str(path)]) == 0
    return path


def test_two_processes_make_the_run_of_one(alone, tmp_path):
    """The same batches, times, noise and dropout: equal up to the order of sums."""
    launched(2, *TRAIN, "--steps", "52", "--run", str(tmp_path / "run"), launcher="accelerate")
    assert_same_run(tmp_path / "run", alone)


def test_three_sharded_processes_make_the_run_of_one(alone, tmp_path):
    path = tmp_path / "run"
    sharded = ["--sharding", "sharded", "--checkpointing"]
    launched(3, *TRAIN, "--steps", "52", "--run", str(path), *sharded)
    assert_same_run(path, alone)
    parts = sorted(file.name for file in (path / "state").iterdir())
    steps = (26, 52)  # before the learning rate fell, and the last
    assert parts == [f"{step:08}-{k}-of-3.safetensors" for step in steps for k in (1, 2, 3)]
    state = Run.open(path).resume().state
    whole = sum(p.numel() for p in state.vdm.network.parameters())
    for part in parts[3:]:  # nobody holds all
        tensors = read_tensors(path / "state" / part)[0]
        held = sum(v.numel() for k, v in tensors.items() if k.startswith("model.network"))
        assert 0.1 * whole < held < 0.6 * whole
    one = Run.open(alone).resume().state
    for name, optimizer in one.optimizers.items():
        joined = state.optimizers[name].state_dict()["state"]
        for number, values in optimizer.state_dict()["state"].items():
            for key, value in values.items():
                torch.testing.assert_close(joined[number][key], value, rtol=1e-2, atol=1e-4)


def test_another_number_of_processes_goes_on(alone, tmp_path):
    """30 steps in one process that is then stopped, the other 22 in two, in shards."""
    path = tmp_path / "run"
    arguments = [*TRAIN, "--steps", "52", "--run", str(path)]
    context = torch.multiprocessing.get_context("spawn")
    process = context.Process(target=stopped_at, args=(30, path))
    process.start()
    process.join(120)
    assert Run.open(path).states() == [30, 26]
    launched(2, *arguments, "--sharding", "sharded")
    assert_same_weights(path, alone)
    assert curves(path)[-1] == pytest.approx(curves(alone)[-1], rel=1e-3)


def test_two_processes_draw_the_samples_of_one(alone, tmp_path):
    """510 samples are three parts, of which one process draws two."""
    arguments = ["sample", str(alone), "--n", "510", "--steps", "4", "--threads", "1", "--out"]
    launched(2, *arguments, str(tmp_path / "two.npy"))
    assert vdm([*arguments, str(tmp_path / "one.npy")]) == 0
    found, expected = (np.load(tmp_path / f"{name}.npy") for name in ("two", "one"))
    assert (found == expected).mean() > 0.999  # a level may tip by the rounding of a sum
    assert not np.array_equal(found[:250], found[250:500])


def test_a_process_that_dies_is_started_again_by_the_launcher(alone, tmp_path):
    """One of two is killed in step 30; from the state of step 20 or so, both go on to the end."""
    path, script = tmp_path / "run", tmp_path / "dies.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_processes import dies_once\n"
        f"dies_once(30, {str(tmp_path / 'died')!r}, {str(path)!r})\n"
    )
    command = [str(BIN / "torchrun"), "--nproc-per-node", "2", "--max-restarts", "3"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--", str(script)]
    ends_well(command)
    assert (tmp_path / "died").exists()
    assert Run.open(path).states()[0] == 52


def dies_once(step: int, marker: str, path: str) -> None:
    """Train, and kill the second process after a step, the first time that it is there."""
    for event in training_events("digits", path, steps=52, **{**OPTIONS, "every": 1.0}):
        there = isinstance(event, StepRecord) and event.step == step
        if there and os.environ["RANK"] == "1" and not Path(marker).exists():
            Path(marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
    os._exit(0)


def stopped_at(step: int, path: Path) -> None:
    """Train; SIGTERM comes before a step (in a process of its own)."""
    torch.set_num_threads(1)
    with suppress(KeyboardInterrupt):
        for event in training_events("digits", path, steps=52, **OPTIONS):
            if isinstance(event, StepRecord) and event.step == step - 1:
                os.kill(os.getpid(), signal.SIGTERM)


def test_a_batch_that_cannot_be_shared_is_named():
    with pytest.raises(InputError, match=r"batch_size = 10: 4 processes .*give --batch-size 12"):
        Place(1, 4).share("batch_size", 10)
    assert Place(1, 4).share("batch_size", 12) == 3
    assert Place(1, 4).rows(12) == slice(3, 6)


def test_every_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_device("cuda") == "cuda:3"
    assert local_device("cuda:1") == "cuda:1"
    assert local_device("cpu") == "cpu"
    monkeypatch.delenv("LOCAL_RANK")
    assert local_device("cuda") == "cuda"


def test_alone_a_text_is_its_own():
    assert texts_of_processes("é", torch.device("cpu")) == ["é"]
    assert ALONE.leads


def test_recomputed_activations_change_no_gradient(alone):
    gradients = []
    for recompute in (False, True):
        vdm = build(Run.open(alone).config.model)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for parameter in vdm.network.parameters():
                torch.nn.init.normal_(parameter, std=0.1)
        calls = []
        if recompute:
            recompute_activations(vdm.network)
        next(blocks(vdm.network)).blocks[0].register_forward_pre_hook(
            lambda *_, calls=calls: calls.append(1)
        )
        x = torch.randint(0, 17, (4, 1, 8, 8), generator=torch.Generator().manual_seed(0))
        with torch.random.fork_rng():
            torch.manual_seed(0)  # of dropout, which draws the same when it is computed again
            vdm.vlb(x, generator=torch.Generator().manual_seed(1)).total.mean().backward()
        gradients.append([p.grad for p in vdm.network.parameters()])
        measured = 2  # at the ends of the schedule, without gradients
        assert len(calls) - measured == (2 if recompute else 1)
    for kept, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, kept)
