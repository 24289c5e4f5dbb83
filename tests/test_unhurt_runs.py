"""A run directory survives what happens to it: kills, damage, mix-ups, two trainings at once."""

import json
import os
import resource
import shutil
import signal
import socket
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
import torch

from variational_diffusion import anomaly
from variational_diffusion.data import open_dataset
from variational_diffusion.data.loader import Batches
from variational_diffusion.errors import DamagedFileError, InputError
from variational_diffusion.machine.distributed import Place
from variational_diffusion.run import averages, evaluations
from variational_diffusion.run.directory import Run
from variational_diffusion.run.evaluation import evaluate
from variational_diffusion.run.samples import sample
from variational_diffusion.run.trained import Trained
from variational_diffusion.run.training import train, training_events
from variational_diffusion.storage import json_lines, lock, tensors
from variational_diffusion.storage.files import cached
from variational_diffusion.storage.tensors import read_tensors, write_tensors
from variational_diffusion.training import StepRecord

DATA = np.random.default_rng(0).normal(size=(80, 2))
SMALL = {"network.width": 8, "network.blocks": 1, "training.batch_size": 8}
STEPS = 6


def options(steps: int = STEPS, seed: int = 0, **settings: object) -> dict[str, object]:
    return {"steps": steps, "seed": seed, "device": "cpu", "settings": {**SMALL, **settings}}


def trained(path: Path, **asked: object) -> Run:
    return train(DATA, path, progress=False, **options(**asked))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "finished").path


