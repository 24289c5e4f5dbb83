"""`vdm compare`, `compare` of runs, and the comparison of a report."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import variational_diffusion as vd
from commands import TRAIN, output, train_digits
from variational_diffusion.cli import run
from variational_diffusion.data import open_dataset
from variational_diffusion.errors import InputError
from variational_diffusion.grids import uniform_in_time
from variational_diffusion.likelihood import DiscreteBound, ODELikelihood, compare_models
from variational_diffusion.report import read_section
from variational_diffusion.report.measure import PARTS
from variational_diffusion.run.comparison import training_copies
from variational_diffusion.run.directory import Run

HOSTILE = "<script>alert(2)<%2Fscript>&$x_1$"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of three steps on the digits: "a", "b", another split, and one that knows labels."""
    folder = tmp_path_factory.mktemp("runs")
    paths = {"a": train_digits(folder)}
    for name, options in {
        "b": ["--steps", "60"],
        "other": ["--split-seed", "1"],
        "labels": ["--condition", "label", "--steps", "20"],
    }.items():
        paths[name] = str(folder / name)
        assert run(["train", "digits", "--run", paths[name], *TRAIN, *options]) == 0
    return paths


def compared(capsys, *arguments):
    return json.loads(output(capsys, ["compare", *arguments, "--json"]).out)


def splits_of(path):
    return open_dataset(Run.open(path).config.data).splits


def figures(found):
    """Return what a JSON object says of a comparison, without what the command adds."""
    return json.loads(json.dumps(found.as_json()))


def test_command_and_python_agree_to_the_last_digit(capsys, runs):
    a, b = Run.open(runs["a"]), Run.open(runs["b"])
    found = compared(capsys, runs["a"], runs["b"], "--limit", "20", "--rounds", "3", "--seed", "5")
    own = figures(vd.compare(a, b, limit=20, rounds=3, seed=5))
    assert found.items() >= own.items()
    assert own["description"] == "20 of 297 test examples, drawn with seed 0"
    assert own["models"][0]["name"] == "digits"
    found = compared(capsys, runs["a"], runs["b"], "--limit", "20", "--target-se", "0.5")
    assert found.items() >= figures(vd.compare(a, b, limit=20, target_se=0.5)).items()


def test_other_estimators_agree_too(capsys, runs):
    a, b = Run.open(runs["a"]), Run.open(runs["b"])
    few = ["--limit", "3", "--rounds", "2"]
    ode = ["--estimator", "ode", "--tolerance", "1e-4"]
    found = compared(capsys, runs["a"], runs["b"], *few, *ode)
    own = vd.compare(a, b, limit=3, rounds=2, estimator=ODELikelihood(tolerance=1e-4))
    assert found.items() >= figures(own).items()
    found = compared(capsys, runs["a"], runs["b"], *few, "--estimator", "discrete", "--steps", "5")
    chains = [DiscreteBound(uniform_in_time(each.load().schedule, 5), 2) for each in (a, b)]
    own = vd.compare(a, b, limit=3, rounds=2, estimator=chains)
    assert found.items() >= figures(own).items()
    assert (found["estimator"], found["steps"]) == ("discrete", 5)


def test_each_figure_is_that_of_evaluate(capsys, runs):
    options = ["--limit", "20", "--rounds", "2", "--json"]
    found = compared(capsys, runs["a"], runs["b"], *options[:-1])
    for model, path in zip(found["models"], (runs["a"], runs["b"]), strict=True):
        alone = json.loads(output(capsys, ["evaluate", path, *options]).out)
        assert model["bits_per_dim"] == alone["bits_per_dim"]
        assert model["standard_error"] == alone["standard_error"]


def test_the_tables_say_which_run_is_better_by_how_much(capsys, runs):
    arguments = ["compare", runs["a"], runs["b"], runs["a"], "--limit", "20", "--rounds", "2"]
    text = output(capsys, arguments).out
    assert "20 of 297 test examples" in text
    assert "95 % interval for 3" in text
    assert "no difference: both give each of 20 examples the same bits" in text
    assert "hold together with a probability of 95 % (Bonferroni)" in text
    own = vd.compare(Run.open(runs["a"]), Run.open(runs["b"]), limit=20, rounds=2)
    by = f"by {-own.difference:.4f} ± {own.standard_error:.4f} bits/dim"
    # the run that stands twice is called by its path
    assert f"b is better than {runs['a']} {by}" in text


