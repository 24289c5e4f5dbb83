"""Runs that are killed, and files and disks that fail: nothing that was saved is lost."""

import json
import os
import random
import resource
import shutil
import signal
import time
from collections import deque
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from variational_diffusion.cli import run as vdm
from variational_diffusion.config import DataConfig
from variational_diffusion.data import open_dataset
from variational_diffusion.errors import InputError
from variational_diffusion.networks import MLP
from variational_diffusion.run.directory import Run
from variational_diffusion.run.training import GoingBack, Save, train, training_events
from variational_diffusion.storage.tensors import read_tensors
from variational_diffusion.training import StepRecord

DATA = DataConfig(source="digits")
KILLS = 12


@pytest.fixture(scope="module")
def digits():
    return open_dataset(DATA)


def options(*, steps: int, every: float = 1e9, **settings: object) -> dict[str, object]:
    small = {"network.widths": [8], "training.batch_size": 8, "training.warmup_steps": 2}
    return {
        "steps": steps,
        "every": every,
        "device": "cpu",
        "precision": "float32",
        "settings": {**small, **settings},
    }


def trained(path: Path, data, **asked) -> Run:
    return train(data, path, progress=False, **options(**asked))


def in_a_child(path: Path, data, at: int | None = None, **asked) -> int:
    """Train in a child process, which kills itself after step `at`; return its number."""
    child = os.fork()
    if child == 0:  # no return: what the parent's test run has set up is not the child's to end
        with suppress(BaseException):
            os.close(2)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for event in training_events(data, path, **options(**asked)):
                if isinstance(event, StepRecord) and event.step == at:
                    os.kill(os.getpid(), signal.SIGKILL)
        os._exit(0)
    return child


def assert_same(found: Run, expected: Run) -> None:
    """Compare weights and averages of two runs, bit for bit."""
    for name in ("raw", "ema"):
        weights = found.load(name).state_dict()
        for key, weight in expected.load(name).state_dict().items():
            assert torch.equal(weights[key], weight), (name, key)


