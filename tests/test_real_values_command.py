"""Real values through the commands: units change nothing but log scale, and what is said."""

import json
import math

import datasets
import numpy as np
import pytest

from commands import output
from variational_diffusion.cli import run
from variational_diffusion.config import RunConfig
from variational_diffusion.data import open_dataset
from variational_diffusion.run.training import train

A, B = 60.0, 1.7e9
SHORT = ["--batch-size", "8", "--set", "network.width=16", "--set", "network.blocks=1"]
X = np.random.default_rng(0).normal(size=(150, 3))


def save(path, values):
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        np.savez(path, values)
    else:
        datasets.Dataset.from_dict({"x": values.tolist()}).to_parquet(str(path))
    return str(path)


def trained(folder, source, steps):
    """Train on data that are split in their order: what they are in another unit is the same."""
    data = open_dataset(source, splits={"by": "order"})
    settings = {"training.batch_size": 8, "network.width": 16, "network.blocks": 1}
    return train(data, folder / "run", steps=steps, settings=settings, progress=False)


def figures(capsys, folder, source):
    """Train three steps, evaluate by two estimators, and sample."""
    made = trained(folder, source, 3)
    name, bits = str(made.path), [made.metrics()[-1]["validation"]["bits_per_dim"]]
    for estimator in ("vlb", "ode"):
        told = output(capsys, ["evaluate", name, "--estimator", estimator, "--json"]).out
        bits.append(json.loads(told)["bits_per_dim"])
    path = str(folder / "samples.npy")
    output(capsys, ["sample", name, "--n", "50", "--steps", "5", "--out", path])
    return np.array(bits), np.load(path)


@pytest.mark.parametrize("ending", [".npy", ".npz", ".parquet"])
def test_units_change_the_bits_by_log_scale_alone(ending, capsys, tmp_path, offline):
    """The validation, the bound and the ODE, and the samples; float32 alone rounds."""
    results = []
    for name, values in (("plain", X), ("moved", A * X + B)):
        (tmp_path / name).mkdir()
        source = save(tmp_path / name / f"x{ending}", values)
        results.append(figures(capsys, tmp_path / name, source))
    (bits, samples), (moved_bits, moved) = results
    np.testing.assert_allclose(moved_bits - bits, math.log2(A), atol=2e-4)
    assert moved.dtype == np.float64
    np.testing.assert_allclose((moved - B) / A, samples, atol=2e-4)
    assert len(np.unique(moved)) == moved.size


def test_what_repeats_is_said_before_and_after(capsys, tmp_path):
    coins = save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 2, (150, 2)) * 1.0)
    assert "--levels 2\n" in output(capsys, ["data", coins]).out
    told = json.loads(output(capsys, ["data", coins, "--json"]).out)
    assert sum("repeated values" in note for note in told["notes"]) == 1
    name = str(tmp_path / "run")
    shown = output(capsys, ["train", coins, "--run", name, "--steps", "2", *SHORT])
    assert shown.err.count("repeated values: ") == 1
    assert shown.out.count("γ_0 has reached its floor of -2.2") == 1
    shown = output(capsys, ["evaluate", name])
    assert shown.out.count("γ_0 has reached its floor of -2.2") == 1
    found = json.loads(output(capsys, ["evaluate", name, "--json"]).out)
    assert found["floor"] == pytest.approx(-2.2, abs=0.05)
    output(capsys, ["report", name, "--limit", "4", "--n", "4"])
    assert "γ_0 has reached its floor" in (tmp_path / "run" / "report.html").read_text("utf-8")
    again = [*SHORT, "--levels", "2", "--steps", "2"]
    shown = output(capsys, ["train", coins, "--run", str(tmp_path / "levels"), *again])
    assert "repeated" not in shown.err
    assert "floor" not in shown.out


def test_clean_values_are_passed_in_silence(capsys, tmp_path):
    clean = save(tmp_path / "x.npy", X)
    name = str(tmp_path / "run")
    shown = output(capsys, ["train", clean, "--run", name, "--steps", "2", *SHORT])
    assert "repeated" not in shown.err
    assert "floor" not in shown.out
    found = json.loads(output(capsys, ["evaluate", name, "--json"]).out)
    assert found["floor"] is None


def test_constant_columns_and_nan_are_one_line(capsys, tmp_path):
    wide = np.tile(X, (1, 200))
    wide[:, ::2] = 0.1
    bad = X.copy()
    bad[3:9] = np.nan
    for values, told in (
        (wide, "columns 0, 2, 4 and 297 others of 600 with one value in all"),
        (bad, "x.npy, example 3 has the value nan, but values must be finite; 18 of 450 are not"),
    ):
        source = save(tmp_path / "x.npy", values)
        error = output(capsys, ["train", source, "--run", str(tmp_path / "no")], code=2).err
        assert told in error
        assert error.count("\n") == 1
    assert run(["data", source]) == 2


def test_quality_does_not_depend_on_units(capsys, tmp_path):
    found = []
    x = np.random.default_rng(0).normal(size=(450, 3))
    for name, values in (("plain", x), ("moved", A * x + B)):
        (tmp_path / name).mkdir()
        source, directory = save(tmp_path / name / "x.npy", values), str(tmp_path / name / "run")
        trained(tmp_path / name, source, 2)
        told = output(capsys, ["quality", directory, "--n", "45", "--steps", "3", "--json"]).out
        found.append(json.loads(told)["distances"]["samples"])
    for measure, distance in found[0].items():
        assert found[1][measure]["value"] == pytest.approx(distance["value"], abs=1e-3)


def test_a_run_of_an_earlier_version_goes_on(capsys, tmp_path):
    """Its location and scale were summed in float32, and it has no floor."""
    source = save(tmp_path / "x.npy", X + 1e6)
    arguments = ["train", source, "--run", str(tmp_path / "run"), *SHORT, "--steps"]
    output(capsys, [*arguments, "2"])
    path = tmp_path / "run" / "config.json"
    config = RunConfig.from_json(path.read_text("utf-8"))
    values = config.model_dump(mode="json")
    decoder = values["model"]["decoder"]["options"]
    decoder["location"] = [float(np.float32(v)) for v in decoder["location"]]
    del values["model"]["schedule"]["options"]["floor"]
    earlier = RunConfig.model_validate(values)
    assert earlier.differences(config) == []
    path.write_text(earlier.to_json(), "utf-8")
    output(capsys, [*arguments, "2"])
    values["model"]["decoder"]["options"]["location"][0] += 0.01
    assert len(RunConfig.model_validate(values).differences(config)) == 0
    values["model"]["decoder"]["options"]["location"][0] += 10
    assert len(RunConfig.model_validate(values).differences(config)) == 1
