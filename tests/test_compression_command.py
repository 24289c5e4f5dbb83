"""vdm compress and vdm decompress: what comes back, as it was, and what is told."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import variational_diffusion as vd
from variational_diffusion.cli import run
from variational_diffusion.compression.unpacking import stays_inside
from variational_diffusion.errors import InputError
from variational_diffusion.grids import VARIANCES, NoiseErrors
from variational_diffusion.networks import VarianceHead
from variational_diffusion.run.directory import Run
from variational_diffusion.run.examples import chosen_examples

QUICK = ["--steps", "4", "--variance", "posterior"]


def train(data, path, *options):
    """Train a run for two steps, and write down errors so that none are measured."""
    small = ["--steps", "2", "--batch-size", "2", "--set", "network.widths=[8]"]
    assert run(["train", str(data), "--run", str(path), *small, *options]) == 0
    shape = Run.open(str(path)).config.model.shape
    Run.open(str(path)).save_errors(NoiseErrors(torch.linspace(-13, 5, 10), torch.ones(10, *shape)))
    return str(path)


def there_and_back(model, data, tmp_path, *options, out="out"):
    """Compress and decompress; return where the examples are."""
    file, out = str(tmp_path / f"{out}.vdmz"), str(tmp_path / out)
    assert run(["compress", model, str(data), "--out", file, *QUICK, *options]) == 0
    assert run(["decompress", model, file, "--out", out]) == 0
    return Path(out)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two steps on the digits."""
    return train("digits", tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    """A run of two steps on images of 8×8 pixels in colour."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return train(folder, tmp_path_factory.mktemp("runs") / "colour")


@pytest.mark.parametrize("options", [[], ["--fast", "--group-size", "20", "--no-verify"]])
def test_a_run_s_own_examples_come_back(capsys, trained, tmp_path, options):
    file, array = str(tmp_path / "a.vdmz"), str(tmp_path / "a.npy")
    compress = ["compress", trained, "--limit", "50", "--steps", "5", "--out", file, "--json"]
    capsys.readouterr()
    assert run([*compress, *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"] == (tmp_path / "a.vdmz").stat().st_size
    assert told["bits_per_dim"] == pytest.approx(8 * told["bytes"] / (50 * 64))
    assert sum(told["overhead"].values()) + told["bound"] == pytest.approx(told["bits_per_dim"])
    assert run(["decompress", trained, file, "--out", array]) == 0
    split = chosen_examples(Run.open(trained), None, "test", 50)
    assert np.array_equal(np.load(array)[:, None], split.read())
    assert run(["decompress", trained, file, "--out", array]) == 2
    assert run([*compress]) == 2
    told = capsys.readouterr().err
    assert "a.npy' exists" in told
    assert "a.vdmz' exists" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "a.vdmz"]


def test_folders_come_back_with_names_kinds_and_sizes(capsys, colour, tmp_path):
    rng = np.random.default_rng(0)
    sizes = {"b/one.png": (8, 8), "b/two.bmp": (3, 17), "a.webp": (9, 8), "c.tiff": (8, 8)}
    sizes |= {"c.jpg.png": (1, 1), "c.ppm": (8, 8), "d.png": (20, 20)}
    for name, (height, width) in sizes.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        image.save(path, lossless=True) if name.endswith("webp") else image.save(path)
    image.save(tmp_path / "in" / "c.jpg")
    Image.fromarray(np.full((8, 8, 4), 255, np.uint8)).save(tmp_path / "in" / "opaque.png")
    back = there_and_back(colour, tmp_path / "in", tmp_path, "--group-size", "3")
    assert "2 images come back under another name" in capsys.readouterr().err
    for name in [*sizes, "opaque.png"]:
        if name != "c.jpg.png":
            with Image.open(back / name) as again, Image.open(tmp_path / "in" / name) as before:
                assert again.format == before.format
                assert np.array_equal(before.convert("RGB"), again)
    # c.jpg comes back as c.jpg.png, and so does the other: both are there
    found = set()
    for name in ("c.jpg.png", "c.jpg-2.png"):
        with Image.open(back / name) as image:
            found.add(image.size)
    assert found == {(1, 1), (20, 20)}
    assert len([path for path in back.rglob("*") if path.is_file()]) == len(sizes) + 2


def test_one_image_comes_back(colour, tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(tmp_path / "in" / "x.png")
    back = there_and_back(colour, tmp_path / "in", tmp_path)
    assert [path.name for path in back.iterdir()] == ["x.png"]
    with Image.open(back / "x.png") as image:
        assert np.array_equal(np.asarray(image).ravel(), np.arange(192, dtype=np.uint8))


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("|u1", (5, 8, 8, 3)), (">i4", (3, 3, 8, 8)), ("<u2", (2, 11, 5, 3)), ("|u1", (1, 8, 8, 3))],
)
def test_arrays_come_back_with_their_type_and_axes(colour, tmp_path, dtype, shape):
    x = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    back = np.load(there_and_back(colour, tmp_path / "x.npy", tmp_path, out="out.npy"))
    assert back.dtype == np.dtype(dtype)
    assert np.array_equal(back, x)


def test_arrays_of_other_levels_and_sizes(trained, tmp_path):
    x = np.random.default_rng(0).integers(0, 17, (4, 9, 8)).astype(np.int8)
    np.save(tmp_path / "x.npy", x)
    back = np.load(there_and_back(trained, tmp_path / "x.npy", tmp_path, out="out.npy"))
    assert back.dtype == np.int8
    assert np.array_equal(back, x)


def test_vectors_come_back(tmp_path):
    x = np.random.default_rng(0).integers(0, 30, (40, 6))
    np.save(tmp_path / "x.npy", x)
    small = ["--set", "network.width=8"]
    model = str(tmp_path / "run")
    options = ["--steps", "2", "--batch-size", "2", *small]
    assert run(["train", str(tmp_path / "x.npy"), "--run", model, *options]) == 0
    Run.open(model).save_errors(NoiseErrors(torch.linspace(-13, 5, 10), torch.ones(10, 6)))
    back = np.load(there_and_back(model, tmp_path / "x.npy", tmp_path, out="out.npy"))
    assert back.dtype == x.dtype
    assert np.array_equal(back, x)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8, 4), np.uint8), "transparency"),
        (np.zeros((8, 8), np.uint16), r"shape (1, 8, 8): the model takes (3, 8, 8)"),
    ],
)
def test_images_that_would_not_come_back_are_refused(capsys, colour, tmp_path, image, message):
    (tmp_path / "in").mkdir()
    Image.fromarray(image).save(tmp_path / "in" / "x.png")
    compress = ["compress", colour, str(tmp_path / "in"), "--out", str(tmp_path / "a.vdmz"), *QUICK]
    assert run(compress) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "a.vdmz").exists()


def test_damage_is_told_and_the_rest_is_there(capsys, colour, tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    file = str(tmp_path / "a.vdmz")
    compress = ["compress", colour, str(tmp_path / "x.npy"), "--out", file, *QUICK]
    assert run([*compress, "--group-size", "2"]) == 0
    data = bytearray((tmp_path / "a.vdmz").read_bytes())
    data[data.rindex(b"\xabend") - 5] ^= 1
    (tmp_path / "bad.vdmz").write_bytes(data)
    capsys.readouterr()
    decompress = ["decompress", colour, str(tmp_path / "bad.vdmz"), "--out"]
    assert run([*decompress, str(tmp_path / "part")]) == 2
    told = capsys.readouterr().err
    assert "images 4 to 5 (bytes are damaged" in told
    assert told.count("\n") == 1
    assert sorted(p.name for p in (tmp_path / "part").iterdir()) == [
        f"{i:05}.png" for i in range(4)
    ]
    assert run([*decompress, str(tmp_path / "part.npy")]) == 2
    back = np.load(tmp_path / "part.npy")
    assert np.array_equal(back[:4], x[:4])
    assert not back[4:].any()


def test_what_cannot_be_written_is_said_before_anything_is_decoded(
    capsys, colour, trained, tmp_path
):
    for name, size in {"a.png": (8, 8), "b.png": (4, 4)}.items():
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.new("RGB", size).save(tmp_path / "in" / name)
    file = str(tmp_path / "a.vdmz")
    assert run(["compress", colour, str(tmp_path / "in"), "--out", file, *QUICK]) == 0
    assert run(["decompress", colour, file, "--out", str(tmp_path / "a.npy")]) == 2
    assert "several sizes; give a folder" in capsys.readouterr().err
    assert run(["decompress", colour, file, "--out", str(tmp_path / "in")]) == 2
    assert run(["decompress", colour, file, "--out", str(tmp_path / "a.zip")]) == 2
    assert run(["decompress", trained, file, "--out", str(tmp_path / "new")]) == 2
    assert "another model" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert run(["decompress", trained, trained + "/config.json", "--out", file + "x"]) == 2
    assert "no .vdmz file" in capsys.readouterr().err
    assert run(["decompress", trained, str(tmp_path / "none.vdmz"), "--out", file + "x"]) == 2
    assert "cannot be read: no such file" in capsys.readouterr().err


ODD = {
    "a\\000.png": "a\\000.png",
    "caf\udce9.png": "caf\udce9.png",
    "\udcff\udcfe/x.png": "\udcff\udcfe/x.png",
    "new\nline.png": "new\nline.png",
    "\x1b[31m.png": "\x1b[31m.png",
    "a.png ": None,
    "dots...png": "dots...png",
    "...x.png": None,
    "C:x.png": "C:x.png",
    "x[1],[2].png": "x[1],[2].png",
    "é" * 120 + ".png": "é" * 120 + ".png",
    "a.jpg": "a.jpg.png",
    "b.jpg": "b.jpg.png",
    "b.jpg.png/c.png": "000NN.png",  # in a folder of that name, which is a file now
    "l" * 248 + ".jpg": "000NN.png",  # too long with .png behind it
    "/".join(["deep" * 20] * 30) + "/x.png": "/".join(["deep" * 20] * 30) + "/x.png",
    "UPPER.png": "UPPER.png",
    "upper.png": "upper.png",
    "con.png": "con.png",
    "-rf.png": "-rf.png",
}
"""Names of files → those that they come back under; None: not read, so not there."""


@pytest.mark.skipif(os.name != "posix", reason="names that other systems do not have")
def test_whatever_the_names_are_all_images_come_back(capsys, colour, tmp_path):
    pixels = {}
    for i, name in enumerate(ODD):
        path = tmp_path / "in" / name
        os.makedirs(path.parent, exist_ok=True)
        # pillow writes by file, as names may not be text
        pixels[name] = np.full((8, 8, 3), i, np.uint8)
        with path.open("wb") as file:
            Image.fromarray(pixels[name]).save(file, "png")
    file = str(tmp_path / "a.vdmz")
    read = [name for name, back in ODD.items() if back is not None]
    assert run(["compress", colour, str(tmp_path / "in"), "--out", file, *QUICK]) == 0
    assert run(["decompress", colour, file, "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().err
    found = {}
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            with path.open("rb") as content, Image.open(content) as image:
                found[str(path.relative_to(tmp_path / "out"))] = int(np.asarray(image)[0, 0, 0])
    assert sorted(found.values()) == [i for i, name in enumerate(ODD) if name in read]
    for i, (name, back) in enumerate(ODD.items()):
        if back is not None and not back.startswith("000"):
            assert found[back] == i, name
    assert "4 images come back under another name" in told
    assert "\x1b" not in told


@pytest.mark.parametrize("names", [["a.png", "../b.png", "/c.png", "d\0.png", "e/../../f.png"]])
def test_names_of_a_hostile_file_stay_in_the_folder(colour, tmp_path, monkeypatch, names):
    (tmp_path / "in").mkdir()
    for i in range(5):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / "in" / f"{i}.png")
    file = str(tmp_path / "a.vdmz")
    monkeypatch.setattr(vd.data.Originals, "names", lambda _, numbers: [names[i] for i in numbers])
    assert run(["compress", colour, str(tmp_path / "in"), "--out", file, *QUICK]) == 0
    assert run(["decompress", colour, file, "--out", str(tmp_path / "out")]) == 0
    back = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert back == ["00001.png", "00002.png", "00003.png", "00004.png", "a.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.vdmz", "in", "out"]


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("film.webp", {"save_all": True, "lossless": True}, "several pictures"),
        ("alpha.png", {}, "transparency"),
    ],
)
def test_a_run_of_files_that_lose_something_says_what_comes_back(
    capsys, tmp_path, name, options, told
):
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for i in range(4):
        images = [Image.fromarray(rng.integers(0, 256, (8, 8, 4), np.uint8)) for _ in range(2)]
        more = {"append_images": images[1:]} if options else {}
        images[0].save(tmp_path / "in" / f"{i}{name}", **options, **more)
    model = train(tmp_path / "in", tmp_path / "run")
    file = str(tmp_path / "a.vdmz")
    capsys.readouterr()
    assert run(["compress", model, "--out", file, *QUICK]) == 0
    assert "what comes back is the examples as the run reads them" in capsys.readouterr().err
    assert run(["compress", model, str(tmp_path / "in"), "--out", file + "2.vdmz", *QUICK]) == 2
    assert told in capsys.readouterr().err


def test_levels_that_are_read_of_other_values_are_told_and_refused(capsys, tmp_path):
    masks = np.random.default_rng(0).integers(0, 2, (20, 8, 8), np.uint8)
    np.save(tmp_path / "x.npy", masks * 255)
    model = train(tmp_path / "x.npy", tmp_path / "run", "--levels", "2", "--range", "0", "255")
    file = str(tmp_path / "a.vdmz")
    capsys.readouterr()
    assert run(["compress", model, "--out", file, *QUICK]) == 0
    assert "read as the numbers of their levels" in capsys.readouterr().err
    back = vd.decompress(model, file)
    test = chosen_examples(Run.open(model), None, "test", None).read()
    assert np.array_equal(back.reshape(test.shape), test)
    assert run(["compress", model, str(tmp_path / "x.npy"), "--out", file + ".vdmz", *QUICK]) == 2
    assert "value 255" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["/etc/x.png", "../x.png", "a/../../x.png", "", "a/.."])
def test_names_that_lead_out_of_the_folder_are_known(name):
    assert not stays_inside(name)
    assert stays_inside("a/b c/é.png")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_any_moment_no_file_is_under_the_name(capsys, trained, tmp_path):
    """SIGKILL while groups are written: what is left has another name, and says it was cut off."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 17, (3000, 8, 8), np.uint8))
    compress = ["compress", trained, str(tmp_path / "x.npy"), "--out", str(tmp_path / "a.vdmz")]
    for least in (1, 10_000, 30_000):
        child = os.fork()
        if child == 0:
            os._exit(run([*compress, *QUICK, "--group-size", "20"]))
        deadline = time.monotonic() + 60
        left = []
        while time.monotonic() < deadline and not left:
            time.sleep(0.01)
            left = [path for path in tmp_path.glob(".a.*") if path.stat().st_size >= least]
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        assert not (tmp_path / "a.vdmz").exists()
        (left,) = left
        out = str(tmp_path / "out.npy")
        capsys.readouterr()
        assert run(["decompress", trained, str(left), "--out", out]) == 2
        assert "its end (it was cut off)" in capsys.readouterr().err
        assert 0 < len(np.load(out)) < 3000
        Path(out).unlink()
        left.unlink()


# by Python, and what of a run it takes


def compressed(capsys, *arguments):
    """Run vdm compress with --json; return what it told."""
    capsys.readouterr()
    assert run(["compress", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def contents(folder):
    """What would change if anything in a folder did."""
    paths = sorted(folder.rglob("*"))
    return [(path, path.stat().st_mtime_ns, path.stat().st_size) for path in paths]


def trained_on(path):
    """Change the averaged weights of a run, as going on with its training does."""
    run = Run.open(path)
    state = run.resume().state
    for parameter in state.average.module.parameters():
        parameter.data += 0.01
    run.write_weights(state)


@pytest.mark.parametrize(
    "options", [{"limit": 10}, {"steps": 5, "group": 20, "verify": False, "limit": 50}]
)
def test_the_command_and_the_function_give_the_same_bytes_and_figures(
    capsys, trained, tmp_path, options
):
    typed = [f"--{name}={value}" for name, value in options.items() if name != "verify"]
    typed += [] if options.get("verify", True) else ["--no-verify"]
    told = compressed(capsys, trained, "--out", tmp_path / "a.vdmz", *typed)
    found = vd.compress(vd.Run.open(trained), None, tmp_path / "b.vdmz", **options)
    assert (tmp_path / "a.vdmz").read_bytes() == (tmp_path / "b.vdmz").read_bytes()
    assert json.loads(json.dumps(found.as_json())) == told | {"file": str(tmp_path / "b.vdmz")}
    assert capsys.readouterr().out == ""
    assert str(found).startswith(f"{tmp_path / 'b.vdmz'}: {told['bytes']:,} bytes for ")


def test_other_examples_have_another_identity(trained, tmp_path):
    x = np.zeros((2, 8, 8), np.uint8)
    files = []
    for name, changed in (("a", x), ("b", x + np.uint8(1)), ("c", x)):
        vd.compress(trained, changed, tmp_path / f"{name}.vdmz", steps=4, variance="posterior")
        files.append((tmp_path / f"{name}.vdmz").read_bytes())
    assert files[0] == files[2]
    assert files[0][14:30] != files[1][14:30]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 9, 5)])
