"""Conditions beside the examples: every kind of source, in every kind of batch, and what is wrong.

In most of these data, the pixels of an example say what its condition has to be.
"""

import struct

import datasets
import numpy as np
import pytest
import torch

from sharded import image, png, write_tar
from variational_diffusion.config import DataConfig
from variational_diffusion.data import open_dataset
from variational_diffusion.data.beside import DEGRADATIONS, names_of
from variational_diffusion.data.loader import ordered_batches, training_batches
from variational_diffusion.errors import InputError

pytestmark = pytest.mark.usefixtures("offline")

CLASSES = ("zebra", "ant", "cat")  # example i is of class i % 3
COUNT = 30


def opened(source, condition="label", **options):
    return open_dataset(DataConfig(source=str(source), condition=condition, **options))


def pixels():
    """Image i has the value i everywhere."""
    return np.broadcast_to(np.arange(COUNT, dtype=np.uint8)[:, None, None], (COUNT, 4, 6))


def expected_names(x):
    return [CLASSES[int(value) % 3] for value in x.reshape(len(x), -1)[:, 0]]


def write_parquet(folder, column, names=None):
    """Images and a column of labels; with names, its numbers count in them."""
    feature = datasets.ClassLabel(names=list(names)) if names else datasets.Value("string")
    features = {"image": datasets.Image(), column: feature}
    of_rows = [CLASSES[i % 3] for i in range(COUNT)]
    labels = [list(names).index(name) for name in of_rows] if names else of_rows
    images = [{"bytes": png(image(i)), "path": None} for i in range(COUNT)]
    table = datasets.Dataset.from_dict(
        {"image": images, column: labels}, features=datasets.Features(features)
    )
    folder.mkdir()
    table.to_parquet(str(folder / "0.parquet"))
    return folder


def write_folder(folder):
    for i in range(COUNT):
        path = folder / CLASSES[i % 3] / "deeper" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image(i)))
    return folder


def write_members(folder):
    members = {}
    for i in range(COUNT):
        label = {f"{i:02}.cls": CLASSES[i % 3].encode()}
        picture = {f"{i:02}.png": png(image(i))}
        members |= picture | label if i % 2 else label | picture  # whichever comes first
    folder.mkdir()
    write_tar(folder / "a.tar", members)
    return folder


def write_npz(folder):
    folder.mkdir()
    labels = np.array([CLASSES[i % 3] for i in range(COUNT)])
    np.savez(folder / "a.npz", x=pixels(), label=labels)
    return folder / "a.npz"


def write_idx(folder):
    folder.mkdir()
    for part, rows in (("train", slice(None, 24)), ("t10k", slice(24, None))):
        x = pixels()[rows]
        labels = (np.arange(COUNT)[rows] % 3).astype(np.uint8)
        header = struct.pack(">IIII", 0x803, *x.shape)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + x.tobytes())
        header = struct.pack(">II", 0x801, len(x))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return folder


