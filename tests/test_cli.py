"""The command line: contracts of output, exit codes, and one line for a user's mistake."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from variational_diffusion import training
from variational_diffusion.cli import COMMANDS, run
from variational_diffusion.cli import data as data_command
from variational_diffusion.cli import quality as quality_command
from variational_diffusion.cli import session as session_module
from variational_diffusion.config import DataConfig
from variational_diffusion.data import open_dataset
from variational_diffusion.errors import DivergedError
from variational_diffusion.grids import GRIDS
from variational_diffusion.model import VDM
from variational_diffusion.sampling import SAMPLERS
from variational_diffusion.schedules import SCHEDULES
from variational_diffusion.tensors import read_tensors

TRAIN = ["--steps", "3", "--batch-size", "8", "--set", "network.widths=[8,8]"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of three steps on the digits."""
    path = str(tmp_path_factory.mktemp("runs") / "digits")
    assert run(["train", "digits", "--run", path, *TRAIN]) == 0
    return path


def output(capsys, arguments, code=0):
    capsys.readouterr()
    assert run(arguments) == code
    return capsys.readouterr()


def test_help_answers_within_half_a_second_without_torch():
    script = "import sys; from variational_diffusion import cli; cli.run(['--help'])"
    script += "; print('torch' in sys.modules)"
    times = []
    for _ in range(3):
        start = time.monotonic()
        result = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        times.append(time.monotonic() - start)
    assert result.stdout.splitlines()[-1] == "False"
    assert all(name in result.stdout for name in COMMANDS)
    assert min(times) < 0.5


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(capsys, name):
    assert f"Usage: vdm {name}" in output(capsys, [name, "--help"]).out


def test_train_prints_one_json_object_and_logs(capsys, tmp_path):
    arguments = ["train", "digits", "--run", str(tmp_path / "run"), "--json", *TRAIN]
    result = json.loads(output(capsys, arguments).out)
    assert result["steps"] == 3
    assert result["validation"]["bits_per_dim"] > 0
    assert (tmp_path / "run" / "metrics.jsonl").exists()
    again = json.loads(output(capsys, arguments).out)  # the same configuration: nothing to do
    assert again["steps"] == 3
    assert again["validation"] == result["validation"]


def test_a_run_goes_on_to_the_weights_of_an_uninterrupted_one(capsys, tmp_path, monkeypatch):
    arguments = ["train", "digits", *TRAIN, "--run"]
    output(capsys, [*arguments, str(tmp_path / "whole")])

    def interrupted(state, stream, config, **options):
        for record in training.fit(state, stream, config, **options):
            if record.step == 1:  # heard in the next step, which is then the last
                os.kill(os.getpid(), signal.SIGTERM)
            yield record

    monkeypatch.setattr(session_module, "fit", interrupted)
    told = output(capsys, [*arguments, str(tmp_path / "cut")], code=1).err
    assert "stopped after step 2; the same command goes on" in told
    monkeypatch.undo()
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


def test_divergence_keeps_what_was_saved(capsys, tmp_path, monkeypatch):
    path = tmp_path / "run"
    arguments = ["train", "digits", "--run", str(path), *TRAIN]

    def cut_short(state, stream, config, **options):
        yield from itertools.islice(training.fit(state, stream, config, **options), 1)

    monkeypatch.setattr(session_module, "fit", cut_short)
    output(capsys, arguments, code=1)
    saved = read_weights(path / "state" / "00000001.safetensors")

    def diverging(state, stream, config, **options):
        yield from cut_short(state, stream, config, **options)
        raise DivergedError("training diverged in step 3")

    monkeypatch.setattr(session_module, "fit", diverging)
    told = output(capsys, arguments, code=2).err.splitlines()
    assert told[-2].endswith("now going back to step 1 with 0.3 of the rates")
    assert told[-1].endswith(f"and another --run; '{path}' keeps its state of step 1")
    kept = read_weights(path / "state" / "00000001.safetensors")
    assert all(np.array_equal(saved[key], kept[key]) for key in saved)


def test_schedule_prints_the_object_of_the_contract_and_draws(capsys, trained, tmp_path):
    arguments = ["schedule", trained, "--evaluations", "2000", "--json"]
    result = json.loads(output(capsys, arguments).out)
    assert set(result["variance"]) == {"learned", "linear", "cosine", "optimum"}
    assert 0 < result["variance"]["optimum"] < result["variance"]["learned"]
    assert result["gamma_0"] < result["gamma_1"]
    for path, start in zip(result["figures"], (b"\x89PNG", b"<?xml"), strict=True):
        with open(path, "rb") as file:
            assert file.read(5).startswith(start)
    again = json.loads(output(capsys, arguments).out)
    assert again["variance"] == result["variance"]
    assert [path.rsplit("/")[-1] for path in again["figures"]] == [
        "schedule-2.png",
        "schedule-2.svg",
    ]
    table = output(
        capsys,
        ["schedule", trained, "digits", "--evaluations", "2000", "--out", str(tmp_path / "a.svg")],
    ).out
    assert all(name in table for name in ("learned", "linear", "cosine", "optimum", "a.svg"))
    told = output(capsys, ["schedule", trained, "--out", str(tmp_path / "a.pdf")], code=2).err
    assert "ends in .png or .svg" in told


