"""The command line: contracts of output, exit codes, and one line for a user's mistake."""

import json
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from commands import output, train_digits
from variational_diffusion import data
from variational_diffusion.cli import COMMANDS, run
from variational_diffusion.grids import GRIDS
from variational_diffusion.sampling import SAMPLERS


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train_digits(tmp_path_factory.mktemp("runs"))


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


def test_schedule_prints_the_object_of_the_contract_and_draws(capsys, trained, tmp_path):
    arguments = ["schedule", trained, "--evaluations", "2000", "--json"]
    result = json.loads(output(capsys, arguments).out)
    assert set(result["variance"]) == {"learned", "linear", "cosine", "optimum"}
    assert 0 < result["variance"]["optimum"] < result["variance"]["learned"]
    assert result["gamma_0"] < result["gamma_1"]
    assert result["figures"] == []  # with --json, only where --out names one
    again = json.loads(output(capsys, arguments).out)
    assert again["variance"] == result["variance"]
    for number in ("", "-2"):
        shown = output(capsys, arguments[:-1]).out
        for ending, start in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
            path = f"{trained}/schedule{number}{ending}"
            assert f"figure: {path}" in shown
            with open(path, "rb") as file:
                assert file.read(5).startswith(start)
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
            ["--stop-early", "0.1"],
            ["--sampler", "ancestral", "--variance", "position"],
        )
    ):
        path = tmp_path / f"{i}.npy"
        output(capsys, [*common, *options, "--out", str(path)])
        drawn[" ".join(options)] = np.load(path).tobytes()
    assert len(set(drawn.values())) == len(drawn)  # every option is felt


def test_data_shows_what_will_be_read(capsys, tmp_path):
    sheet = str(tmp_path / "sheet.png")
    text = output(capsys, ["data", "digits", "--out", sheet]).out
    assert "1797" in text
    assert "17 levels" in text
    assert "1 x 8 x 8" in text
    result = json.loads(output(capsys, ["data", "digits", "--out", sheet + ".png", "--json"]).out)
    assert result["splits"]["test"] == 297


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
    "command": (["trian"], "trian.*train, data"),
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
        (["sample", trained, "--stop-early", "0.001"], "of the range; give a share between, or 0"),
        (["sample", trained, "--stop-early", "3"], "0<=x<=1"),
        (["sample", trained, "--stop-early", "0.1", "--steps", "1"], "takes two steps or more"),
        (["sample", trained, "--clip", "1.5"], "1.5"),
        (["sample", trained, "--out", str(taken)], "exists"),
        (["sample", trained, "--out", str(tmp_path / "x.jpg")], ".png sheet"),
        (["evaluate", trained, str(tmp_path / "other.npy")], "shape (1, 4, 4)"),
        (["evaluate", trained, "--steps", "3"], "--estimator discrete"),
        (
            ["train", "digits", "--run", trained, "--steps", "4"],
            "training.batch_size: 8 here",
        ),
    ):
        captured = output(capsys, arguments, code=2)
        assert captured.err.count("\n") == 1
        assert message in captured.err
    assert taken.read_bytes() == b"mine"


def test_a_defect_of_ours_is_not_taken_for_a_mistake(monkeypatch):
    def broken(config):
        raise ValueError("not the user's fault")

    monkeypatch.setattr(data, "open_dataset", broken)
    with pytest.raises(ValueError, match="not the user's fault"):
        run(["data", "digits"])
