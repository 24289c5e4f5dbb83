"""Trackers: what TensorBoard's files hold afterwards, and what is refused."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from variational_diffusion.cli import run as vdm
from variational_diffusion.errors import InputError
from variational_diffusion.run.tracking import Tracking
from variational_diffusion.run.training import train


def events(path) -> EventAccumulator:
    return EventAccumulator(str(path), size_guidance={"scalars": 0, "images": 0}).Reload()


def figures(path, tag: str) -> dict[int, float]:
    return {event.step: event.value for event in events(path).Scalars(tag)}


def pixels(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_a_run_is_found_in_tensorboard_as_in_its_metrics(tmp_path):
    path = tmp_path / "run"
    small = {"training.batch_size": 8, "network.widths": [8, 8]}
    options = {"log_every": 2, "sheets_every": 0.0, "track": ["tensorboard"], "settings": small}
    train("digits", path, steps=4, progress=False, **options)
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    trained = {line["step"]: line["train"]["diffusion"] for line in lines if "train" in line}
    assert list(trained) == [2, 4]
    found = figures(path / "tracking", "train/diffusion")
    assert found == pytest.approx(trained)
    validation = lines[-1]["validation"]
    for name in ("bits_per_dim", "standard_error", "terms/diffusion"):
        outer, _, inner = name.partition("/")
        expected = validation[outer][inner] if inner else validation[outer]
        assert figures(path / "tracking", f"validation/{name}") == pytest.approx({4: expected})
    shown = events(path / "tracking").Images("samples")
    assert [image.step for image in shown] == [1, 2, 3, 4]
    height, width, *_ = pixels(path / "samples" / "step-00000004.png").shape
    assert (shown[-1].height, shown[-1].width) == (height, width)


def test_sheets_are_of_one_seed_and_change_nothing(tmp_path):
    weights = []
    for name, every in (("a", "0"), ("b", "0"), ("c", "30")):
        path = tmp_path / name
        arguments = ["train", "digits", "--run", str(path), "--steps", "2", "--batch-size", "8"]
        arguments += ["--set", "network.widths=[8,8]", "--sheets-every", every]
        assert vdm(arguments) == 0
        weights.append((path / "model.safetensors").read_bytes()[-1000:])
    assert weights[0] == weights[2]
    first, second = (pixels(tmp_path / name / "samples" / "step-00000002.png") for name in "ab")
    assert (first == second).all()
    assert not list((tmp_path / "c" / "samples").iterdir())


def test_steps_that_are_done_again_are_drawn_once(tmp_path):
    for begin, end, value in ((0, 6, 1.0), (3, 8, 2.0)):
        with Tracking(["tensorboard", "tensorboard"]) as tracker:
            tracker.start(tmp_path, {}, begin)
            for step in range(begin + 1, end + 1):
                values = {"step": step, "loss": value, "none": None, "of": [0.5, {"x": 1}]}
                tracker.log(step, values)
    found = [(event.step, event.value) for event in events(tmp_path / "tracking").Scalars("loss")]
    assert found == [(step, 1.0 if step <= 3 else 2.0) for step in range(1, 9)]
    tags = events(tmp_path / "tracking").Tags()["scalars"]
    assert sorted(tags) == ["loss", "of/0", "of/1/x"]


def test_without_a_name_nothing_is_written(tmp_path):
    with Tracking() as tracker:
        tracker.start(tmp_path, {}, 0)
        tracker.log(1, {"loss": 1.0})
        tracker.image(1, "samples", Image.new("L", (4, 4)))
    assert not list(tmp_path.iterdir())


def test_a_tracker_that_is_not_there_is_one_line(tmp_path, monkeypatch, capsys):
    with pytest.raises(InputError, match=r"track = 'board': known are aim, .*tensorboard"):
        Tracking(["board"])
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [])
    with pytest.raises(InputError, match=r"'wandb': not installed; type: pip install wandb$"):
        Tracking(["wandb"])
    path = tmp_path / "run"
    arguments = ["train", "digits", "--run", str(path), "--steps", "1", "--track", "tensorboard"]
    assert vdm(arguments) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert re.search(r"pip install 'variational-diffusion\[tracking\]'", told[0])
    assert not path.exists()