def whole_files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*.safetensors") if not file.name.startswith(".")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_kills_at_any_moment_lose_no_more_than_the_steps_since_the_last_save(digits, tmp_path):
    """It saves at every other step or so, so that many kills fall into a save."""
    path, rng = tmp_path / "run", random.Random(0)
    asked = {"steps": 240, "every": 0.01}
    saved = 0
    for number in range(KILLS):
        child = in_a_child(path, digits, **asked)
        kind = {2: signal.SIGINT, 3: signal.SIGTERM}.get(number % 4, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and newest(path) <= saved and number % 6:
            time.sleep(0.01)  # every sixth is killed in its first moments, the others at work
        time.sleep(rng.uniform(0.0, 0.3))
        before = newest(path)
        os.kill(child, kind)
        os.waitpid(child, 0)
        after = newest(path)
        assert after >= before >= saved
        for file in whole_files(path):
            read_tensors(file)
        if after:
            resumed = Run.open(path).resume()
            assert resumed.state.step == after
            assert not resumed.damaged
        saved = after
    assert 0 < saved < 240
    assert_same(trained(path, digits, **asked), trained(tmp_path / "plain", digits, steps=240))


def test_a_stream_goes_on_where_the_last_save_was(digits, tmp_path):
    """In two lanes, over the end of an epoch, killed after a step that was not saved."""
    folder = tmp_path / "data"
    folder.mkdir()
    images = digits.splits["train"].read()[:120, 0]
    for shard, part in enumerate(np.array_split(images, 4)):
        table = pyarrow.table({"image": [image.tolist() for image in part]})
        pyarrow.parquet.write_table(table, folder / f"{shard}.parquet", row_group_size=10)
    config = DataConfig(
        source=str(folder), levels=17, streaming=True, shuffle_buffer=16, lanes=2, hold_out=8
    )
    asked = {"steps": 26, "every": 0.0}
    whole = trained(tmp_path / "whole", open_dataset(config), **asked)
    os.waitpid(in_a_child(tmp_path / "cut", open_dataset(config), at=13, **asked), 0)
    cut = Run.open(tmp_path / "cut")
    assert cut.states() == [12, 11]  # killed before half of the budget was spent
    assert set(cut.resume().position["lanes"]) == {"0", "1"}
    assert_same(trained(tmp_path / "cut", open_dataset(config), **asked), whole)


@pytest.mark.parametrize("leave", [GeneratorExit, ZeroDivisionError])
def test_whoever_leaves_the_loop_between_two_steps_loses_nothing(digits, tmp_path, leave):
    asked = {"steps": 9, "network.dropout": 0.1}
    whole = trained(tmp_path / "whole", digits, **asked)
    events = training_events(digits, tmp_path / "cut", **options(**asked))
    with suppress(ZeroDivisionError):
        for event in events:
            if isinstance(event, StepRecord) and event.step == 4:
                if leave is GeneratorExit:
                    break
                events.throw(ZeroDivisionError())
    events.close()
    assert Run.open(tmp_path / "cut").states() == [4]
    assert_same(trained(tmp_path / "cut", digits, **asked), whole)


def test_a_step_that_is_cut_short_is_not_saved(digits, tmp_path):
    """The signal comes twice, so that the second interrupts a step, in its forward pass."""

    class Impatient(MLP):
        calls = 0

        def forward(self, *inputs):
            if self.training:
                type(self).calls += 1
                if type(self).calls == 12:
                    raise KeyboardInterrupt
            return super().forward(*inputs)

    small = {"network.width": 8, "network.blocks": 1, "training.batch_size": 8}
    asked = {"steps": 9, "settings": small, "precision": "float32"}
    with pytest.raises(KeyboardInterrupt):
        train(digits, tmp_path / "cut", progress=False, network=Impatient, **asked)
    step = max(Run.open(tmp_path / "cut").states())
    assert 0 < step < 9
    Impatient.calls = 100
    whole = train(digits, tmp_path / "whole", progress=False, network=Impatient, **asked)
    cut = train(digits, tmp_path / "cut", progress=False, network=Impatient, **asked)
    assert_same(cut, whole)


def test_training_works_in_a_thread(digits, tmp_path):
    """Where no signals can be heard."""
    thread = Thread(target=trained, args=(tmp_path / "run", digits), kwargs={"steps": 2})
    thread.start()
    thread.join()
    assert max(Run.open(tmp_path / "run").states()) == 2


def newest(path: Path) -> int:
    states = (path / "state").glob("[0-9]*.safetensors")
    return max((int(file.stem) for file in states), default=0)


def test_a_flipped_bit_in_any_file_is_found(digits, tmp_path, caplog):
    """In a file of lines it costs that line, which a remark names; all others end in one line."""
    trained(tmp_path / "run", digits, steps=60)
    path = tmp_path / "run"
    rng = np.random.default_rng(0)
    files = [file for file in path.rglob("*") if file.is_file() and file.suffix != ".lock"]
    names = {str(file.relative_to(path)) for file in files}
    assert {"config.json", "metrics.jsonl", "best.safetensors", "model.safetensors"} <= names
    for file in files:
        content = file.read_bytes()
        for number in range(40):
            damaged = bytearray(content)
            # the last byte of metrics.jsonl is the end of a line, without which it was cut short;
            # half of the flips fall into the beginning, where a file of tensors has its header
            end = len(content) - 1 if number % 2 else min(len(content) - 1, 300)
            damaged[rng.integers(end)] ^= 1 << rng.integers(8)
            file.write_bytes(damaged)
            caplog.clear()
            if file.suffix == ".jsonl":
                lines = len(Run.open(path).metrics())
                assert "damaged in line" in caplog.text
                assert content.count(b"\n") - 2 <= lines < content.count(b"\n")
                continue
            with pytest.raises(InputError, match=rf"(?s){file.parent.name}"):
                read_everything(path)
        file.write_bytes(content)
    read_everything(path)


def read_everything(path: Path) -> None:
    Run.open(path).metrics()
    for file in whole_files(path):
        read_tensors(file)


def test_a_damaged_state_is_named_and_the_one_before_is_taken(digits, tmp_path, caplog):
    run = trained(tmp_path / "run", digits, steps=12)
    older = run.path / "state" / "00000012.safetensors"
    newer = run.path / "state" / "00000013.safetensors"
    newer.write_bytes(older.read_bytes()[:-7])
    caplog.set_level("INFO", "variational_diffusion")
    trained(tmp_path / "run", digits, steps=12)
    assert "00000013.safetensors' is damaged" in caplog.text
    assert "going on from step 12" in caplog.text
    for state in older.parent.iterdir():
        if state != newer:
            state.write_bytes(b"")
    with pytest.raises(InputError, match=r"every state is damaged: .*13\.safetensors"):
        run.resume()


def test_states_that_are_kept(digits, tmp_path):
    run = train(digits, tmp_path / "run", progress=False, keep=3, **options(steps=9, every=0.0))
    assert run.states() == [9, 8, 7, 5]  # and the one before the rates fell
    best = [line["validation"]["bits_per_dim"] for line in run.metrics() if "validation" in line]
    metadata = read_tensors(run.path / "best.safetensors")[1]
    assert float(metadata["bits_per_dim"]) == min(best)
    assert run.load("best").shape == (1, 8, 8)


class Breakable(MLP):
    """A network whose training gives no numbers while it is broken."""

    broken = False

    def forward(self, *inputs):
        output = super().forward(*inputs)
        return output * float("nan") if self.training and self.broken else output


def test_a_run_that_diverges_goes_back_once_and_then_says_why(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(Breakable, "broken", False)
    path = tmp_path / "run"
    asked = options(steps=40, every=0.0)
    asked["settings"] = {"network.width": 8, "network.blocks": 1, "training.batch_size": 8}
    seen = []
    for event in training_events(digits, path, network=Breakable, **asked):
        if isinstance(event, Save) and event.step == 5 and not seen:
            Breakable.broken = True
        if isinstance(event, GoingBack):
            Breakable.broken = False
            seen.append(event)
    (back,) = seen
    assert (back.step, back.rate) == (5, 0.3)
    assert "diverged in step 15" in back.reason
    run = Run.open(path, network=Breakable)
    lines = [line for line in run.metrics() if "learning_rate" in line]
    assert lines[-1]["skipped"] == 0
    assert run.resume().state.rate == 0.3
    assert run.states()[0] == 40
    events = training_events(digits, path, network=Breakable, **{**asked, "steps": 60})

    def breaking(event):
        Breakable.broken = event.step > 41

    with pytest.raises(InputError, match=r"diverged in step 5\d,.*keeps its state of step 4\d$"):
        deque(map(breaking, events))
    Breakable.broken = False
    two = training_events(digits, tmp_path / "two", network=Breakable, **{**asked, "every": 1e9})

    def broken(_):
        Breakable.broken = True

    with pytest.raises(InputError, match=r"diverged in step 11,.*has no state yet"):
        deque(map(broken, two))


def test_a_disk_that_is_full_leaves_the_state_before(digits, tmp_path):
    run = trained(tmp_path / "run", digits, steps=6)
    state = run.resume().state
    before = {file: file.read_bytes() for file in whole_files(run.path)}
    limit = os.path.getsize(run.path / "state" / "00000006.safetensors") // 2
    full = pytest.raises(InputError, match=r"cannot be written.*free some space")
    with limited_files(limit), full:
        run.save(state)
    assert {file: file.read_bytes() for file in whole_files(run.path)} == before
    assert not [file for file in run.path.rglob(".*") if file.is_file()]


@contextmanager
def limited_files(size: int):
    """Set a largest size of files, beyond which writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_directory_that_is_gone_is_named(digits, tmp_path):
    run = trained(tmp_path / "run", digits, steps=6)
    state = run.resume().state
    shutil.rmtree(run.path / "state")
    with pytest.raises(InputError, match=r"state' is no folder; mkdir -p"):
        run.save(state)


def test_a_data_file_that_disappears_while_training_is_named(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(30):
        pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i:02}.png")
    events = training_events(tmp_path, tmp_path / "run", **options(steps=60, every=0.0))

    def remove(event):
        for file in tmp_path.glob("*.png") if isinstance(event, Save) else ():
            file.unlink()

    with pytest.raises(InputError, match=r"\.png"):
        deque(map(remove, events))
    assert Run.open(tmp_path / "run").resume().state.step >= 1


def test_the_share_of_time_that_data_and_saving_take_is_logged(digits, tmp_path):
    assert vdm(["train", "digits", "--run", str(tmp_path / "run"), "--steps", "50", "--json"]) == 0
    (line,) = [line for line in Run.open(tmp_path / "run").metrics() if "waiting" in line]
    assert 0 <= line["waiting"] < 0.5
    assert line["examples_per_second"] > 0
    assert line["memory"] > 2**20
    json.dumps(line)