def test_evaluate_prints_the_object_of_the_contract(capsys, trained):
    arguments = ["evaluate", trained, "--limit", "20", "--json"]
    result = json.loads(output(capsys, arguments).out)
    assert result["estimator"] == "vlb"
    assert result["split"] == "test"
    assert result["examples"] == 20
    assert result["levels"] == 17
    assert result["shape"] == [1, 8, 8]
    assert result["weights"] == "ema"
    assert result["steps"] is None
    assert result["standard_error"] > 0
    assert sum(result["terms"].values()) == pytest.approx(result["bits_per_dim"])
    assert json.loads(output(capsys, arguments).out) == result
    finite = json.loads(output(capsys, [*arguments, "--estimator", "discrete", "--steps", "4"]).out)
    assert finite["steps"] == 4
    assert finite["bits_per_dim"] > result["bits_per_dim"]
    assert "±" in output(capsys, ["evaluate", trained, "digits", "--limit", "20"]).out


def test_quality_compares_with_test_examples_and_with_what_is_possible(capsys, trained, tmp_path):
    samples = str(tmp_path / "samples.npy")
    output(capsys, ["sample", trained, "--n", "60", "--steps", "4", "--out", samples])
    sheet = tmp_path / "nearest.png"
    common = ["quality", trained, "--samples", samples, "--n", "60"]
    pixels = [*common, "--features", "pixels", "--json"]
    result = json.loads(output(capsys, [*pixels, "--nearest", str(sheet)]).out)
    assert result["samples"] == result["reference"]["examples"] == 60
    # noise in the place of digits, seen by every measure but precision and recall of pixels
    for measure in ("FID", "KID", "SW pixels", "SW patches"):
        of = {name: rows[measure] for name, rows in result["distances"].items()}
        assert of["samples"]["value"] > of["train"]["value"] + 5 * of["train"]["standard_error"]
        assert of["samples"]["value"] > of["validation"]["value"]
    assert result["nearest"]["share"] == 0
    assert result["nearest"]["samples"] > result["nearest"]["test"] > 0
    with Image.open(sheet) as image:
        assert image.size == (8 * 66 + 2, 8 * 66 + 2)
    drawn = output(
        capsys, ["quality", trained, "--n", "60", "--steps", "4", "--features", "pixels"]
    )
    assert "60 samples of sde-dpmpp-2m in 4 steps, seed 0, against 60 test examples" in drawn.out
    images = output(capsys, [*pixels[:2], samples, *pixels[2:]])  # the samples are the data now
    assert json.loads(images.out)["distances"]["samples"]["FID"]["value"] < 1e-9


@pytest.mark.parametrize("split", ["train", "validation"])
def test_quality_tells_copies_of_training_images(capsys, trained, tmp_path, split):
    """Of validation images, some are as close as the closest of 40 test images: seldom a tenth."""
    images = open_dataset(DataConfig(source="digits")).splits[split].read()
    np.save(tmp_path / "images.npy", images[:40])
    samples = ["--samples", str(tmp_path / "images.npy"), "--n", "40", "--features", "pixels"]
    nearest = ["--nearest", str(tmp_path / "nearest.png"), "--json"]
    found = json.loads(output(capsys, ["quality", trained, *samples, *nearest]).out)["nearest"]
    assert found["share"] == 1 if split == "train" else found["share"] <= 0.1
    assert (found["samples"] < 1e-6) == (split == "train")


