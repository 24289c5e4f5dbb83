"""`vdm edit`: its tasks on a run of three steps, what they write, and one line for a mistake."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import variational_diffusion as vd
from commands import TRAIN
from variational_diffusion.cli import run
from variational_diffusion.data import open_dataset
from variational_diffusion.errors import InputError
from variational_diffusion.model import VDM
from variational_diffusion.run.directory import Run

QUICK = ["--limit", "3", "--threads", "1"]
STEPS = ["--steps", "4", "--n", "2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of three steps on the digits."""
    path = str(tmp_path_factory.mktemp("runs") / "digits")
    assert run(["train", "digits", "--run", path, *TRAIN, "--weighting", "sigmoid"]) == 0
    return path


@pytest.fixture(scope="module")
def mask(tmp_path_factory):
    """The path of a mask whose left half is white."""
    path = tmp_path_factory.mktemp("masks") / "left.png"
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:, :4] = 255
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.fixture(scope="module")
def digits(trained):
    """The first three test images."""
    return open_dataset(Run.open(trained).config.data).splits["test"].sample(3).read()


def edit(capsys, arguments, code=0):
    capsys.readouterr()
    assert run(["edit", *arguments]) == code
    return capsys.readouterr()


@pytest.mark.parametrize("name", ["picture", "array"])
def test_inpainting_keeps_what_is_known_to_the_level(capsys, trained, mask, digits, tmp_path, name):
    out = tmp_path / "painted.npy"
    if name == "array":
        mask = str(tmp_path / "mask.npy")
        hole = np.zeros((1, 8, 8), bool)
        hole[:, :, :4] = True
        np.save(mask, hole)
    given = ["inpaint", trained, "--mask", mask, "--out", str(out), "--json", *QUICK, *STEPS]
    told = json.loads(edit(capsys, given).out)
    assert told == {"task": "inpaint", "out": str(out), "examples": 3, "results": 2}
    painted = np.load(out)
    assert painted.shape == (3, 2, 1, 8, 8)
    assert (painted[..., 4:] == digits[:, None, :, :, 4:]).all()
    assert (painted[..., :4] != digits[:, None, :, :, :4]).any()
    assert (painted[:, 0] != painted[:, 1]).any()
    assert "exists and is not overwritten; give another name" in edit(capsys, given, code=2).err


def test_the_same_seed_gives_the_same_and_another_does_not(capsys, trained, tmp_path):
    results = []
    for i, seed in enumerate((1, 1, 2)):
        out = str(tmp_path / f"{i}.npy")
        edit(
            capsys,
            ["vary", trained, "--gamma", "0", "--out", out, "--seed", str(seed), *QUICK, *STEPS],
        )
        results.append(np.load(out))
    assert (results[0] == results[1]).all()
    assert (results[0] != results[2]).any()


def test_little_noise_varies_little(capsys, trained, digits, tmp_path):
    differences = []
    for gamma in (-7.5, 4.0):
        out = str(tmp_path / f"{gamma}.npy")
        edit(capsys, ["vary", trained, "--gamma", str(gamma), "--out", out, *QUICK, *STEPS])
        differences.append(np.abs(np.load(out).astype(float) - digits[:, None]).mean())
    assert differences[0] < 0.3 < differences[1]


@pytest.mark.parametrize(
    ("options", "columns"),
    [
        (["--measurement", "downsample"], 4),
        (["--measurement", "blur", "--width", "0.7"], 4),
        (["--measurement", "mask", "--mask", "MASK"], 3),
    ],
)
def test_restoring_writes_a_sheet_of_originals_measurements_and_results(
    capsys, trained, mask, tmp_path, options, columns
):
    out = tmp_path / "sheet.png"
    options = [mask if option == "MASK" else option for option in options]
    told = edit(capsys, ["restore", trained, "--out", str(out), *options, *QUICK, *STEPS]).out
    assert told.splitlines()[0] == str(out)
    assert "residual: " in told
    with Image.open(out) as picture:
        assert picture.size == (columns * 66 + 2, 3 * 66 + 2)  # 64 pixels and a gap of two