def test_the_bits_of_every_example_are_written(capsys, runs, tmp_path):
    path = tmp_path / "bits.csv"
    limited = ["--limit", "20", "--rounds", "2", "--table", str(path)]
    found = compared(capsys, runs["a"], runs["b"], *limited)
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["example", "digits", "b"]
    assert len({row["example"] for row in rows}) == 20
    difference = np.array([float(row["b"]) - float(row["digits"]) for row in rows])
    assert difference.mean() == pytest.approx(found["pairs"][0]["difference"])
    message = output(capsys, ["compare", runs["a"], runs["b"], *limited], code=2).err
    assert "exists and is not overwritten" in message


def test_test_examples_that_are_not_the_same_are_refused(capsys, runs):
    """By the examples themselves: how many the other was trained on is counted here by hand."""
    test, train = (
        {row.tobytes() for row in splits_of(runs[name])[part].read()}
        for name, part in (("a", "test"), ("other", "train"))
    )
    message = output(capsys, ["compare", runs["a"], runs["other"]], code=2).err
    assert f"it was trained on {len(test & train)} of these 297 examples" in message
    assert "vdm compare" in message
    assert message.endswith("DATA\n")
    assert len(message.splitlines()) == 1
    with pytest.raises(InputError, match="has other test examples than 'digits'"):
        vd.compare(Run.open(runs["a"]), Run.open(runs["other"]))


def test_who_was_trained_on_the_data_is_said(capsys, runs, tmp_path):
    splits = splits_of(runs["a"])
    half = np.concatenate([splits["train"].read()[:30], splits["test"].read()[:20]])
    np.save(tmp_path / "half.npy", half)
    data = str(tmp_path / "half.npy")
    found = compared(capsys, runs["a"], runs["other"], data, "--rounds", "1")
    assert "'digits' was trained on 30 of these 50 examples" in found["notes"]
    assert any(note.startswith("'other' was trained on ") for note in found["notes"])
    in_memory = vd.compare(Run.open(runs["a"]), Run.open(runs["other"]), half, rounds=1)
    assert in_memory.notes == tuple(found["notes"])
    assert in_memory.difference == found["pairs"][0]["difference"]
    # neither was trained on these
    noise = np.random.default_rng(0).integers(0, 17, (10, 1, 8, 8))
    assert vd.compare(Run.open(runs["a"]), Run.open(runs["b"]), noise, rounds=1).notes == ()


def test_training_data_that_are_gone_are_said(runs, tmp_path):
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).integers(0, 17, (40, 1, 8, 8)))
    path = str(tmp_path / "run")
    assert run(["train", str(tmp_path / "rows.npy"), "--run", path, "--levels", "17", *TRAIN]) == 0
    (tmp_path / "rows.npy").unlink()
    assert training_copies(Run.open(path), [b""]) is None
    noise = np.random.default_rng(1).integers(0, 17, (5, 1, 8, 8))
    found = vd.compare(Run.open(runs["a"]), Run.open(path), noise, rounds=1)
    note = "'run': its training data are not here; it may have seen these examples"
    assert found.notes == (note,)


def test_a_model_with_conditions_gets_those_of_the_examples(runs):
    a, labels = Run.open(runs["a"]), Run.open(runs["labels"])
    own = vd.compare(a, labels, limit=10, rounds=2)
    free = vd.compare(a, labels, limit=10, rounds=2, condition="none")
    assert own.summaries[0] == free.summaries[0]
    assert own.summaries[1].bits_per_dim != free.summaries[1].bits_per_dim
    x = splits_of(runs["a"])["test"].sample(10).read()
    assert vd.compare(a, labels, x, rounds=2).difference == free.difference