def test_quality_trains_a_classifier_once(capsys, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(quality_command, "STEPS", 20)
    common = ["quality", trained, "--n", "60", "--steps", "2", "--json"]
    first = json.loads(output(capsys, common).out)
    written = (Path(trained) / "quality-classifier.safetensors").stat()
    again = json.loads(output(capsys, common).out)
    assert (Path(trained) / "quality-classifier.safetensors").stat() == written
    assert first == again
    assert first["features"]["name"] == "classifier"
    file = str(Path(trained) / "quality-classifier.safetensors")
    assert json.loads(output(capsys, [*common, "--features", file]).out) == first
    assert read_tensors(Path(file))[1]["learned"] == "labels"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n", "20"], r"20 samples and 20 examples: .*give --n 40 or more"),
        (["--features", "resnet"], r"features = 'resnet': known are classifier, inception, pixels"),
        (["--samples", "none.npy"], r"'none\.npy' is no known name"),
        (
            ["--samples", "wide.npy"],
            r"'wide\.npy' have shape \(1, 8, 9\) and levels 256: the model",
        ),
        (
            ["--samples", "bright.npy"],
            r"'bright\.npy' have the value 17: .* has levels 0 to 16; save",
        ),
        (["--nearest", "sheet.gif"], r"nearest = 'sheet\.gif': give a name that ends in \.png"),
        (["--sampler", "best"], r"sampler = 'best': known are ancestral"),
    ],
)
def test_quality_says_what_is_wrong(capsys, trained, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    np.save("wide.npy", np.zeros((60, 8, 9), np.uint8))
    np.save("bright.npy", np.full((60, 8, 8), 17, np.uint8))
    common = ["quality", trained, "--features", "pixels", "--steps", "2", "--n", "60"]
    error = output(capsys, [*common, *arguments], code=2).err
    assert re.search(message, error)
    assert error.count("\n") == 1


def test_sample_writes_a_sheet_files_an_array_and_an_animation(capsys, trained, tmp_path):
    common = ["sample", trained, "--n", "5", "--steps", "4"]
    sheet, film = tmp_path / "sheet.png", tmp_path / "film.gif"
    output(capsys, [*common, "--out", str(sheet), "--animate", str(film)])
    with Image.open(sheet) as image, Image.open(film) as frames:
        assert image.size[0] > 64
        assert frames.n_frames > 3
        assert frames.size[0] == 2 * image.size[0] + 8  # z_t, and beside it its estimate of x
    output(capsys, [*common, "--out", str(tmp_path / "a.npy")])
    output(capsys, [*common, "--out", str(tmp_path / "b.npy")])
    first, second = np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy")
    assert first.shape == (5, 1, 8, 8)
    assert first.dtype == np.uint8
    assert first.max() <= 16
    assert np.array_equal(first, second)
    output(capsys, [*common, "--out", str(tmp_path / "files")])
    assert len(list((tmp_path / "files").glob("*.png"))) == 5
    for _ in range(2):
        path = output(capsys, common).out.strip()
        assert path.startswith(trained)
    assert path.endswith("-2.png")


def test_sample_takes_every_sampler_and_grid(capsys, trained, tmp_path):
    common = ["sample", trained, "--n", "3", "--steps", "3"]
    drawn = {}
    for i, options in enumerate(
        (
            *(["--sampler", name] for name in SAMPLERS),
            *(["--grid", name] for name in GRIDS if name != "gamma"),
            ["--eta", "0.5"],
            ["--clip", "0.9"],
            ["--stop-early", "0"],
            ["--sampler", "ancestral", "--variance", "position"],
        )
    ):
        path = tmp_path / f"{i}.npy"
        output(capsys, [*common, *options, "--out", str(path)])
        drawn[" ".join(options)] = np.load(path).tobytes()
    assert len(set(drawn.values())) == len(drawn)  # every option is felt


def test_the_demo_ends_with_its_table(capsys, tmp_path):
    directory = str(tmp_path / "demo")
    text = output(capsys, ["demo", "--run", directory, "--minutes", "0.02"]).out
    for row in ("297 test images", "bound", "prior", "reconstruction", "diffusion"):
        assert row in text
    for row in ("order-0 entropy", "xz", "PNG", "WebP", "sheet.png", "reverse-process.gif"):
        assert row in text
    assert (tmp_path / "demo" / "samples" / "sheet.png").exists()


def test_data_shows_what_will_be_read(capsys, tmp_path):
    sheet = str(tmp_path / "sheet.png")
    text = output(capsys, ["data", "digits", "--sheet", sheet]).out
    assert "1797" in text
    assert "17 levels" in text
    assert "1 x 8 x 8" in text
    result = json.loads(output(capsys, ["data", "digits", "--sheet", sheet + ".png", "--json"]).out)
    assert result["splits"]["test"] == 297


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of things that cannot be read."""
    tmp_path = tmp_path_factory.mktemp("mistakes")
    floats = np.array([[0.5, 1.5], [0.2, 3.0], [0.1, 0.3], [0.0, 0.1]])
    np.save(tmp_path / "floats.npy", floats)
    np.save(tmp_path / "nan.npy", np.where(floats > 2, np.nan, floats))
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "sizes").mkdir()
    (tmp_path / "broken").mkdir()
    for i in range(30):
        Image.new("L", (8, 8 if i else 9), i).save(tmp_path / "sizes" / f"{i:02}.png")
        Image.new("L", (8, 8), i).save(tmp_path / "broken" / f"{i:02}.png")
    (tmp_path / "broken" / "07.png").write_bytes(b"not an image")
    return tmp_path


MISTAKES = {
    "missing path": (["data", "no/such"], r"no/such.*does not exist|no such"),
    "empty folder": (["data", "empty"], "holds no images"),
    "not a known kind": (["data", "text.txt"], "text.txt"),
    "different sizes": (["data", "sizes"], r"00\.png.*01\.png.*--resize"),
    "damaged image": (["data", "broken"], r"07\.png.*--skip-damaged"),
    "out of range": (["data", "floats.npy", "--range", "0", "2"], r"3\.0.*--range"),
    "NaN": (["data", "nan.npy"], "nan"),
    "levels": (["data", "digits", "--levels", "1"], "levels = 1"),
    "few images": (
        ["train", "digits", "--run", "r1", "--batch-size", "5000"],
        r"batch_size = 5000.*--batch-size",
    ),
    "unwritable": (["train", "digits", "--run", "text.txt/run"], "text.txt/run.*written"),
    "two budgets": (
        ["train", "digits", "--run", "r2", "--steps", "1", "--minutes", "1"],
        "steps = 1 and minutes = 1",
    ),
    "schedule": (
        ["train", "digits", "--run", "r3", "--schedule", "sigmoid"],
        "sigmoid.*fixed-linear, cosine, learned-linear, monotone, adaptive",
    ),
    "preset": (["train", "digits", "--run", "r4", "--preset", "huge"], "huge.*tiny, small"),
    "network": (["train", "digits", "--run", "r5", "--network", "dit"], "dit.*unet"),
    "network option": (
        ["train", "digits", "--run", "r6", "--set", "network.depth=3"],
        "network.depth.*blocks",
    ),
    "setting": (["train", "digits", "--run", "r7", "--set", "depth"], "SECTION.FIELD=VALUE"),
    "section": (["train", "digits", "--run", "r8", "--set", "a.b=1"], "'a'.*training"),
    "range of a setting": (
        ["train", "digits", "--run", "r9", "--learning-rate", "-1"],
        "learning_rate = -1",
    ),
    "device": (["train", "digits", "--run", "r10", "--device", "tpu9"], "device = 'tpu9'"),
    "no run": (["evaluate", "empty"], "no run is there.*vdm train"),
    "command": (["trian"], "trian.*train, evaluate"),
    "option": (["data", "digits", "--level", "3"], "--level.*--levels"),
    "no argument": (["data"], "DATA"),
    "size": (["data", "sizes", "--resize", "8y8"], "'8y8'.*32x48"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_exit_2(capsys, folder, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    captured = output(capsys, arguments, code=2)
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert re.search(message, captured.err), captured.err
    assert not list(folder.glob("r[0-9]*"))


def test_mistakes_with_a_trained_run(capsys, trained, tmp_path):
    taken = tmp_path / "taken.png"
    taken.write_bytes(b"mine")
    np.save(tmp_path / "other.npy", np.zeros((50, 4, 4), np.uint8))
    for arguments, message in (
        (["sample", trained, "--sampler", "euler"], "'euler': known are ancestral, ddim"),
        (["sample", trained, "--steps", "0"], "0"),
        (["sample", trained, "--grid", "cosine"], "'time', 'gamma', 'karras', 'equal-error'"),
        (["sample", trained, "--eta", "2"], "eta = 2.0: give 0 (deterministic) to 1"),
        (["sample", trained, "--sampler", "heun", "--eta", "1"], "heun has none; it is for ddim"),
        (["sample", trained, "--variance", "scalar"], "type --sampler ancestral"),
        (["sample", trained, "--stop-early", "999"], "levels; give a number between, or 0"),
        (["sample", trained, "--stop-early", "2", "--steps", "1"], "takes two steps or more"),
        (["sample", trained, "--clip", "1.5"], "1.5"),
        (["sample", trained, "--out", str(taken)], "exists"),
        (["sample", trained, "--out", str(tmp_path / "x.jpg")], ".png sheet"),
        (["evaluate", trained, str(tmp_path / "other.npy")], "shape (1, 4, 4)"),
        (["evaluate", trained, "--steps", "3"], "--estimator discrete"),
        (["train", "digits", "--run", trained, "--steps", "4"], "training.steps: 3 here, 4 asked"),
    ):
        captured = output(capsys, arguments, code=2)
        assert captured.err.count("\n") == 1
        assert message in captured.err
    assert taken.read_bytes() == b"mine"


def test_a_defect_of_ours_is_not_taken_for_a_mistake(monkeypatch):
    def broken(config):
        raise ValueError("not the user's fault")

    monkeypatch.setattr(data_command, "open_dataset", broken)
    with pytest.raises(ValueError, match="not the user's fault"):
        run(["data", "digits"])
