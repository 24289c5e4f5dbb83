"""vdm quality: what it prints and what it refuses."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands import output, train_digits
from variational_diffusion.config import DataConfig
from variational_diffusion.data import open_dataset
from variational_diffusion.run import sample_quality
from variational_diffusion.storage.tensors import read_tensors


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train_digits(tmp_path_factory.mktemp("runs"))


def test_quality_compares_with_test_examples_and_with_what_is_possible(capsys, trained, tmp_path):
    samples = str(tmp_path / "samples.npy")
    output(capsys, ["sample", trained, "--n", "60", "--steps", "4", "--out", samples])
    sheet = tmp_path / "nearest.png"
    common = ["quality", trained, "--drawn", samples, "--n", "60"]
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
    assert (
        "60 samples of sde-dpmpp-2m in 4 steps, seed 0, against 60 of 297 test examples"
        in drawn.out
    )
    images = output(capsys, [*pixels[:2], samples, *pixels[2:]])  # the samples are the data now
    assert json.loads(images.out)["distances"]["samples"]["FID"]["value"] < 1e-9


@pytest.mark.parametrize("split", ["train", "validation"])
def test_quality_tells_copies_of_training_images(capsys, trained, tmp_path, split):
    """Of validation images, some are as close as the closest of 40 test images: seldom a tenth."""
    images = open_dataset(DataConfig(source="digits")).splits[split].read()
    np.save(tmp_path / "images.npy", images[:40])
    samples = ["--drawn", str(tmp_path / "images.npy"), "--n", "40", "--features", "pixels"]
    nearest = ["--nearest", str(tmp_path / "nearest.png"), "--json"]
    found = json.loads(output(capsys, ["quality", trained, *samples, *nearest]).out)["nearest"]
    assert found["share"] == 1 if split == "train" else found["share"] <= 0.1
    assert (found["samples"] < 1e-6) == (split == "train")


def test_quality_trains_a_classifier_once(capsys, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(sample_quality, "STEPS", 20)
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
        (["--drawn", "none.npy"], r"'none\.npy' is no known name"),
        (
            ["--drawn", "wide.npy"],
            r"'wide\.npy' have shape \(1, 8, 9\) and levels 256: the model",
        ),
        (
            ["--drawn", "bright.npy"],
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
