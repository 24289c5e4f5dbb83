"""vdm train: its options, its output, and runs that go on."""

import json
import os
import signal
from collections import deque

import numpy as np
import pytest
import torch

from commands import OPTIONS, TRAIN, output, train_digits
from variational_diffusion.model import VDM
from variational_diffusion.run.training import training_events
from variational_diffusion.schedules import SCHEDULES
from variational_diffusion.storage.tensors import read_tensors
from variational_diffusion.training import StepRecord


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train_digits(tmp_path_factory.mktemp("runs"))


def test_train_prints_one_json_object_and_logs(capsys, tmp_path):
    arguments = ["train", "digits", "--run", str(tmp_path / "run"), "--json", *TRAIN]
    result = json.loads(output(capsys, arguments).out)
    assert result["steps"] == 3
    assert result["validation"]["bits_per_dim"] > 0
    assert (tmp_path / "run" / "metrics.jsonl").exists()
    again = json.loads(output(capsys, arguments).out)  # the same configuration: nothing to do
    assert again["steps"] == 3
    assert again["validation"] == result["validation"]


def test_a_run_goes_on_to_the_weights_of_an_uninterrupted_one(capsys, tmp_path, caplog):
    """Stopped in Python, it goes on by the command."""
    arguments = ["train", "digits", *TRAIN, "--run"]
    output(capsys, [*arguments, str(tmp_path / "whole")])
    caplog.set_level("INFO", "variational_diffusion")

    def stop(event):
        if isinstance(event, StepRecord) and event.step == 1:  # heard in the next step
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        deque(map(stop, training_events("digits", tmp_path / "cut", **OPTIONS)))
    assert "stopped after step 2; the same command goes on" in caplog.text
    output(capsys, [*arguments, str(tmp_path / "cut")])
    for name in ("model.safetensors", "ema.safetensors"):
        whole, cut = (read_weights(tmp_path / run / name) for run in ("whole", "cut"))
        assert all(np.array_equal(whole[key], cut[key]) for key in whole)


def read_weights(path):
    return {name: tensor.numpy() for name, tensor in read_tensors(path)[0].items()}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_is_an_option_of_train(capsys, schedule, tmp_path):
    path = str(tmp_path / "run")
    output(capsys, ["train", "digits", "--run", path, "--schedule", schedule, *TRAIN])
    assert (
        json.loads((tmp_path / "run" / "config.json").read_text())["model"]["schedule"]["name"]
        == schedule
    )


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("off", []),
        ("default", [{"dynamic": False}]),
    ],
)
def test_the_network_in_training_is_compiled_on_request(
    capsys, tmp_path, monkeypatch, mode, options
):
    """What torch is asked for; that a compiled network learns the same is in test_wrapping."""
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **kw: asked.append(kw))
    output(capsys, ["train", "digits", "--run", str(tmp_path), *TRAIN, "--compile", mode])
    assert asked == options


def test_channels_last_and_compiled_models_give_the_same(capsys, trained, tmp_path, monkeypatch):
    plain = json.loads(output(capsys, ["evaluate", trained, "--limit", "40", "--json"]).out)
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **kw: asked.append(kw))
    formats = []
    to = torch.nn.Module.to
    monkeypatch.setattr(
        torch.nn.Module,
        "to",
        lambda self, *a, **kw: (formats.append(kw.get("memory_format")), to(self, *a, **kw))[1],
    )
    faster = ["--channels-last", "--compile", "default"]
    arguments = ["evaluate", trained, "--limit", "40", "--json", *faster]
    found = json.loads(output(capsys, arguments).out)
    assert found["bits_per_dim"] == pytest.approx(plain["bits_per_dim"], rel=1e-5)
    assert asked == [{"dynamic": False}]
    assert torch.channels_last in formats
    output(capsys, ["sample", trained, "--steps", "2", "--out", str(tmp_path / "a.npy"), *faster])
    assert len(asked) == 2
    path = str(tmp_path / "run")
    output(capsys, ["train", "digits", "--run", path, *TRAIN, "--channels-last"])


def test_graphs_are_for_a_gpu(capsys, tmp_path):
    arguments = ["train", "digits", "--run", str(tmp_path), *TRAIN, "--device", "cpu"]
    told = output(capsys, [*arguments, "--compile", "cuda-graphs"], code=2).err
    assert "compile = 'cuda-graphs' is for a GPU" in told