def test_restoring_takes_what_was_measured_already(capsys, trained, digits, tmp_path):
    small = digits.reshape(3, 4, 2, 4, 2).mean((2, 4)).round().astype(np.uint8).repeat(10, 0)
    small[-1, 0, 0] = 16  # so that the levels are as many
    np.save(tmp_path / "small.npy", small)
    out = tmp_path / "large.npy"
    given = ["restore", trained, str(tmp_path / "small.npy"), "--measured", *QUICK, *STEPS]
    edit(capsys, [*given, "--measurement", "downsample", "--out", str(out)])
    assert np.load(out).shape == (3, 2, 1, 8, 8)
    told = edit(capsys, [*given, "--measurement", "downsample", "--factor", "4"], code=2).err
    assert "has shape (1, 4, 4) and levels 17: here it has to have shape (1, 2, 2)" in told


def test_an_interpolation_begins_and_ends_with_its_examples(capsys, trained, digits, tmp_path):
    out = tmp_path / "way.npy"
    given = ["interpolate", trained, "--between", "1", "--tolerance", "1e-3", "--out", str(out)]
    told = json.loads(edit(capsys, [*given, "--json", *QUICK]).out)
    way = np.load(out).astype(int)
    assert way.shape == (1, 3, 1, 8, 8)
    ends = np.abs(way[0, [0, 2]] - digits[:2].astype(int))
    assert told["round_trip_exact"] == pytest.approx((ends == 0).mean())
    assert told["round_trip_largest"] == ends.max()
    assert told["round_trip_exact"] > 0.8
    assert (way[0, 1] != way[0, 0]).any()


def test_without_out_the_sheet_is_in_the_run(capsys, trained):
    told = edit(capsys, ["vary", trained, "--gamma", "0", *QUICK, *STEPS]).out
    assert told.strip().endswith("samples/vary-seed-0.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["restore", "--measurement", "radon"],
            "measurement = 'radon': known are mask, downsample",
        ),
        (["restore", "--measurement", "mask"], "measurement = 'mask': name the picture"),
        (["restore", "--measurement", "grey"], "have no three channels"),
        (["restore", "--measurement", "grey", "--factor", "2"], "factor = 2: no option of grey"),
        (
            ["restore", "--measurement", "blur", "--factor", "2"],
            "no option of blur; it takes --width",
        ),
        (["restore", "--measurement", "downsample", "--factor", "3"], "factor = 3: images of 8x8"),
        (["restore", "--measurement", "blur", "--measured"], "data = none: with --measured"),
        (["inpaint", "--mask", "none.png"], "mask = 'none.png': there is no such file"),
        (["inpaint", "--mask", "WRONG"], "has 4x6 pixels: the model's images have 8x8"),
        (["inpaint", "--mask", "BROKEN"], "this is no picture that can be read"),
        (["inpaint", "--mask", "ARRAY"], "holds int64 of shape (1, 8, 8): give booleans"),
        (["vary", "--gamma", "30"], "gamma = 30.0: the model's noise has γ from"),
        (["vary", "--gamma", "0", "--out", "x.gif"], "out = 'x.gif': give a .png sheet"),
        (["vary", "--gamma", "0", "--steps", "0"], "'--steps': 0 is not in the range x>=1"),
        (["interpolate", "--limit", "1"], "limit = 1: an interpolation takes two"),
        (["interpolate", "nothing-here"], "nothing-here"),
    ],
)
def test_a_mistake_is_one_line(capsys, trained, tmp_path, arguments, message):
    Image.new("L", (6, 4)).save(tmp_path / "wrong.png")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    np.save(tmp_path / "array.npy", np.zeros((1, 8, 8), int))
    paths = {"WRONG": "wrong.png", "BROKEN": "broken.png", "ARRAY": "array.npy"}
    arguments = [str(tmp_path / paths[a]) if a in paths else a for a in arguments]
    told = edit(capsys, [arguments[0], trained, *arguments[1:], "--threads", "1"], code=2)
    assert message in told.err
    assert len(told.err.splitlines()) == 1
    assert told.out == ""


def test_an_unknown_weighting_is_refused_before_the_run_is_begun(capsys, tmp_path):
    path = tmp_path / "run"
    assert run(["train", "digits", "--run", str(path), "--weighting", "snr"]) == 2
    assert "weighting = 'snr': known are bound, sigmoid" in capsys.readouterr().err
    assert not path.exists()