def test_arrays_and_tensors_come_back_in_python(trained, tmp_path, dtype, shape):
    x = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 16.99).to(dtype)
    for name, data in (("t", x), ("a", x.numpy())):
        file = tmp_path / f"{name}.vdmz"
        vd.compress(trained, data, file, steps=4, variance="posterior")
        back = vd.decompress(trained, file)
        assert back.dtype == x.numpy().dtype
        assert np.array_equal(back, x)
        path = vd.decompress(trained, file, tmp_path / f"{name}.npy")
        assert np.array_equal(np.load(path), back)


def test_opened_data_and_splits_are_compressed(trained, tmp_path):
    x = np.random.default_rng(0).integers(0, 17, (30, 8, 8), np.uint8)
    opened = vd.open_dataset(x, levels=17)
    for name, data in (("all", opened), ("some", opened.splits["train"].sample(4))):
        vd.compress(trained, data, tmp_path / f"{name}.vdmz", steps=4, variance="posterior")
    assert np.array_equal(vd.decompress(trained, tmp_path / "all.vdmz"), x)
    some = opened.splits["train"].sample(4).read()
    assert np.array_equal(vd.decompress(trained, tmp_path / "some.vdmz")[:, None], some)
    with pytest.raises(InputError, match="has levels 256: the model"):
        vd.compress(trained, vd.open_dataset(x), tmp_path / "x.vdmz")