@pytest.mark.parametrize(
    ("precision", "units", "dtype"),
    [
        ("float32", "units", None),
        ("bfloat16", "none", torch.bfloat16),
        ("auto", "none", None),
        ("auto", "units", torch.bfloat16),
        ("auto", "instructions", torch.bfloat16),
    ],
)
def test_the_precision_of_training_follows_the_option_and_the_processor(
    capsys, tmp_path, monkeypatch, precision, units, dtype
):
    capabilities = {"amx_bf16": units == "units", "avx512_bf16": units == "instructions"}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    seen = []
    vlb = VDM.vlb

    def watched(vdm, x, **rest):
        seen.append(vdm.autocast)
        return vlb(vdm, x, **rest)

    for name in ("vlb", "forward"):  # of evaluation and of training
        monkeypatch.setattr(VDM, name, watched)
    arguments = ["train", "digits", "--run", str(tmp_path), *TRAIN, "--device", "cpu"]
    output(capsys, [*arguments, "--precision", precision])
    assert seen[0] == dtype
    assert seen[-1] is None  # validation, of the averaged weights


def test_every_network_for_images_is_an_option_of_train(capsys, tmp_path):
    for network in ("transformer", "paper-unet"):
        small = [*TRAIN[:4], "--set", "network.width=12", "--set", "network.blocks=1"]
        path = tmp_path / network
        output(capsys, ["train", "digits", "--run", str(path), "--network", network, *small])
        config = json.loads((path / "config.json").read_text())
        assert config["model"]["network"]["name"] == network


@pytest.mark.parametrize("schedule", ["adaptive", "monotone"])
def test_end_points_are_fixed_or_learned(capsys, schedule, tmp_path):
    for choice in ("fixed", "learned"):
        path = tmp_path / choice
        arguments = ["--schedule", schedule, "--end-points", choice, "--steps", "55"]
        output(capsys, ["train", "digits", "--run", str(path), *TRAIN, *arguments])
        first = json.loads((path / "metrics.jsonl").read_text().splitlines()[0])
        started = json.loads((path / "config.json").read_text())["model"]["schedule"]
        moved = abs(first["gamma_0"] - started["options"]["gamma_min"])
        assert (moved > 1e-3) == (choice == "learned"), (choice, moved)
        assert first["variance"] > 0
    refused = ["train", "digits", "--run", str(tmp_path / "no"), *TRAIN, "--schedule", "cosine"]
    told = output(capsys, [*refused, "--end-points", "learned"], code=2).err
    assert "schedule.learn_end_points: cosine has the options" in told


def test_divergence_is_one_line_and_leaves_the_run_as_it_was_saved(capsys, tmp_path):
    path = tmp_path / "run"
    arguments = ["train", "digits", "--run", str(path), *TRAIN, "--learning-rate", "1e30"]
    arguments += ["--steps", "20"]
    told = output(capsys, arguments, code=2).err.splitlines()[-1]
    assert told.startswith("vdm: training diverged in step")
    assert "--learning-rate 1e+29 --set training.matrix_learning_rate=0.0015 and another" in told
    assert told.endswith(f"'{path}' has no state yet")
    assert not list((path / "state").iterdir())


def test_real_valued_vectors_train_evaluate_and_sample(capsys, tmp_path):
    rng = np.random.default_rng(0)
    data, run_path = str(tmp_path / "points.npy"), str(tmp_path / "run")
    np.save(data, rng.normal([3.0, -100.0], [0.5, 20.0], size=(400, 2)))
    small = ["--steps", "20", "--set", "network.width=16", "--set", "network.blocks=1"]
    output(capsys, ["train", data, "--run", run_path, *small])
    result = json.loads(output(capsys, ["evaluate", run_path, "--json"]).out)
    assert np.isfinite(result["bits_per_dim"])
    output(capsys, ["sample", run_path, "--n", "200", "--steps", "50", "--out", run_path + ".npy"])
    samples = np.load(run_path + ".npy")
    assert samples.shape == (200, 2)
    assert abs(samples[:, 1].mean() + 100) < 60  # the scale of the data, not of the encoding