def test_models_and_examples_in_memory(runs):
    a, b = Run.open(runs["a"]), Run.open(runs["b"])
    test = splits_of(runs["a"])["test"].sample(10)
    of_runs = vd.compare(a, b, limit=10, rounds=2)
    models = [each.load() for each in (a, b)]
    for data in (test, test.read(), torch.from_numpy(test.read())):
        assert vd.compare(*models, data, rounds=2).difference == of_runs.difference
        assert compare_models(models, test, rounds=2).difference == of_runs.difference
    mixed = vd.compare(a, models[1], limit=10, rounds=2)
    assert mixed.difference == of_runs.difference
    assert mixed.names == ("digits", "model 2")
    with pytest.raises(InputError, match="models without a run need the examples"):
        vd.compare(*models)
    with pytest.raises(InputError, match=r"argument 1 is str.*Run.open"):
        vd.compare(runs["a"], runs["b"])
    with pytest.raises(InputError, match=r"data has shape \(10, 64\)"):
        vd.compare(*models, test.read().reshape(10, 64))


def test_what_cannot_be_compared_is_refused_in_a_line(capsys, runs, tmp_path):
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).integers(0, 17, (40, 5)))
    vectors = str(tmp_path / "vectors")
    assert run(["train", str(tmp_path / "rows.npy"), "--run", vectors, *TRAIN[:4]]) == 0
    for arguments, message in (
        ([runs["a"]], "give two runs or more"),
        ([runs["a"], vectors], "cannot be compared"),
        ([runs["a"], str(tmp_path / "nothing")], "no run is there"),
        ([runs["a"], runs["b"], "nothing"], "data = 'nothing'"),
        ([runs["a"], runs["b"], "--steps", "5"], "it goes with --estimator discrete"),
        ([runs["a"], runs["b"], "--rounds", "2", "--target-se", "1"], "give one of them"),
    ):
        error = output(capsys, ["compare", *arguments], code=2).err
        assert message in error.splitlines()[-1]


def test_a_signal_keeps_the_rounds_that_are_whole(runs):
    a, b = (Run.open(runs[name]).load() for name in "ab")
    test = splits_of(runs["a"])["test"].sample(10)
    asked = iter([False] * 5 + [True])  # in the third round, before the second model
    found = compare_models([a, b], test, rounds=9, stopped=lambda: next(asked))
    assert found.rounds == 2
    assert found.summaries == compare_models([a, b], test, rounds=2).summaries
    with pytest.raises(KeyboardInterrupt):
        compare_models([a, b], test, stopped=lambda: True)


def test_a_report_shows_a_comparison_and_what_the_user_named_as_text(
    capsys, runs, tmp_path, monkeypatch
):
    only = {"comparison": PARTS["comparison"]}
    monkeypatch.setattr("variational_diffusion.report.measure.PARTS", only)
    two_rounds = "variational_diffusion.likelihood.paired.enough"  # instead of up to 64
    monkeypatch.setattr(two_rounds, lambda summary, finished, *_: finished == 2)
    one, two = tmp_path / HOSTILE, tmp_path / "two"
    shutil.copytree(runs["a"], one)
    shutil.copytree(runs["b"], two)

    def measured(*options):
        arguments = ["report", str(two), "--limit", "20", *options, "--json"]
        return json.loads(output(capsys, arguments).out)["measured"]

    assert measured() == []
    page = (two / "report.html").read_text(encoding="utf-8")
    assert 'id="comparison"' not in page
    assert measured("--compare", str(one)) == ["comparison"]
    page = (two / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(2)" in page
    section = read_section(Run.open(two), "comparison", "ema")
    assert section is not None
    pair = section.values["pairs"][0]
    assert pair["second"] == HOSTILE
    shown = f"{pair['difference']:+.4f} ± {pair['standard_error']:.4f}".replace("-", "−")
    assert shown in page
    difference = (section.arrays["bits"][1] - section.arrays["bits"][0]).mean()
    assert float(difference) == pytest.approx(pair["difference"])
    assert "20 of 297 test examples" in page
    assert measured() == []  # it stays, until the other run has learned more
    learned, about = Run.open(runs["b"]).read(Path(runs["b"]) / "ema.safetensors", "ema")
    Run.open(one).write(one / "ema.safetensors", "ema", learned, {"step": about["step"]})
    assert measured() == ["comparison"]
    section = read_section(Run.open(two), "comparison", "ema")
    assert section is not None
    assert section.values["pairs"][0]["difference"] == 0