def test_what_python_gives_wrong_is_told_in_one_line(trained, tmp_path):
    file = tmp_path / "a.vdmz"
    for data, message in (
        (torch.zeros(2, 8, 8), "hold float32: .* convert it with astype"),
        (np.full((2, 8, 8), 17), "17"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"shape \(3, 8, 8\): the model takes \(1, 8, 8\)"),
    ):
        with pytest.raises(InputError, match=message) as raised:
            vd.compress(trained, data, file, steps=4)
        assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="of the run's own data"):
        vd.compress(trained, np.zeros((2, 8, 8), np.uint8), file, split="test")
    assert not file.exists()


def test_an_example_that_cannot_be_coded_is_told_before_any_is(trained, tmp_path):
    """The last of many: the first were coded for nothing."""
    data = vd.open_dataset(vd.Run.open(trained).config.data).splits["test"]
    told = []
    wrong = np.concatenate([data.read(), np.full((1, 1, 8, 8), 0, np.uint8)])
    with pytest.raises(InputError, match="example 0"):
        vd.compress(trained, wrong.repeat(2, 1), tmp_path / "a.vdmz", steps=4, progress=told.append)
    assert [one for one in told if one.title == "compressing" and not one.ended] == []


def test_decompressing_takes_neither_data_nor_errors_and_leaves_the_run_as_it_is(
    tmp_path,
):
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for i in range(10):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / "in" / f"{i}.png")
    model = train(tmp_path / "in", tmp_path / "run")
    file = tmp_path / "a.vdmz"
    vd.compress(model, tmp_path / "in", file, steps=4, variance="position")
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    (copy / "errors-ema.safetensors").unlink()
    before = contents(copy)
    shutil.move(tmp_path / "in", tmp_path / "gone")
    back = vd.decompress(copy, file, tmp_path / "back")
    for path in (tmp_path / "gone").iterdir():
        assert np.array_equal(Image.open(path), Image.open(back / path.name))
    assert contents(copy) == before
    (kept,) = (copy / "kept").iterdir()
    handed = tmp_path / "handed"  # to somebody who only decompresses
    shutil.copytree(copy / "kept", handed / "kept")
    shutil.copy(copy / "config.json", handed)
    assert np.array_equal(vd.decompress(handed, file), vd.decompress(copy, file))
    kept.unlink()
    with pytest.raises(
        InputError, match=r"errors-ema.safetensors' is missing, the measured"
    ) as raised:
        vd.decompress(copy, file)
    assert str(kept) in str(raised.value)
    assert "\n" not in str(raised.value)
    (copy / "errors-ema.safetensors").write_bytes(
        Path(model, "errors-ema.safetensors").read_bytes()
    )
    assert len(vd.decompress(copy, file)) == 10  # the run as it was does without what was kept