SOURCES = {
    "folder": write_folder,
    "tar": write_members,
    "npz": write_npz,
    "parquet of text": lambda folder: write_parquet(folder, "kind"),
    "parquet of numbers": lambda folder: write_parquet(folder, "kind", ("cat", "zebra", "ant")),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_keeps_labels_beside_their_examples(tmp_path, name):
    condition = "label:kind" if name == "parquet of text" else "label"
    dataset = opened(SOURCES[name](tmp_path / "data"), condition)
    assert dataset.labels == ("ant", "cat", "zebra")  # however the data number them
    total = 0
    for split in dataset.splits.values():
        for x, label in ordered_batches(split, 7):
            assert [dataset.labels[k] for k in label] == expected_names(x)
            total += len(x)
    assert total == COUNT
    for part in ((0, 1), (0, 2), (1, 2)):
        batches = training_batches(dataset, 8, seed=1, part=part)
        for x, label in (next(batches) for _ in range(5)):
            assert [dataset.labels[k] for k in label] == expected_names(x)


def test_labels_of_idx_files_and_of_digits(tmp_path):
    dataset = opened(write_idx(tmp_path / "data"))
    assert dataset.labels == ("0", "1", "2")
    for split in dataset.splits.values():
        x, label = split.batch(range(len(split)))
        assert torch.equal(label, x[:, 0, 0, 0].long() % 3)
    digits = opened("digits")
    assert digits.labels == tuple("0123456789")
    x, label = digits.splits["train"].batch(range(500))
    zeros, ones = (x[label == k].float().mean(0)[0] for k in (0, 1))
    assert ones[3:5, 3:5].mean() > 10 > 3 * zeros[3:5, 3:5].mean()  # a nought is hollow


def test_a_stream_carries_labels_and_degradations(tmp_path):
    folder = write_parquet(tmp_path / "data", "kind", ("cat", "zebra", "ant"))
    options = {"streaming": True, "hold_out": 4, "shuffle_buffer": 8}
    dataset = opened(folder, **options)
    assert dataset.labels == ("ant", "cat", "zebra")
    batches = training_batches(dataset, 6, seed=0)
    for x, label in (next(batches) for _ in range(6)):
        assert [dataset.labels[k] for k in label] == expected_names(x)
    x, label = dataset.splits["test"].batch(range(4))
    assert [dataset.labels[k] for k in label] == expected_names(x)
    x, coarse = next(training_batches(opened(folder, "coarse-2", **options), 6, seed=0))
    assert torch.equal(coarse, x.float())  # of one colour each


def test_whole_numbers_are_in_the_order_of_their_size():
    assert names_of([10, 9, 2, "cat", "Ant"]) == ("2", "9", "10", "Ant", "cat")


def test_classes_are_renumbered_by_their_names(tmp_path):
    dataset = opened(write_npz(tmp_path / "data"))
    others = dataset.labelled(["zebra", "dog", "cat", "ant"])
    x, label = others.splits["train"].batch(range(9))
    names = ["zebra", "dog", "cat", "ant"]
    assert [names[k] for k in label] == expected_names(x)
    with pytest.raises(InputError, match=r"label = 'zebra': known are ant, cat"):
        dataset.labelled(["ant", "cat"])


def test_vectors_and_images_of_an_npz_file(tmp_path):
    x = pixels()
    numbers = np.arange(COUNT)
    arrays = {"x": x, "v": numbers * 1.5, "m": np.stack([numbers, -numbers], 1), "i": x + 100}
    np.savez(tmp_path / "a.npz", **arrays, wrong=x[:, :2])
    for condition, make in {
        "vector:v": lambda k: 1.5 * k[:, None],
        "vector:m": lambda k: torch.stack([k, -k], 1),
        "image:i": lambda k: (k + 100)[:, None, None, None].expand(-1, 1, 4, 6),
    }.items():
        dataset = opened(tmp_path / "a.npz", condition, array="x")
        x, values = next(ordered_batches(dataset.splits["train"], 20))
        assert torch.equal(values.float(), make(x[:, 0, 0, 0].float()))
    with pytest.raises(InputError, match="have the height and width of the examples"):
        opened(tmp_path / "a.npz", "image:wrong", array="x")
    with pytest.raises(InputError, match=r"a\.npz has no array 'nothing'"):
        opened(tmp_path / "a.npz", "vector:nothing", array="x")
    with pytest.raises(InputError, match="not flipped or cropped with the examples"):
        opened(tmp_path / "a.npz", "image:i", array="x", flip="horizontal")
    with pytest.raises(InputError, match="labels are whole numbers or text"):
        opened(tmp_path / "a.npz", "label:m", array="x")


def test_vectors_of_a_parquet_column(tmp_path):
    images = [{"bytes": png(image(i)), "path": None} for i in range(COUNT)]
    features = {"image": datasets.Image(), "v": datasets.List(datasets.Value("float32"))}
    rows = {"image": images, "v": [[i, -i] for i in range(COUNT)]}
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    table.to_parquet(str(tmp_path / "0.parquet"))
    for streaming in (False, True):
        options = {"streaming": True, "hold_out": 4} if streaming else {}
        x, values = next(training_batches(opened(tmp_path, "vector:v", **options), 6, seed=0))
        k = x[:, 0, 0, 0].float()
        assert torch.equal(values, torch.stack([k, -k], 1))


def test_degradations_do_what_they_are_called():
    x = torch.arange(2 * 3 * 5 * 6).reshape(2, 3, 5, 6)
    assert torch.equal(DEGRADATIONS["grey"](x)[:, 0], x.float().mean(1))
    coarse = DEGRADATIONS["coarse-2"](x)
    assert coarse.shape == x.shape
    assert torch.equal(
        coarse[:, :, :2, :2],
        x[:, :, :2, :2].float().mean((2, 3), True).expand_as(coarse[:, :, :2, :2]),
    )
    assert torch.equal(coarse[:, :, 4, 4], x[:, :, 4, 4:6].float().mean(2))  # a row is cut off
    for name, rows, columns in (
        ("hidden-right", slice(None), slice(3, None)),
        ("hidden-bottom", slice(2, None), slice(None)),
        ("hidden-centre", slice(1, 4), slice(2, 4)),
    ):
        found = DEGRADATIONS[name](x)
        mask = torch.zeros(5, 6)
        mask[rows, columns] = 1
        assert torch.equal(found[:, 3], mask.expand(2, -1, -1))
        assert torch.equal(found[:, :3], x * (1 - mask))


def test_an_image_always_has_the_same_rectangle_hidden():
    x = torch.randint(1, 17, (60, 1, 16, 12), generator=torch.Generator().manual_seed(0))
    found = DEGRADATIONS["hidden-anywhere"](x)
    image, mask = found[:, :1], found[:, 1:]
    assert torch.equal(image, x * (1 - mask))
    rows, columns = mask.amax(3)[:, 0], mask.amax(2)[:, 0]
    assert torch.equal(mask[:, 0], rows[:, :, None] * columns[:, None, :])  # a rectangle
    for sides, size in ((rows, 16), (columns, 12)):
        assert (sides.diff(dim=1).abs().sum(1) <= 2).all()  # in one piece
        assert sides.sum(1).min() >= round(0.25 * size) - 1
        assert sides.sum(1).max() <= round(0.75 * size) + 1
        assert sides.amax(0).min() == 1  # every place is hidden in some image
    assert len(mask.flatten(1).unique(dim=0)) > 50
    turned = torch.arange(59, -1, -1)
    assert torch.equal(DEGRADATIONS["hidden-anywhere"](x[turned].to(torch.uint8)), found[turned])


def test_a_degradation_is_made_of_what_was_cropped_and_flipped():
    dataset = opened("digits", "hidden-right", flip="horizontal", crop=(6, 6))
    batches = training_batches(dataset, 16, seed=0)
    x, condition = next(batches)
    assert condition.shape == (16, 2, 6, 6)
    assert torch.equal(condition[:, :1, :, :3], x[..., :3].float())


@pytest.mark.parametrize(
    ("source", "condition", "message"),
    [
        ("digits", "colour", "give label, label:NAME, vector:NAME or image:NAME .* hidden-bottom"),
        ("digits", "vector:v", "'digits' has no vectors; known for it are label, grey, coarse-2"),
        ("npy", "label", r"a\.npy' has no labels; known for it are grey"),
        ("flat", "label", r"'1\.png' lies in no subfolder"),
        ("vectors", "grey", "is for images of shape"),
        ("tar", "label", r"'1\.png' of .* has no \.cls beside it"),
        ("parquet", "label", r"has image_id for it; choose with --condition label:NAME"),
        ("stream", "label:image_id", "is not known before all of a stream has been read"),
        ("idx", "label", r"has no train-labels-idx1-ubyte or .*\.gz; add the file"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, source, condition, message):
    options = {}
    if source == "npy":
        np.save(tmp_path / "a.npy", pixels())
    elif source == "vectors":
        np.save(tmp_path / "a.npy", np.eye(9))
    elif source == "flat":
        for i in range(3):
            (tmp_path / f"{i}.png").write_bytes(png(image(i)))
        (tmp_path / "0.png").rename(tmp_path / "1.png")
    elif source == "tar":
        members = {
            "0.png": png(image(0)),
            "0.cls": b"a",
            "1.png": png(image(1)),
            "2.png": png(image(2)),
        }
        write_tar(tmp_path / "a.tar", members)
    elif source in ("parquet", "stream"):
        rows = {"image": [{"bytes": png(pixels()[i]), "path": None} for i in range(9)]}
        features = datasets.Features(
            {"image": datasets.Image(), "image_id": datasets.Value("int64")}
        )
        table = datasets.Dataset.from_dict(rows | {"image_id": list(range(9))}, features=features)
        table.to_parquet(str(tmp_path / "0.parquet"))
        options = {"streaming": True, "hold_out": 2} if source == "stream" else {}
    elif source == "idx":
        write_idx(tmp_path / "data")
        (tmp_path / "data" / "train-labels-idx1-ubyte").unlink()
        tmp_path = tmp_path / "data"
    where = {"npy": tmp_path / "a.npy", "vectors": tmp_path / "a.npy", "digits": "digits"}
    with pytest.raises(InputError, match=message):
        opened(where.get(source, tmp_path), condition, **options)
