"""Runs that are killed, and files and disks that fail: nothing that was saved is lost."""

import json
import os
import random
import resource
import shutil
import signal
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from variational_diffusion.cli import run as vdm
from variational_diffusion.cli.session import Session
from variational_diffusion.config import DataConfig
from variational_diffusion.data import open_dataset
from variational_diffusion.errors import InputError
from variational_diffusion.presets import configure
from variational_diffusion.run.directory import Run
from variational_diffusion.storage.tensors import read_tensors

DATA = DataConfig(source="digits")
KILLS = 24


@pytest.fixture(scope="module")
def digits():
    return open_dataset(DATA)


def session(path: Path, digits, *, steps: int, every: float = 1e9, **settings: object) -> Session:
    chosen = {
        "network.widths": [8],
        "training.steps": steps,
        "training.batch_size": 8,
        "training.warmup_steps": 2,
        **settings,
    }
    config = configure(DATA, digits, settings=chosen)
    return Session(str(path), config, digits, torch.device("cpu"), every=every)


def in_a_child(path: Path, digits, **options) -> int:
    """Train in a child process; return its number."""
    child = os.fork()
    if child == 0:  # no return: what the parent's test run has set up is not the child's to end
        with suppress(BaseException):
            os.close(2)
            session(path, digits, **options).train()
        os._exit(0)
    return child


def whole_files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*.safetensors") if not file.name.startswith(".")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_kills_at_any_moment_lose_no_more_than_the_steps_since_the_last_save(digits, tmp_path):
    """It saves at every other step or so, so that many kills fall into a save."""
    path, rng = tmp_path / "run", random.Random(0)
    options = {"steps": 400, "every": 0.01}
    saved = 0
    for number in range(KILLS):
        child = in_a_child(path, digits, **options)
        kind = signal.SIGTERM if number % 4 == 3 else signal.SIGKILL
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not (path / "config.json").exists():
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.4))
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
    assert 0 < saved < 400
    interrupted = session(path, digits, **options)
    interrupted.train()
    plain = session(tmp_path / "plain", digits, steps=400)
    plain.train()
    for name, weight in plain.state.vdm.state_dict().items():
        assert torch.equal(interrupted.state.vdm.state_dict()[name], weight), name
    for name, weight in plain.state.average.module.state_dict().items():
        assert torch.equal(interrupted.state.average.module.state_dict()[name], weight), name


def test_a_stream_goes_on_where_the_last_save_was(digits, tmp_path):
    """In two lanes, over the end of an epoch, with a crash between two saves."""
    folder = tmp_path / "data"
    folder.mkdir()
    images = digits.splits["train"].read()[:120, 0]
    for shard, part in enumerate(np.array_split(images, 4)):
        table = pyarrow.table({"image": [image.tolist() for image in part]})
        pyarrow.parquet.write_table(table, folder / f"{shard}.parquet", row_group_size=10)
    config = DataConfig(
        source=str(folder), levels=17, streaming=True, shuffle_buffer=16, lanes=2, hold_out=8
    )
    chosen = {"network.widths": [8], "training.steps": 26, "training.batch_size": 8}

    def streamed(name: str) -> Session:
        data = open_dataset(config)
        asked = configure(config, data, settings=chosen)
        return Session(str(tmp_path / name), asked, data, torch.device("cpu"), every=0.0)

    whole = streamed("whole")
    whole.train()
    cut = streamed("cut")
    save = cut._save

    def then_crash():
        if cut.state.step == 13:
            raise ZeroDivisionError("a crash")
        if cut.state.step % 5 == 0:
            save()

    cut._save = then_crash
    with pytest.raises(ZeroDivisionError):
        cut.train()
    assert Run.open(tmp_path / "cut").states() == [10, 5]
    again = streamed("cut")
    assert set(again.position["lanes"]) == {"0", "1"}
    again.train()
    for name, weight in whole.state.vdm.state_dict().items():
        assert torch.equal(again.state.vdm.state_dict()[name], weight), name


def newest(path: Path) -> int:
    states = (path / "state").glob("[0-9]*.safetensors")
    return max((int(file.stem) for file in states), default=0)


def test_a_flipped_bit_in_any_file_is_found(digits, tmp_path):
    session(tmp_path / "run", digits, steps=60).train()
    path = tmp_path / "run"
    rng = np.random.default_rng(0)
    files = [file for file in path.rglob("*") if file.is_file()]
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
            with pytest.raises(InputError, match=rf"(?s){file.parent.name}"):
                read_everything(path)
        file.write_bytes(content)
    read_everything(path)


def read_everything(path: Path) -> None:
    Run.open(path).metrics()
    for file in whole_files(path):
        read_tensors(file)