@pytest.mark.parametrize("variance", VARIANCES)
def test_training_on_keeps_what_a_file_needs(trained, tmp_path, variance):
    path = tmp_path / "run"
    shutil.copytree(trained, path)
    opened = Run.open(path)
    if variance == "predicted":
        head = VarianceHead((1, 8, 8), gamma_min=-13.0, gamma_max=5.0, width=4)
        opened.save_head(head)
        flat = NoiseErrors(torch.linspace(-13, 5, 10), torch.ones(10, 1, 1, 1))
        opened.save_predictions(flat, NoiseErrors(flat.gamma, 0.9 * flat.error))
    file, x = tmp_path / "a.vdmz", np.arange(192, dtype=np.uint8).reshape(3, 8, 8) % 17
    vd.compress(path, x, file, steps=4, variance=variance)
    trained_on(path)
    assert np.array_equal(vd.decompress(path, file), x)
    for kept in (path / "kept").iterdir():
        kept.unlink()
    gone = "of other weights than|has no head|another model"
    with pytest.raises(InputError, match=gone) as raised:
        vd.decompress(path, file)
    assert f"{path}/kept/" in str(raised.value)


def test_another_file_in_the_place_of_what_is_kept_is_named(trained, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(trained, path)
    shutil.rmtree(path / "kept", ignore_errors=True)
    file, x = tmp_path / "a.vdmz", np.arange(192, dtype=np.uint8).reshape(3, 8, 8) % 17
    vd.compress(path, x, file, steps=4)
    (kept,) = (path / "kept").iterdir()
    whole, (state, *_) = kept.read_bytes(), sorted((path / "state").iterdir())
    shutil.copy(state, kept)
    with pytest.raises(InputError, match=r"kept/.*holds 'state' of this run where 'kept' belongs"):
        vd.decompress(path, file)
    kept.write_bytes(whole)
    run = Run.open(path)
    tensors, about = run.read(kept, "kept")
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    run.write(kept, "kept", tensors | {name: tensors[name] + 1}, about)
    with pytest.raises(InputError, match=r"kept/.*holds another model than its name says"):
        vd.decompress(path, file)


def test_a_model_is_kept_once_and_a_run_that_cannot_be_written_is_told(trained, tmp_path, caplog):
    path = tmp_path / "run"
    shutil.copytree(trained, path)
    shutil.rmtree(path / "kept", ignore_errors=True)
    x = np.zeros((2, 8, 8), np.uint8)
    for name in "ab":
        vd.compress(path, x, tmp_path / f"{name}.vdmz", steps=4)
    vd.compress(path, x, tmp_path / "c.vdmz", steps=4, variance="posterior")
    assert len(list((path / "kept").iterdir())) == 2
    shutil.rmtree(path / "kept")
    (path / "kept").write_text("in the way")
    with caplog.at_level("INFO", "variational_diffusion"):
        vd.compress(path, x, tmp_path / "d.vdmz", steps=4)
    assert "could not be kept: File exists" in caplog.text
    assert np.array_equal(vd.decompress(path, tmp_path / "d.vdmz"), x)
