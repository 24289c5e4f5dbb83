"""Runs with one validation example: every command that measures the model's errors works."""

import json

import numpy as np
import pytest

from commands import TRAIN, output
from variational_diffusion.cli import run
from variational_diffusion.data import open_dataset
from variational_diffusion.data.augment import Augmentation
from variational_diffusion.run.directory import Run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on twelve images, flipped in training; one is kept for the validation."""
    folder = tmp_path_factory.mktemp("few")
    images = np.random.default_rng(1).integers(0, 17, (12, 1, 8, 8), dtype=np.uint8)
    np.save(folder / "images.npy", images)
    path = str(folder / "run")
    options = ["--levels", "17", "--flip", "horizontal", "--threads", "1"]
    assert run(["train", str(folder / "images.npy"), "--run", path, *TRAIN, *options]) == 0
    assert len(open_dataset(Run.open(path).config.data).splits["validation"]) == 1
    return path


@pytest.fixture
def as_they_are(monkeypatch):
    """Fail where an example is flipped or cropped at random."""

    def refuse(*_):
        raise AssertionError("an example to measure on was augmented")

    monkeypatch.setattr(Augmentation, "random", refuse)


def test_the_errors_of_a_model_are_measured_on_one_example_as_it_is(trained, as_they_are, capsys):
    chain = ["evaluate", trained, "--estimator", "discrete", "--steps", "5", "--split", "train"]
    printed = output(capsys, [*chain, "--grid", "optimal", "--variance", "scalar", "--json"])
    assert "errors: with fewer than 100 examples, here 1, the estimate is rough" in printed.err
    scalar = json.loads(printed.out)["bits_per_dim"]
    options = [*chain, "--grid", "equal-error", "--variance", "position", "--json"]
    position = json.loads(output(capsys, options).out)["bits_per_dim"]
    assert 3 < scalar < 16
    assert 3 < position < 16
    errors = Run.open(trained).errors()
    assert errors is not None
    assert errors.error.isfinite().all()
    assert (errors.error > 0).all()


def test_examples_are_compressed_with_errors_of_one(trained, as_they_are, tmp_path, capsys):
    out = str(tmp_path / "few.vdmz")
    printed = output(capsys, ["compress", trained, "--out", out, "--steps", "10", "--json"])
    assert json.loads(printed.out)["examples"] == 1


def test_the_schedule_is_measured_on_one_example(trained, as_they_are, tmp_path, capsys):
    figure = ["--out", str(tmp_path / "schedule.svg"), "--evaluations", "2000"]
    command = ["schedule", trained, "--split", "validation", *figure, "--json"]
    found = json.loads(output(capsys, command).out)
    assert found["evaluations"] == 2000
    assert all(0 < value < 1e6 for value in found["standard_error"].values())


def test_a_head_and_samples_with_errors_of_one(trained, tmp_path, capsys):
    output(capsys, ["variance", trained, "--steps", "3"])
    chain = ["evaluate", trained, "--estimator", "discrete", "--steps", "5", "--json"]
    printed = output(capsys, [*chain, "--grid", "optimal", "--variance", "predicted"])
    assert 3 < json.loads(printed.out)["bits_per_dim"] < 30  # of a head of three steps
    for grid in ("optimal", "equal-error"):
        samples = ["--n", "2", "--steps", "4", "--out", str(tmp_path / f"{grid}.npy")]
        output(capsys, ["sample", trained, "--grid", grid, *samples])
        assert np.load(tmp_path / f"{grid}.npy").shape == (2, 1, 8, 8)