def test_a_damaged_state_is_named_and_the_one_before_is_taken(digits, tmp_path, capsys):
    first = session(tmp_path / "run", digits, steps=12)
    first.train()
    run = Run.open(tmp_path / "run")
    older = run.path / "state" / "00000012.safetensors"
    newer = run.path / "state" / "00000013.safetensors"
    newer.write_bytes(older.read_bytes()[:-7])
    again = session(tmp_path / "run", digits, steps=12)
    assert again.state.step == 12
    assert "00000013.safetensors' is damaged" in capsys.readouterr().err
    older.write_bytes(b"")
    with pytest.raises(InputError, match=r"every state is damaged: .*13\.safetensors"):
        run.resume()


def test_states_that_are_kept(digits, tmp_path):
    one = session(tmp_path / "run", digits, steps=9, every=0.0)
    one.keep = 3
    one.train()
    assert one.run.states() == [9, 8, 7]
    best = [
        line["validation"]["bits_per_dim"] for line in one.run.metrics() if "validation" in line
    ]
    metadata = read_tensors(one.run.path / "best.safetensors")[1]
    assert float(metadata["bits_per_dim"]) == min(best)
    assert one.run.load("best").shape == (1, 8, 8)


def test_a_run_that_diverges_goes_back_once_and_then_says_why(digits, tmp_path, capsys):
    one = session(tmp_path / "run", digits, steps=40, every=0.0)
    broken = []

    def hook(module, inputs, output):
        return output * float("nan") if module.training and broken else output

    one.state.vdm.network.register_forward_hook(hook)
    go_back, save = one._go_back, one._save

    def then_break():
        save()
        broken.extend([1] * (one.state.step >= 5))

    def mended(error):
        broken.clear()
        one._save = save
        go_back(error)

    one._save, one._go_back = then_break, mended
    one.train()
    said = capsys.readouterr().err
    assert "going back to step 5 with 0.3 of the rates" in said
    assert one.state.step == 40
    assert one.state.rate == 0.3
    lines = [line for line in one.run.metrics() if "learning_rate" in line]
    assert lines[-1]["skipped"] == 0
    resumed = session(tmp_path / "run", digits, steps=40)
    assert resumed.state.rate == 0.3
    two = session(tmp_path / "two", digits, steps=40)
    two.state.vdm.network.register_forward_hook(lambda *_: torch.full((8, 1, 8, 8), float("nan")))
    with pytest.raises(InputError, match=r"diverged in step 10,.*has no state yet"):
        two.train()


def test_a_disk_that_is_full_leaves_the_state_before(digits, tmp_path, monkeypatch):
    one = session(tmp_path / "run", digits, steps=6)
    one.train()
    before = {file: file.read_bytes() for file in whole_files(one.run.path)}
    limit = os.path.getsize(one.run.path / "state" / "00000006.safetensors") // 2
    full = pytest.raises(InputError, match=r"cannot be written.*free some space")
    with limited_files(limit), full:
        one.run.save(one.state)
    assert {file: file.read_bytes() for file in whole_files(one.run.path)} == before
    assert not [file for file in one.run.path.rglob(".*") if file.is_file()]


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
    one = session(tmp_path / "run", digits, steps=6)
    one.train()
    shutil.rmtree(one.run.path / "state")
    with pytest.raises(InputError, match=r"state' is no folder; mkdir -p"):
        one.run.save(one.state)


def test_a_data_file_that_disappears_while_training_is_named(tmp_path, capsys):
    rng = np.random.default_rng(0)

    for i in range(30):
        pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i:02}.png")
    config = DataConfig(source=str(tmp_path))
    data = open_dataset(config)
    chosen = {"network.widths": [8], "training.steps": 60, "training.batch_size": 8}
    one = Session(
        str(tmp_path / "run"),
        configure(config, data, settings=chosen),
        data,
        torch.device("cpu"),
        every=0.0,
    )
    save = one._save

    def then_remove():
        save()
        for file in tmp_path.glob("*.png"):
            file.unlink()

    one._save = then_remove
    with pytest.raises(InputError, match=r"\.png"):
        one.train()
    assert Run.open(tmp_path / "run").resume().state.step >= 1


def test_the_share_of_time_that_data_and_saving_take_is_logged(digits, tmp_path):
    assert vdm(["train", "digits", "--run", str(tmp_path / "run"), "--steps", "50", "--json"]) == 0
    (line,) = [line for line in Run.open(tmp_path / "run").metrics() if "waiting" in line]
    assert 0 <= line["waiting"] < 0.5
    assert line["examples_per_second"] > 0
    assert line["memory"] > 2**20
    json.dumps(line)
