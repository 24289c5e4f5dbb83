"""The data of a run: known again when they have changed, found again when they have moved."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from commands import TRAIN, output
from variational_diffusion.cli import run
from variational_diffusion.config import RunConfig
from variational_diffusion.config import digest_of_json as digest_of
from variational_diffusion.data import open_dataset
from variational_diffusion.errors import GoneError, InputError
from variational_diffusion.run.compression import compress, decompress
from variational_diffusion.run.directory import Run
from variational_diffusion.run.evaluation import evaluate
from variational_diffusion.run.examples import own_data
from variational_diffusion.run.training import train

SMALL = {"steps": 2, "settings": {"training.batch_size": 8, "network.widths": [8, 8]}}
FAST = ["--threads", "1"]


def images(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8), dtype=np.uint8)


def save(folder, pictures, first=0):
    folder.mkdir(exist_ok=True)
    for i, picture in enumerate(pictures, first):
        Image.fromarray(picture).save(folder / f"{i:03}.png")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of 120 images with a run on them."""
    where = tmp_path_factory.mktemp("made")
    save(where / "photos", images(120))
    assert run(["train", str(where / "photos"), "--run", str(where / "run"), *TRAIN, *FAST]) == 0
    return where


@pytest.fixture
def place(made, tmp_path):
    """The same, with a copy of the run and of its data that may be changed."""
    shutil.copytree(made / "photos", tmp_path / "photos")
    shutil.copytree(made / "run", tmp_path / "run")
    move(tmp_path / "run", tmp_path / "photos")
    return tmp_path


def move(path, source):
    """Write another source into a run, as if it had been trained on it."""
    opened = Run.open(path)
    data = opened.config.data.model_copy(update={"source": str(source)})
    config = opened.config.model_copy(update={"data": data})
    (path / "config.json").write_text(config.to_json(), "utf-8")


def test_the_configuration_says_what_the_data_are(made):
    known = json.loads((made / "run" / "config.json").read_text("utf-8"))["fingerprint"]
    assert (known["examples"], known["shape"], known["levels"]) == (120, [1, 8, 8], 256)
    assert len(known["digest"]) == 32


