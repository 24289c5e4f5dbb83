"""`vdm evaluate`: every estimator, files for every example, precision on demand, processes."""

import csv
import json
import os
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from variational_diffusion.cli import run
from variational_diffusion.config import DataConfig
from variational_diffusion.data import open_dataset
from variational_diffusion.decoders import Discretized
from variational_diffusion.grids import bound_optimal
from variational_diffusion.likelihood import (
    ContinuousBound,
    ODELikelihood,
    evaluate_rounds,
    summarize,
)
from variational_diffusion.machine.distributed import Place
from variational_diffusion.model import VDM
from variational_diffusion.networks import UNet
from variational_diffusion.run.directory import Run
from variational_diffusion.run.examples import chosen_examples
from variational_diffusion.run.noise_errors import reverse_chain
from variational_diffusion.run.trained import Trained
from variational_diffusion.schedules import FixedLinear

TRAIN = ["--steps", "3", "--batch-size", "8", "--set", "network.widths=[8,8]"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of three steps on the digits."""
    path = str(tmp_path_factory.mktemp("runs") / "digits")
    assert run(["train", "digits", "--run", path, *TRAIN]) == 0
    return path


def result(capsys, trained, *options):
    """Two rounds, where the options do not say how many."""
    capsys.readouterr()
    rounds = [] if {"--rounds", "--target-se"} & set(options) else ["--rounds", "2"]
    assert run(["evaluate", trained, "--limit", "20", "--json", *rounds, *options]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("options", "terms", "evaluations"),
    [
        (["--estimator", "vlb", "--draws", "3"], ["prior", "reconstruction", "diffusion"], 6),
        (["--estimator", "discrete", "--steps", "5", "--exact"], None, 10),
        (["--estimator", "ode", "--rounds", "1"], ["ode", "dequantisation"], None),
        (["--estimator", "ode", "--dequantisation", "variational", "--probes", "2"], None, None),
        (
            ["--estimator", "importance", "--samples", "2", "--probes", "3", "--rounds", "1"],
            ["importance"],
            None,
        ),
    ],
)
def test_every_estimator_gives_a_figure_and_its_terms(capsys, trained, options, terms, evaluations):
    solver = ["--tolerance", "1e-4"] if options[1] in ("ode", "importance") else []
    found = result(capsys, trained, *options, *solver)
    assert found["estimator"] == options[1]
    assert 3 < found["bits_per_dim"] < 16
    assert sum(found["terms"].values()) == pytest.approx(found["bits_per_dim"])
    assert list(found["terms"]) == terms or terms is None
    assert found["evaluations"] == evaluations or (evaluations is None and found["failures"] == 0)
    low, high = found["interval"]
    assert low < found["bits_per_dim"] < high
    assert (found["draws_error"] is None) == (found["rounds"] == 1)


@pytest.mark.parametrize("variance", ["scalar", "position"])
def test_errors_are_measured_once_and_measured_again_when_the_weights_change(
    capsys, trained, tmp_path, variance, monkeypatch
):
    chain = ["--estimator", "discrete", "--steps", "5", "--exact"]
    plain = result(capsys, trained, *chain)["bits_per_dim"]
    options = [*chain, "--grid", "optimal", "--variance", variance]
    found = result(capsys, trained, *options)["bits_per_dim"]
    assert found < 0.99 * plain
    opened = Run.open(trained)
    errors = opened.errors()
    assert errors is not None
    assert errors.error.shape == (100, 1, 8, 8)
    monkeypatch.setattr("variational_diffusion.run.noise_errors.noise_errors", None)
    assert result(capsys, trained, *options)["bits_per_dim"] == found
    weights = opened.load()
    with torch.no_grad():
        next(weights.parameters()).add_(0.01)
    monkeypatch.setattr(
        opened, "_weights_digest", lambda weights: "another"
    )  # as after more training
    assert opened.errors() is None


def test_a_head_is_trained_stored_and_used(capsys, trained):
    chain = ["--estimator", "discrete", "--steps", "5", "--variance", "predicted"]
    assert run(["evaluate", trained, *chain]) == 2
    assert f"train one: vdm variance {trained}" in capsys.readouterr().err
    assert run(["variance", trained, "--steps", "30"]) == 0
    assert "loss fell from" in capsys.readouterr().out
    found = result(capsys, trained, *chain, "--exact")
    assert 1 < found["bits_per_dim"] < 16
    assert result(capsys, trained, *chain, "--exact") == found


def test_the_optimal_grid_of_a_head_is_laid_for_what_the_head_predicts(capsys, trained):
    assert run(["variance", trained, "--steps", "3"]) == 0
    opened = Run.open(trained)
    kept = opened.predictions()
    assert kept is not None
    errors, predicted = kept
    assert errors.error.shape == predicted.error.shape == (100, 213)  # of 10 · 64 entries, by three
    assert (predicted.error.diff(dim=1) >= 0).all()
    schedule = opened.load().schedule
    laid = bound_optimal(schedule, 5, errors, predicted)
    torch.testing.assert_close(
        laid, reverse_chain(Trained.open(opened), 5, "optimal", "predicted").gammas
    )
    head = opened.head()
    assert head is not None
    opened.save_head(head)  # another one: what was kept is of the one before
    assert opened.predictions() is None


def test_rounds_go_on_until_the_draws_are_precise_enough(capsys, trained):
    options = ["--draws", "1", "--batch-size", "5"]
    rough = result(capsys, trained, *options)
    target = 0.6 * rough["draws_error"]
    found = result(capsys, trained, *options, "--target-se", str(target))
    assert found["draws_error"] <= target
    assert found["rounds"] > rough["rounds"] == 2
    assert rough["draws_error"] <= rough["standard_error"]
    assert found["evaluations"] == found["rounds"]
    assert found["degrees"] >= 8


def test_all_examples_of_other_data_are_taken_unless_a_split_is_named(trained, tmp_path):
    path = str(tmp_path / "own.npy")
    images = np.random.default_rng(0).integers(0, 17, (60, 8, 8), dtype=np.uint8)
    np.save(path, images)
    opened = Run.open(trained)
    everything = chosen_examples(opened, path, None, None)
    assert np.array_equal(everything.read()[:, 0], images)
    assert everything.description == "60 examples"
    some = chosen_examples(opened, path, None, 20)
    assert some.description == "20 of 60 examples, drawn with seed 0"
    parts = [chosen_examples(opened, path, name, None) for name in ("train", "validation", "test")]
    assert sum(len(part) for part in parts) == 60
    assert max(len(part) for part in parts) < 60
    assert chosen_examples(opened, None, None, None).description == "297 test examples"
    assert chosen_examples(opened, None, "train", None).name == "train"


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_every_example_has_its_row(capsys, trained, tmp_path, ending):
    path = tmp_path / f"rows.{ending}"
    found = result(capsys, trained, "--table", str(path))
    if ending == "csv":
        with path.open() as file:
            rows = list(csv.DictReader(file))
    else:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    names = ["example", "bits_per_dim", "prior", "reconstruction", "diffusion", "error"]
    assert list(rows[0]) == names
    chosen = open_dataset(DataConfig(source="digits")).splits["test"].sample(20)
    assert [int(row["example"]) for row in rows] == chosen.positions.tolist()
    bits = [float(row["bits_per_dim"]) for row in rows]
    assert sum(bits) / 20 == pytest.approx(found["bits_per_dim"])
    assert all(
        sum(float(row[name]) for name in names[2:5]) == pytest.approx(value)
        for row, value in zip(rows, bits, strict=True)
    )


def test_maps_are_a_sheet_of_images_beside_their_bits(capsys, trained, tmp_path):
    path = tmp_path / "maps.png"
    result(capsys, trained, "--maps", str(path))
    with Image.open(path) as image:
        assert image.size[0] > 16 * 8
        assert np.asarray(image).std() > 10


def test_a_stopped_evaluation_keeps_the_rows_that_it_has(capsys, trained, tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    seen = []
    estimate = ContinuousBound.__call__

    def slow(self, vdm, x, generator=None):
        seen.append(len(x))
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return estimate(self, vdm, x, generator)

    monkeypatch.setattr(ContinuousBound, "__call__", slow)
    arguments = ["evaluate", trained, "--batch-size", "4", "--table", str(path)]
    assert run(arguments) == 1
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "12 of 297 test examples, where it was stopped" in shown
    with path.open() as file:
        assert len(list(csv.DictReader(file))) == 12


def small_vdm():
    torch.manual_seed(0)
    network = UNet((1, 8, 8), levels=17, widths=[8])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return VDM(network, FixedLinear(-4.0, 4.0), Discretized(17), (1, 8, 8))


def rounds_of(place):
    digits = open_dataset(DataConfig(source="digits")).splits["test"].sample(9)
    flow = ODELikelihood(tolerance=1e-4)
    done = evaluate_rounds(small_vdm(), digits, flow, rounds=2, batch_size=2, seed=3, place=place)
    assert not done.stopped
    return [torch.cat([e.total.double() for e in row]) for row in done.rounds], summarize(
        *done.rounds, dimensions=64
    )


def one_process(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    rounds, summary = rounds_of(Place(rank, 2))
    torch.save(rounds, f"{folder}/{rank}.pt")
    Path(f"{folder}/{rank}.json").write_text(json.dumps(summary.as_json()))
    torch.distributed.destroy_process_group()


def test_two_processes_end_and_give_the_figures_of_one(tmp_path):
    """Five batches for two, each with as many steps of the solver as it happens to need."""
    torch.multiprocessing.spawn(one_process, (str(tmp_path),), nprocs=2)
    rounds, summary = rounds_of(Place(0, 1))
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, rounds, rtol=1e-5, atol=1e-4)
        values = json.loads((tmp_path / f"{rank}.json").read_text())
        assert values["bits_per_dim"] == pytest.approx(summary.bits_per_dim, rel=1e-6)
        assert values["evaluations"] == summary.evaluations
    assert not torch.equal(rounds[0], rounds[1])


def test_mistakes_are_named_before_any_work(capsys, trained, tmp_path):
    taken = tmp_path / "taken.csv"
    taken.write_text("mine")
    for options, message in (
        (["--table", str(taken)], "exists and is not overwritten"),
        (["--table", str(tmp_path / "rows.xls")], "ends in .csv or .parquet"),
        (["--maps", str(tmp_path / "maps.jpg")], "ends in .png or .webp"),
        (["--grid", "optimal"], "it goes with --estimator discrete"),
        (["--estimator", "ode", "--dequantisation", "none"], "no density"),
        (["--estimator", "discrete"], "--steps"),
        (["--target-se", "0"], "target-se"),
        (["--target-se", "0.1", "--rounds", "2"], "rounds = 2, target_error = 0.1: give one"),
        (["--estimator", "ode", "--tolerance", "0.01"], "0.01 is not in the range"),
        (["--estimator", "ode", "--exact", "--probes", "2"], "exact, probes = 2"),
        (["--estimator", "importance", "--probes", "1"], "give 3 or more, or --exact"),
    ):
        capsys.readouterr()
        assert run(["evaluate", trained, "--limit", "5", *options]) == 2, options
        captured = capsys.readouterr()
        assert captured.out == ""
        assert message in captured.err.splitlines()[-1]
    assert taken.read_text() == "mine"
