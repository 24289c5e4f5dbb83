"""Splits by content, the keys that they are made of, and what vdm data finds."""

import io
import json
import re
import tarfile

import numpy as np
import pytest
from PIL import Image

from commands import output
from variational_diffusion.cli import run
from variational_diffusion.config import DataConfig
from variational_diffusion.data import SPLITS, open_dataset
from variational_diffusion.data.copies import exact_copies, near_copies, thumbnails
from variational_diffusion.data.examined import examined
from variational_diffusion.data.idx import open_idx_folder
from variational_diffusion.data.keys import key_of, keys_of_groups, keys_of_values
from variational_diffusion.data.originals import Originals
from variational_diffusion.data.stored import Stored
from variational_diffusion.errors import InputError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (80, 8, 8), dtype=np.uint8)


def fill(folder, images, first=0, name="{:03}.png"):
    folder.mkdir(exist_ok=True, parents=True)
    for i, image in enumerate(images, first):
        path = folder / name.format(i)
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def sides(dataset):
    """The split of every example, by its bytes."""
    return {
        row.tobytes(): name
        for name, split in dataset.splits.items()
        for row in np.ascontiguousarray(split.read())
    }


def named_sides(dataset):
    """The split of every file, by its name."""
    return {
        name: split_name
        for split_name, split in dataset.splits.items()
        for name in Originals(split).names(np.arange(len(split)))
    }


def write_tar(path, images):
    with tarfile.open(path, "w") as archive:
        for i, image in enumerate(images):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "png")
            info = tarfile.TarInfo(f"{path.stem}{i}.png")
            info.size = len(buffer.getvalue())
            archive.addfile(info, io.BytesIO(buffer.getvalue()))


def write_parquet(path, images):
    import datasets  # noqa: PLC0415

    datasets.Dataset.from_dict({"x": images.tolist()}).to_parquet(str(path))


def as_folder(path, images):
    return open_dataset(fill(path / f"f{len(images)}", images))


def as_npy(path, images):
    np.save(path / "x.npy", images)
    return open_dataset(path / "x.npy")


def as_npz(path, images):
    np.savez(path / "x.npz", images)
    return open_dataset(path / "x.npz")


def as_array(path, images):
    return open_dataset(images)


def as_tar(path, images):
    path = path / f"t{len(images)}"
    path.mkdir()
    write_tar(path / "0.tar", images[:50])
    if len(images) > 50:
        write_tar(path / "1.tar", images[50:])
    return open_dataset(path)


def as_parquet(path, images):
    path = path / f"p{len(images)}"
    path.mkdir()
    write_parquet(path / "0.parquet", images)
    return open_dataset(path, levels=256)


KINDS = [as_folder, as_npy, as_npz, as_array, as_tar, as_parquet]


@pytest.mark.parametrize("opened", KINDS)
def test_examples_that_are_added_do_not_move_the_others(opened, tmp_path, offline):
    before, after = (sides(opened(tmp_path, IMAGES[:n])) for n in (70, 80))
    assert set(before.values()) == set(SPLITS)
    assert {image: after[image] for image in before} == before
    assert len(after) == 80


@pytest.mark.parametrize("opened", KINDS[1:4])
def test_their_order_does_not_matter(opened, tmp_path):
    (tmp_path / "again").mkdir()
    assert sides(opened(tmp_path, IMAGES)) == sides(opened(tmp_path / "again", IMAGES[::-1]))


def test_renamed_and_removed_files_leave_the_others_where_they_are(tmp_path):
    folder = fill(tmp_path / "a", IMAGES)
    before = sides(open_dataset(folder))
    (folder / "003.png").rename(folder / "zz.png")
    (folder / "004.png").unlink()
    after = sides(open_dataset(folder))
    assert len(after) == 79
    assert all(before[image] == side for image, side in after.items())


@pytest.mark.parametrize("opened", KINDS)
def test_exact_copies_stand_on_one_side(opened, tmp_path, offline):
    again = np.concatenate([IMAGES[:60], IMAGES[:20], IMAGES[:20]])
    dataset = opened(tmp_path, again)
    found = {}
    for name, split in dataset.splits.items():
        for row in np.ascontiguousarray(split.read()):
            found.setdefault(row.tobytes(), set()).add(name)
    assert sum(map(len, dataset.splits.values())) == 100
    assert all(len(names) == 1 for names in found.values())