@pytest.fixture(scope="module")
def stranger(tmp_path_factory) -> Path:
    """A run of the same shape and data by another seed."""
    return trained(tmp_path_factory.mktemp("runs") / "stranger", seed=1).path


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def contents(run: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def assert_same_tensors(one: Path, two: Path) -> None:
    first, second = read_tensors(one)[0], read_tensors(two)[0]
    assert first.keys() == second.keys()
    for name, values in first.items():
        assert torch.equal(values, second[name]), name


# one run, one training


def test_a_second_training_names_the_first_and_ends(tmp_path):
    path = tmp_path / "run"
    events = training_events(DATA, path, **options())
    next(events)
    with pytest.raises(InputError) as told:
        trained(path)
    assert f"process {os.getpid()} on {socket.gethostname()}, since 20" in str(told.value)
    events.close()
    assert max(trained(path).states()) == STEPS
    assert (path / "training.lock").read_text() == ""


def test_a_second_training_in_another_directory_is_none_of_its_business(tmp_path):
    events = training_events(DATA, tmp_path / "a", **options())
    next(events)
    trained(tmp_path / "b")
    events.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_lock_left_by_a_kill_does_not_block(tmp_path):
    path = tmp_path / "training.lock"
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with lock.locked(path):
            os.write(writing, b".")
            signal.pause()
        os._exit(0)
    os.read(reading, 1)
    with lock.locked(path) as holder:
        assert f"process {child} on" in holder
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert str(child) in path.read_text()  # the name is still there, and does not count
    with lock.locked(path) as holder:
        assert holder is None


@pytest.mark.parametrize(
    ("text", "held"),
    [
        (json.dumps({"name": "me", "host": "HERE", "process": os.getppid()}), True),
        (json.dumps({"name": "me", "host": "elsewhere", "process": os.getppid()}), False),
        (json.dumps({"name": "me", "host": "HERE", "process": 2**22 + 1}), False),
        (json.dumps({"name": "me", "host": "HERE", "process": 10**30}), False),
        ("[" * 100_000, False),
        ("[1, 2]", False),
        ("", False),
    ],
)
def test_without_locks_a_living_process_of_this_machine_counts(
    text, held, tmp_path, monkeypatch, caplog
):
    def refused(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", refused)
    path = tmp_path / "training.lock"
    path.write_text(text.replace("HERE", socket.gethostname()))
    with lock.locked(path) as holder:
        assert (holder is not None) == held
    assert "this file system has no locks" in caplog.text


# a run whose first step failed


def test_a_run_without_a_step_does_not_block_its_name(tmp_path):
    """The second settings are those of another configuration; so are the third, and now it has."""
    path = tmp_path / "run"
    events = training_events(DATA, path, **options())
    events.close()
    Run.start(path, trained(tmp_path / "other").config)
    run = trained(path, **{"network.width": 16})
    assert run.config.model.network.options["width"] == 16
    with pytest.raises(InputError, match=r"holds a run of another configuration .*width"):
        trained(path)


# what is left goes on


@pytest.mark.parametrize("left", [("model", "ema", "best"), ("ema",), ("model",), ("best",)])
def test_a_finished_run_without_its_states_keeps_what_it_has(left, copy, tmp_path, caplog):
    shutil.rmtree(copy / "state")
    for name in {"model", "ema", "best"} - {*left}:
        (copy / f"{name}.safetensors").unlink()
    before = contents(copy)
    caplog.set_level("INFO")
    trained(copy)
    assert "has no state of training any more" in caplog.text
    assert "which is the budget" in caplog.text
    for name in left:
        before_path = tmp_path / "before.safetensors"
        before_path.write_bytes(before[f"{name}.safetensors"])
        assert_same_tensors(copy / f"{name}.safetensors", before_path)
    assert (copy / "metrics.jsonl").read_bytes() == before["metrics.jsonl"]


def test_a_finished_run_that_ends_again_changes_no_file(copy):
    before = contents(copy)
    trained(copy)
    assert contents(copy) == before


def test_a_run_that_was_killed_before_its_last_line_gets_it(copy):
    path = copy / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    trained(copy)
    assert len(path.read_bytes().splitlines()) == len(whole.splitlines())


def test_with_a_larger_budget_it_goes_on_from_its_weights(copy):
    shutil.rmtree(copy / "state")
    steps = [
        event.step
        for event in training_events(DATA, copy, **options(steps=STEPS + 2))
        if isinstance(event, StepRecord)
    ]
    assert steps == [STEPS + 1, STEPS + 2]


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors"])
@pytest.mark.parametrize("ailment", ["gone", "old", "flipped", "cut", "a stranger's"])
def test_the_same_command_repairs_the_weights(name, ailment, finished, stranger, copy):
    path = copy / name
    if ailment == "gone":
        path.unlink()
    elif ailment == "old":
        values, about = read_tensors(path)
        write_tensors(path, {k: 2 * v for k, v in values.items()}, {**about, "step": "3"})
    elif ailment == "a stranger's":
        shutil.copy(stranger / name, path)
    else:
        content = bytearray(path.read_bytes())
        content[-9] ^= 4
        path.write_bytes(content if ailment == "flipped" else content[:-9])
    trained(copy)
    assert_same_tensors(path, finished / name)


def test_a_damaged_best_is_named_and_replaced(copy, caplog):
    path = copy / "best.safetensors"
    content = path.read_bytes()
    at = content.index(b'"bits_per_dim":"') + len(b'"bits_per_dim":"')
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    trained(copy)
    assert "best.safetensors' is damaged" in caplog.text
    assert read_tensors(path)


# a state is of a whole step


def test_an_interrupt_between_a_step_and_its_position_saves_no_half(tmp_path, monkeypatch):
    position, calls = Batches.position, 0

    def interrupted(self):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return position(self)

    whole = trained(tmp_path / "whole")
    monkeypatch.setattr(Batches, "position", interrupted)
    with suppress(KeyboardInterrupt):
        trained(tmp_path / "cut")
    assert 4 not in Run.open(tmp_path / "cut").states()
    trained(tmp_path / "cut")
    assert_same_tensors(tmp_path / "cut" / "ema.safetensors", whole.path / "ema.safetensors")


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminals that are closed")
@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_saves_unless_it_is_ignored(ignored, tmp_path):
    path = tmp_path / "run"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with suppress(KeyboardInterrupt):
            for event in training_events(DATA, path, **options(steps=20)):
                if isinstance(event, StepRecord) and event.step == 3:
                    os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert max(Run.open(path).states()) == (20 if ignored else 4)


# files belong to their run


@pytest.mark.parametrize("weights", ["ema", "raw", "best"])
def test_weights_of_another_run_are_refused(weights, copy, stranger):
    own = Run.open(copy).weights_path(weights)
    shutil.copy(stranger / own.name, own)
    with pytest.raises(InputError, match=rf"{own.name}' belongs to another run"):
        Run.open(copy).load(weights)


def test_states_and_snapshots_of_another_run_are_refused(copy, stranger):
    for folder in ("state", "averages"):
        shutil.rmtree(copy / folder)
        shutil.copytree(stranger / folder, copy / folder)
    with pytest.raises(InputError, match="belongs to another run"):
        trained(copy)
    with pytest.raises(InputError, match="belongs to another run"):
        averages.reconstruct(Run.open(copy), 0.1)


@pytest.mark.parametrize(
    ("place", "brought"),
    [
        ("state/00000006.safetensors", "ema.safetensors"),
        ("ema.safetensors", "model.safetensors"),
        ("ema.safetensors", "best.safetensors"),
        ("model.safetensors", "state/00000006.safetensors"),
        ("averages/00000006.safetensors", "state/00000006.safetensors"),
    ],
)
def test_a_file_of_another_kind_in_its_place_is_named(place, brought, copy):
    for path in (copy / "state").glob("*3.safetensors"):
        path.unlink()
    shutil.copy(copy / brought, copy / place)
    run = Run.open(copy)
    read = {
        "state": run.resume,
        "averages": lambda: averages.reconstruct(run, 0.1),
        "ema.safetensors": run.load,
        "model.safetensors": lambda: run.load("raw"),
    }[place.split("/")[0]]
    with pytest.raises(InputError, match=r"restore the|belong to different models"):
        read()


def test_a_state_under_the_name_of_another_step_is_not_taken(copy):
    (copy / "state" / "00000006.safetensors").rename(copy / "state" / "00000009.safetensors")
    resumed = Run.open(copy).resume()
    assert resumed.state.step == 3
    assert "not of one save of step 9" in resumed.damaged[0]


def test_parts_of_two_saves_make_no_state(copy):
    run = Run.open(copy)
    state = run.resume().state
    shutil.rmtree(copy / "state")
    (copy / "state").mkdir()
    run.save(state, place=Place(0, 2), token="a")
    run.save(state, place=Place(1, 2), token="a")
    assert run.resume().state.step == STEPS
    run.save(state, place=Place(1, 2), token="b")
    with pytest.raises(InputError, match="not of one save of step 6"):
        run.resume()


def test_a_run_of_before_opens_goes_on_and_may_hold_no_file_of_a_newer_one(copy, stranger):
    values = json.loads((copy / "config.json").read_text())
    assert values.pop("identity")
    config = Run.open(copy).config.model_copy(update={"identity": ""})
    assert "identity" not in config.to_json()
    (copy / "config.json").write_text(config.to_json())
    for path in copy.rglob("*.safetensors"):
        tensors_, about = read_tensors(path)
        old = {k: v for k, v in about.items() if k not in ("run", "kind", "save")}
        write_tensors(path, tensors_, old)
    run = trained(copy, steps=STEPS + 1)
    assert max(run.states()) == STEPS + 1
    assert run.load("best") is not None
    shutil.copy(stranger / "ema.safetensors", copy / "ema.safetensors")
    with pytest.raises(InputError, match="belongs to another run"):
        run.load()


def test_identity_is_of_what_was_asked_and_not_of_the_budget(finished, stranger, tmp_path):
    own = Run.open(finished).config
    assert own.identity == trained(tmp_path / "again", steps=2).config.identity
    assert own.identity != Run.open(stranger).config.identity
    assert own.with_budget(99, None).identity == own.identity


# leftovers


def test_what_killed_saves_left_is_removed(copy):
    young = [copy / "state" / ".00000004.0123abcd.safetensors", copy / "averages" / ".tmpAb12Cd"]
    parts = [copy / "state" / "00000005-1-of-2.safetensors"]
    old = [copy / ".ema.89abcdef.safetensors", copy / ".tmpZZZZZZ"]
    kept = [copy / ".report.89abcdef.html", copy / ".notes", copy / "state" / ".mine.txt"]
    for path in (*young, *parts, *old, *kept):
        path.write_bytes(b"left")
    for path in (*old, copy / ".notes"):
        os.utime(path, (0, 0))
    trained(copy)
    assert [path for path in (*young, *parts, *old) if path.exists()] == []
    assert all(path.exists() for path in kept)
    assert max(Run.open(copy).states()) == STEPS


# lines


def test_a_line_cut_short_costs_nothing_but_itself(copy, caplog):
    run = Run.open(copy)
    evaluations.record(run, "ema", {"bits_per_dim": 1.0}, data="a", command="first")
    with (copy / "evaluations.jsonl").open("a") as file:
        file.write('{"half')
    evaluations.record(run, "ema", {"bits_per_dim": 2.0}, data="a", command="second")
    found = evaluations.of_weights(run)
    assert [entry["command"] for entry in found] == ["first", "second"]
    assert "evaluations.jsonl' is damaged in line 2, which is left out" in caplog.text


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[1]",
        b"null",
        b"[" * 100_000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b'{"step": ' + b"1" * 5000 + b"}",
        b"\xff\xfe",
        b'{"step": 1, "crc32": 5}',
        b"",
    ],
)
def test_no_line_hides_those_after_it(line, tmp_path, caplog):
    path = tmp_path / "lines.jsonl"
    json_lines.append(path, {"step": 1})
    with path.open("ab") as file:
        file.write(line + b"\n")
    json_lines.append(path, {"step": 2})
    assert [values["step"] for values in json_lines.read(path)] == [1, 2]
    assert "line 2" in caplog.text
    json_lines.keep(path, lambda values: True)
    caplog.clear()
    assert [values["step"] for values in json_lines.read(path)] == [1, 2]
    assert caplog.text == ""
    assert path.with_suffix(".damaged").read_bytes() == line + b"\n"