def test_a_weighting_is_part_of_the_configuration(capsys, trained):
    assert Run.open(trained).config.training.weighting == "sigmoid"
    assert run(["train", "digits", "--run", trained, *TRAIN]) == 2
    assert "training.weighting: 'sigmoid' here, 'bound' asked" in capsys.readouterr().err


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    """A run of three steps on the digits with their labels."""
    path = str(tmp_path_factory.mktemp("runs") / "labels")
    assert run(["train", "digits", "--run", path, *TRAIN, "--condition", "label"]) == 0
    return path


def test_a_model_with_conditions_is_given_those_of_the_examples_or_others(
    capsys, conditional, tmp_path, monkeypatch
):
    seen = []

    def given(vdm, values, **options):
        seen.append((values.tolist(), options["guidance"]))
        return vdm

    monkeypatch.setattr(VDM, "given", given)
    split = open_dataset(Run.open(conditional).config.data).splits["test"].sample(3)
    own = split.batch(range(3))[1].tolist()
    vary = ["vary", conditional, "--gamma", "0", *QUICK, "--steps", "2", "--n", "1"]
    for i, (options, expected) in enumerate(
        [
            ([], [(own, 1.0)]),
            (["--label", "4", "--guidance", "2"], [([4, 4, 4], 2.0)]),
            (["--condition", "none"], []),
        ]
    ):
        seen.clear()
        edit(capsys, [*vary, *options, "--out", str(tmp_path / f"{i}.npy")])
        assert seen == expected
    seen.clear()
    way = ["interpolate", conditional, "--between", "1", "--tolerance", "1e-2", *QUICK]
    edit(capsys, [*way, "--out", str(tmp_path / "way.npy")])
    assert seen == []


def test_an_unconditional_model_takes_no_label(capsys, trained):
    told = edit(capsys, ["vary", trained, "--gamma", "0", "--label", "4", *QUICK], code=2).err
    assert "is unconditional; train another with" in told


TASKS = {
    "inpaint": (["--mask", "MASK", *STEPS], {"steps": 4, "draws": 2}),
    "restore": (["--measurement", "blur", "--width", "0.7", *STEPS], {"steps": 4, "draws": 2}),
    "vary": (["--gamma", "0.5", "--sampler", "ddim", *STEPS], {"steps": 4, "draws": 2}),
    "interpolate": (["--between", "1", "--tolerance", "1e-2"], {"between": 1, "tolerance": 1e-2}),
}


@pytest.mark.parametrize("task", TASKS)
def test_the_command_and_the_function_give_the_same(capsys, trained, mask, tmp_path, task):
    typed, options = TASKS[task]
    typed = [mask if word == "MASK" else word for word in typed]
    first = {"inpaint": [mask], "restore": ["blur"], "vary": [0.5], "interpolate": []}[task]
    own = {"restore": {"width": 0.7}, "vary": {"sampler": "ddim"}}.get(task, {})
    out, seed = str(tmp_path / "a.npy"), ["--seed", "3", "--json"]
    told = json.loads(edit(capsys, [task, trained, *typed, *QUICK, *seed, "--out", out]).out)
    found = getattr(vd, task)(trained, *first, limit=3, seed=3, threads=1, **options, **own)
    np.testing.assert_array_equal(np.load(out), found.results)
    assert {**found.as_json(), "out": out} == told
    assert capsys.readouterr().out == ""


def test_examples_and_masks_in_memory_are_those_of_files(trained, mask, digits):
    hole = np.zeros((1, 8, 8), bool)
    hole[:, :, :4] = True
    quick = {"steps": 3, "draws": 1, "threads": 1}
    expected = vd.inpaint(trained, mask, digits, **quick).results
    for given in (hole, torch.from_numpy(hole)):
        found = vd.inpaint(trained, given, torch.from_numpy(digits), **quick)
        np.testing.assert_array_equal(found.results, expected)
    np.testing.assert_array_equal(found.before[:, 0], digits)
    assert (found.before[:, 1, :, :, :4] == found.before[0, 1, 0, 0, 0]).all()
    with pytest.raises(InputError, match="the array holds bool of shape"):
        vd.inpaint(trained, hole[0], digits)