def test_a_set_of_its_own_test_examples_keeps_them():
    for name, test in (("digits", 297), ("fashion-mnist", 10_000)):
        dataset = open_dataset(name)
        assert len(dataset.splits["test"]) == test
        assert dataset.rule.by == "order"


def test_an_idx_folder_of_ones_own_keeps_its_test_set_and_splits_the_rest_by_content(tmp_path):
    def write(part, images):
        header = bytes.fromhex("00000803") + np.array(images.shape, ">i4").tobytes()
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())

    write("t10k", IMAGES[:5])
    found = []
    for n in (70, 80):
        write("train", IMAGES[5:n])
        dataset = open_idx_folder(DataConfig(source=str(tmp_path)))
        np.testing.assert_array_equal(dataset.splits["test"].read()[:, 0], IMAGES[:5])
        found.append(sides(dataset))
    assert {image: found[1][image] for image in found[0]} == found[0]


def test_shares_are_as_asked_and_seeds_differ():
    x = np.random.default_rng(1).normal(size=(20_000, 2))
    first, other = (open_dataset(x, validation=0.2, split_seed=s) for s in (0, 1))
    sizes = {name: len(split) for name, split in first.splits.items()}
    # binomial: 2,000 ± 42 and 4,000 ± 57; five of these are passed once in two million times
    assert abs(sizes["test"] - 2000) < 5 * 42.5
    assert abs(sizes["validation"] - 4000) < 5 * 56.6
    both = set(map(bytes, first.splits["test"].read())) & set(
        map(bytes, other.splits["test"].read())
    )
    assert abs(len(both) - 200) < 5 * 14
    small = open_dataset(x, validation=0.1)
    assert sides(small).keys() == sides(first).keys()
    np.testing.assert_array_equal(small.splits["test"].read(), first.splits["test"].read())


@pytest.mark.parametrize("n", [3, 4, 5, 9])
def test_few_examples_leave_no_split_empty(n):
    for seed in range(20):
        dataset = open_dataset(IMAGES[:n], split_seed=seed)
        assert all(len(split) for split in dataset.splits.values())
        again = open_dataset(IMAGES[: n + 4], split_seed=seed, splits=dataset.rule)
        assert all(sides(again)[image] == side for image, side in sides(dataset).items())


def test_draws_of_few_values_are_observations_and_not_copies():
    """Every pattern is in the training: a model is not tested on what it cannot have seen."""
    coins = np.random.default_rng(0).integers(0, 2, (1000, 3))
    dataset = open_dataset(coins)
    assert dataset.rule.by == "draws"
    assert abs(len(dataset.splits["test"]) - 100) < 50
    assert len(np.unique(dataset.splits["train"].read(), axis=0)) == 8
    same = open_dataset(np.zeros((10, 4), np.uint8))
    assert sum(map(len, same.splits.values())) == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 0.6, "test": 0.5}, r"0.6 and test = 0.5 leave none for the training"),
        ({"group": [0, 1] * 40}, r"^2 groups of group = .* give at least 3 different ones"),
        ({"group": [1, 2]}, r"group = list of shape \(2,\).*one value for each of the 80"),
        ({"group": "a*"}, r"group = str of shape \(\).*one value for each of the 80 examples"),
    ],
)
def test_splits_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        open_dataset(IMAGES, **options)


GROUPS = {
    "glob": ("*_*.png", "{}_{:03}.png"),
    "regular expression": (r"^(.*)_\d+\.png$", "{}_{:03}.png"),
    "all that is found": (r"film\d+", "x-film{}-{:03}.png"),
    "folders": ("*/*", "film{}/{:03}.png"),
}


@pytest.mark.parametrize("kind", GROUPS)
def test_groups_stay_on_one_side_and_added_frames_go_to_theirs(kind, tmp_path):
    pattern, name = GROUPS[kind]
    folder = tmp_path / "films"

    def write(frames, first):
        for film in range(12):
            images = RNG.integers(0, 256, (frames, 8, 8), dtype=np.uint8)
            fill(folder, images, first, name.replace("{}", str(film), 1))

    def films(dataset):
        found = {}
        for file, side in named_sides(dataset).items():
            film = re.search(r"film(\d+)|^(\d+)_", file)[0]
            found.setdefault(film, set()).add(side)
        return found

    write(4, 0)
    before = films(open_dataset(folder, group=pattern))
    assert len(before) == 12
    assert all(len(names) == 1 for names in before.values())
    assert set.union(*before.values()) == set(SPLITS)
    write(3, 50)
    assert films(open_dataset(folder, group=pattern)) == before