def test_a_full_disk_leaves_the_lines_as_they_were(tmp_path):
    """A limit on the size of files cuts the second line short, as a full disk does."""
    path = tmp_path / "lines.jsonl"
    json_lines.append(path, {"step": 1})
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))
    try:
        with pytest.raises(InputError, match=r"lines.jsonl' cannot be written: .*free some space"):
            json_lines.append(path, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    json_lines.append(path, {"step": 3})
    assert [values["step"] for values in json_lines.read(path)] == [1, 3]


def test_many_writers_share_a_file_of_lines(tmp_path):
    path = tmp_path / "lines.jsonl"

    def write(number: int) -> None:
        for k in range(50):
            json_lines.append(path, {"writer": number, "k": k})

    threads = [Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(json_lines.read(path)) == 200


# caches


def test_a_figure_is_given_where_it_cannot_be_kept(copy, caplog):
    """A folder stands where the file belongs, which root cannot write either."""
    run = Run.open(copy)
    run.data = open_dataset(DATA)
    (copy / "errors-ema.safetensors").mkdir()
    (copy / "evaluations.jsonl").mkdir()
    asked = {"estimator": "discrete", "steps": 5, "variance": "scalar"}
    found = evaluate(run, DATA[:20], rounds=1, **asked)
    assert np.isfinite(found.bits_per_dim)
    evaluations.record(run, "ema", found.as_json(), data="a", command="x")
    assert "it is measured again" in caplog.text
    assert "the measured errors of the model could not be kept: " in caplog.text
    assert "the record of these figures" in caplog.text


def test_a_cache_hides_no_defect():
    with pytest.raises(ZeroDivisionError), cached("it"):
        _ = 1 / 0


# readers beside a writer, and memory


def test_a_reader_beside_a_writer_sees_one_file_or_the_other(tmp_path):
    path, done = tmp_path / "x.safetensors", Event()
    sizes = (3, 5000)

    def write() -> None:
        k = 0
        while not done.is_set():
            k += 1
            write_tensors(path, {"a": torch.full((sizes[k % 2],), float(k))}, {"k": str(k)})

    write_tensors(path, {"a": torch.zeros(3)}, {"k": "0"})
    thread = Thread(target=write)
    thread.start()
    try:
        for _ in range(150):
            found, about = read_tensors(path)
            assert bool((found["a"] == float(about["k"])).all())
    finally:
        done.set()
        thread.join()


def test_a_file_that_stays_damaged_is_read_once(tmp_path, monkeypatch):
    path, reads = tmp_path / "x.safetensors", []
    path.write_bytes(b"no tensors")
    read = tensors._read
    monkeypatch.setattr(tensors, "_read", lambda path: (reads.append(path), read(path))[1])
    with pytest.raises(DamagedFileError):
        read_tensors(path)
    assert len(reads) == 1


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("unable to mmap 881608 bytes from file <x>: Cannot allocate memory (12)"),
        OSError(12, "Cannot allocate memory"),
        MemoryError(),
    ],
)
def test_want_of_memory_is_no_damage(error, copy, monkeypatch):
    def refused(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(tensors, "safe_open", refused)
    with pytest.raises(InputError, match="not enough memory") as told:
        read_tensors(copy / "ema.safetensors")
    assert not isinstance(told.value, DamagedFileError)
    with pytest.raises(InputError, match="not enough memory"):
        Run.open(copy).resume()  # no older state is taken for it


# Ctrl-C


def after(calls: int):
    """Return what says that a signal has come, from its call of this number on."""
    asked = iter(range(10**9))
    return lambda: next(asked) >= calls


def test_samples_that_were_drawn_are_given(finished):
    trained_run = Trained.open(Run.open(finished))
    whole = sample(trained_run, 600, steps=2, sampler="ancestral", seed=3)
    for calls in range(9):
        stopped = after(calls)
        if calls < 4:  # two steps of the first part, each with its start, and the part
            with suppress(KeyboardInterrupt):
                found = sample(
                    trained_run, 600, steps=2, sampler="ancestral", seed=3, stopped=stopped
                )
                raise AssertionError(len(found.values))
            continue
        found = sample(trained_run, 600, steps=2, sampler="ancestral", seed=3, stopped=stopped)
        assert found.stopped
        assert len(found.values) in (250, 500)
        assert np.array_equal(found.values, whole.values[: len(found.values)])


def test_examples_that_were_reached_are_scored(finished):
    """Batches of the held-out examples come first; of the others, the first two are reached."""
    vdm = Run.open(finished).load()
    splits = open_dataset(np.random.default_rng(1).normal(size=(2000, 2))).splits
    held_out, test = splits["validation"], splits["train"]
    whole = anomaly.score(vdm, test, held_out, "bits", draws=1)
    reached = []
    for calls in range(8):
        try:
            found = anomaly.score(vdm, test, held_out, "bits", draws=1, stopped=after(calls))
        except KeyboardInterrupt:
            assert not reached
            continue
        if found.stopped:
            assert found.title.count("where it was stopped") == 1
            assert np.array_equal(found.number, whole.number[: len(found)])
            assert np.array_equal(found.p_value, whole.p_value[: len(found)])
            reached.append(len(found))
    assert reached
    assert reached == sorted(reached)
    assert reached[-1] < len(test)


def test_held_out_examples_among_those_scored_are_kept(finished):
    """All splits are scored: what is known of the validation is scored, whatever was reached."""
    vdm = Run.open(finished).load()
    splits = open_dataset(np.random.default_rng(1).normal(size=(600, 2))).splits
    found = anomaly.score(vdm, splits, splits["validation"], "bits", draws=1, stopped=after(1))
    assert found.stopped
    assert list(found.parts) == ["validation"]
    assert len(found) == len(splits["validation"])


# hostile configurations


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"format": 1, "data": ' + "[" * 900 + "]" * 900 + "}",
        '{"format": ' + "1" * 5000 + "}",
        '{"format": 1, "digest": {}}',
        "\x00",
        "null",
        '"config"',
    ],
)
def test_a_hostile_configuration_gets_a_line(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config.json") as told:
        Run.open(tmp_path)
    assert len(str(told.value).splitlines()) == 1
    assert len(str(told.value)) < 1000