CHANGES = {
    "one added": lambda folder: save(folder, images(1, 9), 500),
    "two removed": lambda folder: [(folder / f"{i:03}.png").unlink() for i in (3, 4)],
    "one replaced": lambda folder: save(folder, images(1, 9), 7),
    "all replaced": lambda folder: save(folder, images(120, 9)),
    "a copy added": lambda folder: shutil.copy(folder / "001.png", folder / "x.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_noticed_by_readers_and_stop_a_training(change, place, capsys):
    before = own_data(Run.open(place / "run")).splits
    trained_on = {row.tobytes() for row in before["train"].read()}
    CHANGES[change](place / "photos")
    path = str(place / "run")
    shown = output(capsys, ["evaluate", path, "--limit", "4", "--draws", "1", *FAST])
    assert shown.err.count("have changed since it was trained") == 1
    assert "--data" in shown.err
    after = own_data(Run.open(path)).splits
    assert not trained_on & {row.tobytes() for row in after["test"].read()}
    again = ["train", str(place / "photos"), "--run", path, *TRAIN, "--steps", "4", *FAST]
    for arguments in (again, ["train", "--run", path, "--steps", "4", *FAST]):
        shown = output(capsys, arguments, code=2).err
        assert "have changed since it was trained" in shown
        assert "--changed-data" in shown
        assert shown.count("\n") == 1
    assert max(Run.open(path).states()) == 3
    output(capsys, [*again, "--changed-data"])
    assert max(Run.open(path).states()) == 4
    shown = output(capsys, ["evaluate", path, "--limit", "4", "--draws", "1", *FAST])
    assert "have changed" not in shown.err


@pytest.mark.parametrize("change", ["renamed", "touched", "moved into folders"])
def test_other_names_are_no_change(change, place, capsys):
    for file in sorted((place / "photos").iterdir()):
        if change == "renamed":
            file.rename(file.with_name(f"x{file.name}"))
        elif change == "touched":
            file.touch()
        else:
            (place / "photos" / "deep").mkdir(exist_ok=True)
            file.rename(file.parent / "deep" / file.name)
    shown = output(capsys, ["evaluate", str(place / "run"), "--limit", "4", *FAST])
    assert "have changed" not in shown.err


def test_real_values_go_on_with_the_location_that_they_were_trained_with(tmp_path):
    x = np.random.default_rng(0).normal(size=(100, 2))
    np.save(tmp_path / "x.npy", x)
    options = {"settings": {"training.batch_size": 8, "network.width": 8}, "progress": False}
    first = train(tmp_path / "x.npy", tmp_path / "run", steps=2, **options)
    location = first.config.model.decoder.options["location"]
    np.save(tmp_path / "x.npy", np.concatenate([x, x[:20] + 9]))
    with pytest.raises(InputError, match=r"120 examples, then 100.*--changed-data"):
        train(tmp_path / "x.npy", tmp_path / "run", steps=4, **options)
    again = train(tmp_path / "x.npy", tmp_path / "run", steps=4, changed_data=True, **options)
    assert max(again.states()) == 4
    assert again.config.model.decoder.options["location"] == location
    assert again.config.fingerprint.examples == 120


def test_data_in_their_order_cannot_change_unnoticed(tmp_path):
    np.save(tmp_path / "x.npy", images(100))
    data = open_dataset(tmp_path / "x.npy", splits={"by": "order"})
    made = train(data, tmp_path / "run", progress=False, **SMALL)
    np.save(tmp_path / "x.npy", images(100)[:99])
    with pytest.raises(InputError, match=r"99 examples, then 100.*which are test examples"):
        evaluate(str(made.path), limit=2)


def old(path):
    """Make a run one of format 1: no fingerprint, no rule of the splits."""
    values = json.loads((path / "config.json").read_text("utf-8"))
    for name in ("format", "digest", "fingerprint"):
        del values[name]
    for name in ("splits", "group", "skip_sizes"):
        del values["data"][name]
    marks = {"format": 1, "digest": digest_of(values)}
    (path / "config.json").write_text(json.dumps({**marks, **values}), "utf-8")


def test_a_run_of_the_old_kind_keeps_its_split(place, capsys):
    old(place / "run")
    rng = np.random.default_rng(0).permutation(120)
    split = own_data(Run.open(place / "run")).splits["test"]
    np.testing.assert_array_equal(split.read()[:, 0], images(120)[rng[:12]])
    output(capsys, ["evaluate", str(place / "run"), "--limit", "3", *FAST])
    arguments = ["train", str(place / "photos"), "--run", str(place / "run"), *TRAIN, *FAST]
    output(capsys, [*arguments, "--steps", "4"])
    np.testing.assert_array_equal(
        own_data(Run.open(place / "run")).splits["test"].indices, rng[:12]
    )


def test_data_that_moved_are_named_and_found_again(place, capsys):
    path, new = str(place / "run"), place / "new place"
    (place / "photos").rename(new)
    for arguments in (["evaluate", path], ["train", "--run", path], ["score", path]):
        shown = output(capsys, [*arguments, *FAST], code=2).err
        assert "the data of this run are not there any more; give their new place" in shown
        assert shown.count("\n") == 1
    few = ["--limit", "4", "--draws", "1", *FAST]
    output(capsys, ["evaluate", path, "--data", str(new), *few])
    assert Run.open(path).config.data.source == str(new)
    output(capsys, ["evaluate", path, *few])


def test_only_the_same_data_are_a_new_place(place, capsys):
    save(place / "others", images(120, 5))
    save(place / "wide", images(180).reshape(160, 8, 9))
    path = str(place / "run")
    for name, problem in (("others", "not the same ones"), ("wide", "shape"), ("no", "no such")):
        shown = output(capsys, ["evaluate", path, "--data", str(place / name)], code=2).err
        assert problem in shown
        assert shown.count("\n") == 1
    assert Run.open(path).config.data.source == str(place / "photos")


def test_training_goes_on_with_the_data_at_another_place(place, capsys):
    (place / "photos").rename(place / "there")
    path = str(place / "run")
    more = ["--run", path, *TRAIN, "--steps", "4", *FAST]
    output(capsys, ["train", str(place / "there"), *more])
    assert Run.open(path).config.data.source == str(place / "there")
    assert max(Run.open(path).states()) == 4


def test_in_python_too(place):
    (place / "photos").rename(place / "there")
    with pytest.raises(GoneError, match=r"Run.open\(run, data=place\)"):
        evaluate(str(place / "run"), limit=2)
    found = Run.open(place / "run", data=place / "there")
    assert len(evaluate(found, limit=2, draws=1, threads=1).table["bits_per_dim"]) == 2
    assert Run.open(place / "run").config.data.source == str(place / "there")


def test_a_run_on_an_array_finds_it_in_a_file(tmp_path):
    x = images(100)
    made = train(x, tmp_path / "run", progress=False, **SMALL)
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(GoneError, match="were given in memory"):
        evaluate(str(made.path), limit=2)
    found = Run.open(made.path, data=tmp_path / "x.npy")
    one, other = (evaluate(each, limit=5, draws=1, threads=1) for each in (found, made))
    assert one.bits_per_dim == other.bits_per_dim
    train(torch.from_numpy(x), made.path, progress=False, **(SMALL | {"steps": 3}))
    with pytest.raises(InputError, match="another configuration"):
        train(images(100, 3), made.path, progress=False, **SMALL)


WITH_DATA = {
    "evaluate": ["--limit", "4", "--draws", "1"],
    "discrete": ["--estimator", "discrete", "--steps", "4", "--variance", "scalar", "--limit", "4"],
    "score": ["--limit", "9", "--draws", "1"],
    "schedule": ["--limit", "9"],
    "quality": ["--n", "40", "--steps", "2", "--features", "pixels"],
}


@pytest.mark.parametrize("name", WITH_DATA)
def test_other_data_are_measured_without_the_run_s_own(name, place, capsys, tmp_path):
    save(place / "others", images(50, 5))
    path = str(place / "run")
    shutil.rmtree(place / "photos")
    for kept in (place / "run").glob("errors-*"):
        kept.unlink()
    command = "evaluate" if name == "discrete" else name
    arguments = [command, path, str(place / "others"), *WITH_DATA[name], "--json", *FAST]
    if name == "schedule":
        arguments += ["--out", str(tmp_path / "s.png")]
    told = json.loads(output(capsys, arguments).out)
    if name == "score":
        assert told["score"] == "bits"
        assert told["smallest_p"] is None
        assert {one["p_value"] for one in told["most_anomalous"]} == {None}
    if name == "quality":
        assert set(told["distances"]) == {"samples"}
    assert not list((place / "run").glob("errors-*"))  # of other examples: nothing is kept


def test_scores_without_p_values_are_shown_and_drawn(place, capsys, tmp_path):
    save(place / "others", images(10, 5))
    shutil.rmtree(place / "photos")
    files = [str(tmp_path / name) for name in ("t.csv", "f.png", "s.png")]
    targets = ["--table", files[0], "--figure", files[1], "--sheet", files[2]]
    arguments = ["score", str(place / "run"), str(place / "others"), "--draws", "1", *targets]
    shown = output(capsys, [*arguments, *FAST])
    assert "p-values: none" in shown.out
    assert "give their new place with --data" in shown.err


def test_a_file_is_made_and_decoded_without_any_data(place, tmp_path):
    """The run keeps what its files need: neither its data nor its measured errors are asked for."""
    x = images(12, 6)[:, None]
    shutil.rmtree(place / "photos")
    opened = Run.open(place / "run")
    made = compress(opened, x, tmp_path / "x.vdmz", steps=4, threads=1)
    assert made.images == 12
    copy = tmp_path / "copy"
    shutil.copytree(place / "run", copy, ignore=shutil.ignore_patterns("errors-*", "state"))
    np.testing.assert_array_equal(decompress(copy, tmp_path / "x.vdmz", threads=1), x)


def test_what_is_measured_of_given_examples_is_measured_once(place, tmp_path, caplog):
    shutil.rmtree(place / "photos")
    with caplog.at_level("INFO", "variational_diffusion"):
        compress(Run.open(place / "run"), images(9, 6)[:, None], tmp_path / "x.vdmz", threads=1)
    told = [record for record in caplog.messages if "measured on the examples given" in record]
    assert len(told) == 1


def test_a_finished_run_says_how_to_train_it_further(place, capsys):
    path = str(place / "run")
    shown = output(capsys, ["train", str(place / "photos"), "--run", path, *TRAIN, *FAST]).err
    assert (
        f"to train it further, give a larger one, as in: vdm train --run {path} --steps 6" in shown
    )
    output(capsys, ["train", "--run", path, "--steps", "6", *FAST])
    assert max(Run.open(path).states()) == 6


def test_a_run_that_cannot_be_written_is_measured_at_the_new_place(place, monkeypatch, caplog):
    (place / "photos").rename(place / "there")

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Run, "_write_config", refuse)
    with caplog.at_level("INFO", "variational_diffusion"):
        found = Run.open(place / "run", data=place / "there")
    assert "is not kept" in caplog.text
    assert len(own_data(found).splits["test"]) > 0


def test_a_stream_is_known_by_its_beginning(tmp_path, offline):
    import datasets  # noqa: PLC0415

    (tmp_path / "p").mkdir()
    for part in range(3):
        rows = images(30, part).tolist()
        datasets.Dataset.from_dict({"x": rows}).to_parquet(str(tmp_path / "p" / f"{part}.parquet"))
    options = {"streaming": True, "levels": 256, "hold_out": 10}
    first, again = (open_dataset(tmp_path / "p", **options).fingerprint for _ in range(2))
    assert first == again
    assert first.examples is None
    (tmp_path / "p" / "0.parquet").unlink()
    assert first.change(open_dataset(tmp_path / "p", **options).fingerprint)


def test_the_configuration_of_before_is_read_and_written_as_the_new_one(made):
    config = Run.open(made / "run").config
    assert config.data.splits.by == "content"
    assert RunConfig.from_json(config.to_json()) == config
    none = config.model_copy(update={"fingerprint": None})
    assert none.change(config.fingerprint) == config.change(None) == ""