def test_groups_of_arrays_are_given_one_by_one():
    patients = np.repeat(np.arange(20), 4)
    dataset = open_dataset(IMAGES, group=patients)
    of = [set(patients[split.indices]) for split in dataset.splits.values()]
    assert sum(map(len, of)) == len(set.union(*of)) == 20


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", r"group = '\(' is no regular expression"),
        (r"^b\d", r"group = '\^b\\d' is not found in '000.png'.*'\^\[\^_\]\*'"),
        ("b*", r"group = 'b\*' is not found in '000.png'"),
    ],
)
def test_patterns_that_find_no_groups(pattern, message, tmp_path):
    with pytest.raises(InputError, match=message):
        open_dataset(fill(tmp_path / "a", IMAGES[:5]), group=pattern)


def test_groups_are_of_data_with_names(tmp_path, offline):
    write_parquet(tmp_path / "x.parquet", IMAGES[:5])
    np.save(tmp_path / "x.npy", IMAGES)
    for name in ("x.parquet", "x.npy", "digits"):
        source = name if name == "digits" else tmp_path / name
        with pytest.raises(InputError, match="group = 'a'"):
            open_dataset(source, group="a")


def test_keys_follow_from_the_content_alone(tmp_path):
    whole = RNG.bytes(200_000)
    (tmp_path / "a.png").write_bytes(whole)
    of_file = key_of(Stored("a", tmp_path / "a.png"))
    assert of_file == key_of(Stored("b", whole))  # a file and the same bytes in a table
    for changed in (b"x" + whole[1:], whole[:-1] + b"x", whole[:-1], whole + b"x"):
        assert key_of(Stored("b", changed)) != of_file
    assert len({key_of(Stored("a", whole, None, k)) for k in (None, 0, 1)}) == 3
    x = IMAGES.astype(np.float32)
    np.testing.assert_array_equal(keys_of_values(x), keys_of_values(x.copy(order="F")))
    assert len(set(keys_of_values(x).tolist())) == 80
    assert keys_of_groups(["a1", "a2", "b1"], "^[a-z]").tolist()[0] != keys_of_groups(["b"], "b")[0]


def test_copies_of_a_known_kind_are_counted():
    where = [("train", 0), ("train", 1), ("test", 0), ("test", 1), ("train", 2)]
    found = exact_copies(np.array([7, 7, 7, 9, 11], np.uint64), where)
    assert (found.examples, found.across) == (2, 1)
    assert {place[0] for place in found.first} == {"train", "test"}
    assert exact_copies(np.arange(5, dtype=np.uint64), where).examples == 0


def test_near_copies_are_brighter_smaller_or_compressed_ones_and_no_others():
    smooth = np.asarray(
        [
            np.asarray(Image.fromarray(small).resize((48, 48), Image.Resampling.BICUBIC))
            for small in RNG.integers(0, 256, (200, 6, 6), dtype=np.uint8)
        ]
    )
    buffer = io.BytesIO()
    Image.fromarray(smooth[3]).save(buffer, "jpeg", quality=80)
    like = np.asarray(Image.open(buffer))
    flat = np.full((2, 48, 48), 30, np.uint8)
    flat[1, 0, 0] = 31
    x = np.concatenate(
        [smooth, like[None], np.maximum(smooth[5:6], 1) - np.uint8(1), flat, smooth[9:10]]
    )[:, None]
    places = [("train", i) for i in range(len(x))]
    keys = keys_of_values(x)
    found = near_copies(thumbnails(x, 256), keys, places)
    assert found.examples == 2  # the exact copy is none of them, and flat images show nothing
    assert {place[1] for place in found.first} == {3, 200}
    assert thumbnails(IMAGES[:, None], 256) is None  # too small to tell


def test_the_command_says_what_is_wrong(capsys, tmp_path):
    folder = fill(tmp_path / "a", (IMAGES[:, :, :] // 128 * 100 + 20))
    for name, content in (("copy.png", (folder / "000.png").read_bytes()), ("readme.txt", b"")):
        (folder / name).write_bytes(content)
    Image.fromarray(IMAGES[1] // 128 * 100 + 20).save(folder / "other.bmp")
    whole = (folder / "009.png").read_bytes()
    (folder / "009.png").write_bytes(whole[: len(whole) // 2])
    told = json.loads(output(capsys, ["data", str(folder), "--json"]).out)
    assert (told["read"], told["damaged"], told["copies"]["examples"]) == (82, 1, 2)
    notes = "\n".join(told["notes"])
    for words in (
        "readme.txt",
        "'009.png'",
        "copies: 2 examples",
        "levels: 254 of 256 never occur",
    ):
        assert words in notes
    assert "other.bmp" in notes or "copy.png" in notes
    printed = output(capsys, ["data", str(folder)]).out
    assert all(note in printed for note in told["notes"])


def test_copies_across_splits_are_those_of_other_encodings(tmp_path):
    folder = fill(tmp_path / "a", IMAGES)
    for i, image in enumerate(IMAGES[:40]):
        Image.fromarray(image).save(folder / f"{i}.bmp")
    found = examined(open_dataset(folder))
    assert found.copies.examples == 40
    assert 0 < found.copies.across < 40
    assert any("stand in more than one split" in note for note in found.notes)


def test_many_constant_columns_are_one_line(capsys, tmp_path):
    x = np.zeros((50, 784), np.uint8)
    x[:, 5] = np.arange(50)
    for dtype in (np.uint8, np.float32):
        np.save(tmp_path / "x.npy", x.astype(dtype))
        notes = json.loads(output(capsys, ["data", str(tmp_path / "x.npy"), "--json"]).out)["notes"]
        (line,) = [note for note in notes if "constant" in note]
        assert "779 others of 784" in line or "780 others of 784" in line


def test_large_data_are_sampled_and_it_says_so(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("variational_diffusion.data.examined.MOST", 20)
    folder = fill(tmp_path / "a", [*IMAGES, IMAGES[0]])
    told = json.loads(output(capsys, ["data", str(folder), "--json"]).out)
    assert 18 <= told["read"] <= 23
    assert any("of 81 examples were read, drawn at random" in note for note in told["notes"])
    assert told["copies"]["examples"] == 1  # among all of them


def test_other_sizes_are_counted_and_left_out(capsys, tmp_path):
    folder = fill(tmp_path / "a", [*IMAGES[:30], IMAGES[30][:, :5]])
    error = output(capsys, ["data", str(folder)], code=2).err
    assert "30 of 31 have 8×8" in error
    assert "--skip-sizes" in error
    told = json.loads(output(capsys, ["data", str(folder), "--skip-sizes", "--json"]).out)
    assert sum(told["splits"].values()) == 30
    assert "1 images of another size than 8×8 left out" in told["notes"]
    assert run(["data", str(folder), "--skip-sizes", "--resize", "4"]) == 2
    assert "leave one out" in capsys.readouterr().err


OFFSET = 1.7e9 + 60 * np.random.default_rng(3).normal(size=(60, 3))


@pytest.mark.parametrize("kind", ["npy", "npz", "parquet", "tar", "array", "tensor", "loader"])
def test_no_digit_is_lost_before_standardising(kind, tmp_path, offline):
    """Every reader keeps float64 until location and scale are taken off."""
    import torch  # noqa: PLC0415

    path = tmp_path / f"x.{kind}"
    source = path
    if kind == "npy":
        np.save(path, OFFSET)
    elif kind == "npz":
        np.savez(path, OFFSET)
    elif kind == "parquet":
        write_parquet(path, OFFSET)
    elif kind == "tar":
        with tarfile.open(path, "w") as archive:
            for i, row in enumerate(OFFSET):
                buffer = io.BytesIO()
                np.save(buffer, row)
                info = tarfile.TarInfo(f"{i}.npy")
                info.size = len(buffer.getvalue())
                archive.addfile(info, io.BytesIO(buffer.getvalue()))
    else:
        source = OFFSET if kind == "array" else torch.from_numpy(OFFSET)
        if kind == "loader":
            source = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(source), 7)
    dataset = open_dataset(source)
    values = np.concatenate([split.read() for split in dataset.splits.values()])
    assert values.dtype == np.float64
    assert sorted(values[:, 0].tolist()) == sorted(OFFSET[:, 0].tolist())
