"""Parquet files, tar files and hf: in map style: every kind, and what is wrong with a file."""

import io
import itertools
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from sharded import image, npy, png, write_parquet, write_shards, write_tar
from variational_diffusion.config import DataConfig
from variational_diffusion.data import Split, open_dataset
from variational_diffusion.data.loader import training_batches
from variational_diffusion.errors import InputError

pytestmark = pytest.mark.usefixtures("offline")

RNG = np.random.default_rng(0)


def opened(source, **options):
    return open_dataset(DataConfig(source=str(source), **options))


def everything(split):
    """All examples of a split's source, in their order."""
    return Split(split.source, np.arange(len(split.source))).read()


@pytest.mark.parametrize("kind", ["parquet", "tar", "hf", "parquet file", "tar file"])
def test_every_kind_gives_every_example_once(tmp_path, kind):
    name, _, alone = kind.partition(" ")
    counts = [24] if alone else [7, 9, 8]
    folder = write_shards(tmp_path, "tar" if name == "tar" else "parquet", counts)
    source = f"hf:{folder}" if kind == "hf" else folder / f"0.{name}" if alone else folder
    dataset = opened(source)
    assert dataset.shape == (3, 4, 6)
    assert dataset.levels == 256
    found = [split.read()[:, 0, 0, 0].tolist() for split in dataset.splits.values()]
    assert all(found)
    assert sorted(itertools.chain(*found)) == list(range(24))
    assert dataset.stream is None
    assert opened(dataset.source).source == dataset.source


@pytest.mark.parametrize("kind", ["parquet", "tar"])
@pytest.mark.parametrize(
    ("pixels", "levels", "shape"),
    [
        (RNG.integers(0, 65_536, (5, 7), dtype=np.uint16), 65_536, (1, 5, 7)),
        (RNG.integers(0, 256, (5, 7), dtype=np.uint8), 256, (1, 5, 7)),
        (RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8), 256, (3, 5, 7)),
        (RNG.integers(0, 2, (5, 7)) > 0, 2, (1, 5, 7)),
    ],
)
def test_images_come_back_exactly(tmp_path, kind, pixels, levels, shape):
    dataset = opened(write_shards(tmp_path, kind, [4], lambda i: png(pixels)))
    assert (dataset.levels, dataset.shape) == (levels, shape)
    values = everything(dataset.splits["train"])
    assert values.dtype == (np.uint16 if levels > 256 else np.uint8)
    expected = pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None]
    np.testing.assert_array_equal(values, np.stack([expected] * 4))


@pytest.mark.parametrize(
    ("array", "levels", "expected"),
    [
        (RNG.integers(0, 300, (5, 7, 3)), 300, lambda a: a.transpose(2, 0, 1)),
        (RNG.integers(0, 300, (2, 5, 7), dtype=np.uint16), 65_536, lambda a: a),
        (RNG.standard_normal((5, 7)).astype(np.float32), None, lambda a: a[None]),
        (1e6 + RNG.standard_normal(9), None, lambda a: a),
        (RNG.integers(0, 256, (6, 5), dtype=np.uint8), 256, lambda a: a[None]),
    ],
)
def test_arrays_come_back_exactly(tmp_path, array, levels, expected):
    if levels == 300:
        array.flat[0] = 299
    for name in "parquet", "tar":
        (tmp_path / name).mkdir()
    write_parquet(tmp_path / "parquet" / "a.parquet", [array.tolist()] * 4, text=["no"] * 4)
    write_tar(tmp_path / "tar" / "a.tar", {f"{i}.npy": npy(array) for i in range(4)})
    for name in "parquet", "tar":
        asked = {}
        if name == "parquet" and levels in (256, 65_536):  # lists of Python hold 64 bits
            asked["levels"] = levels
        dataset = opened(tmp_path / name, **asked)
        assert dataset.levels == levels
        values = everything(dataset.splits["train"])
        real = np.float64 if name == "parquet" else array.dtype  # floats of Python have 64 bits
        assert values.dtype == {None: real, 256: np.uint8}.get(levels, np.uint16)
        np.testing.assert_array_equal(values, np.stack([expected(array)] * 4))


def test_own_splits_are_kept(tmp_path):
    for i, name in enumerate(["train", "validation", "test"]):
        write_parquet(tmp_path / f"{name}-0.parquet", [png(image(10 * i + j)) for j in range(5)])
    splits = opened(tmp_path).splits
    assert [sorted(split.read()[:, 0, 0, 0]) for split in splits.values()] == [
        list(range(10 * i, 10 * i + 5)) for i in range(3)
    ]
    (tmp_path / "validation-0.parquet").unlink()
    splits = opened(tmp_path, validation=0.4).splits
    assert [len(split) for split in splits.values()] == [3, 2, 5]
    assert sorted(splits["test"].read()[:, 0, 0, 0]) == list(range(20, 25))


def test_the_column_is_named_where_several_could_be_meant(tmp_path):
    write_parquet(
        tmp_path / "a.parquet", [png(image(i)) for i in range(4)], mask=[[[1, 2], [3, 4]]] * 4
    )
    with pytest.raises(InputError, match=r"has image, mask; choose with --column NAME$"):
        opened(tmp_path)
    with pytest.raises(InputError, match=r"has no column 'label' of examples; it has image, mask;"):
        opened(tmp_path, column="label")
    assert opened(tmp_path, column="mask").shape == (1, 2, 2)
    assert opened(tmp_path, column="image").shape == (3, 4, 6)
    (tmp_path / "a.parquet").unlink()
    members = {}
    for i in range(4):
        members |= {f"x/{i}.jpg": png(image(i)), f"x/{i}.seg.png": png(image(i, channels=1))}
    write_tar(tmp_path / "a.tar", members)
    message = r"a\.tar': 'x/0' is an example both as \.jpg and as \.seg\.png; choose with --column"
    with pytest.raises(InputError, match=message):
        opened(tmp_path)
    assert opened(tmp_path, column="seg.png").shape == (1, 4, 6)


def test_a_folder_with_images_is_one_of_images(tmp_path):
    write_parquet(tmp_path / "metadata.parquet", [png(image(0))])
    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.fromarray(image(i)).save(tmp_path / "images" / f"{i}.png")
    assert opened(tmp_path).notes == ("1 files that are no images ignored: metadata.parquet",)
    hub = opened(f"hf:{tmp_path / 'images'}")
    assert sorted(everything(hub.splits["train"])[:, 0, 0, 0]) == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_damaged_images_stop_or_are_left_out(tmp_path, kind):
    whole = png(RNG.integers(0, 256, (50, 50), dtype=np.uint8))
    contents = [whole, whole[: len(whole) // 2], b"no image", whole, whole]
    write_shards(tmp_path, kind, [5], lambda i: contents[i])
    with pytest.raises(InputError, match=r"2(\.png)?' is no image or is damaged .*--skip-damaged$"):
        opened(tmp_path)
    dataset = opened(tmp_path, skip_damaged=True)
    assert dataset.notes == ("2 damaged examples skipped",)
    assert len(everything(dataset.splits["train"])) == 3


def test_a_file_that_disappears_is_named(tmp_path):
    dataset = opened(write_shards(tmp_path, "tar", [6]))
    (tmp_path / "0.tar").unlink()
    with pytest.raises(InputError, match=r"0\.tar' cannot be read as a tar file: no such file"):
        dataset.splits["train"].read()


def test_a_file_that_is_cut_is_named(tmp_path):
    dataset = opened(write_shards(tmp_path, "tar", [6]))
    os.truncate(tmp_path / "0.tar", 1000)
    with pytest.raises(InputError, match=r"0\.tar' ends within '\d+\.png'; copy the file again"):
        dataset.splits["train"].read()


@pytest.mark.parametrize("name", ["a.parquet", "a.tar"])
def test_what_is_no_such_file_is_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(b"nonsense " * 200)
    for source in tmp_path, tmp_path / name:
        for streaming in False, True:
            with pytest.raises(InputError, match=r"cannot be read") as info:
                opened(source, streaming=streaming)
            assert "\n" not in str(info.value)
            assert str(tmp_path) in str(info.value)


def test_one_array_alone_is_too_few(tmp_path):
    write_parquet(tmp_path / "a.parquet", [[0, 7, 3]])
    with pytest.raises(InputError, match=r"1 examples, .* give at least 3 different ones"):
        open_dataset(DataConfig(source=str(tmp_path / "a.parquet")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(np.array([object()])), r"0\.npy' .*holds Python objects, which are never loaded"),
        (npy(np.zeros((4, 4)))[:-8], r"0\.npy' is damaged .*its header claims shape \(4, 4\)"),
        (npy(np.zeros((4, 4)))[:20], r"0\.npy' is damaged"),
        (npy(np.zeros(3, np.complex64)), r"0\.npy' holds complex64: bool, integers or floats"),
        (npy(np.full((4, 4), np.nan)), r"3\.npy' has the value nan, but values must be finite"),
    ],
)
def test_bad_arrays_are_named(tmp_path, content, message):
    good = {f"{i}.npy": npy(np.zeros((4, 4))) for i in range(1, 4)}
    last = {"3.npy": content} if b"<f8" in content and len(content) == 256 else {"0.npy": content}
    write_tar(tmp_path / "a.tar", dict(sorted((good | last).items())))
    with pytest.raises(InputError, match=message):
        everything(opened(tmp_path).splits["train"])


def test_a_header_that_claims_much_takes_no_memory(tmp_path):
    header = io.BytesIO()
    claim = {"descr": "<f8", "fortran_order": False, "shape": (10**7, 10**7)}
    np.lib.format.write_array_header_1_0(header, claim)
    write_tar(tmp_path / "a.tar", {"0.npy": header.getvalue() + b"\0" * 64})
    with pytest.raises(InputError, match="its header claims shape"):
        opened(tmp_path)
    info = tarfile.TarInfo("0.png")
    info.size = 2**31
    (tmp_path / "a.tar").write_bytes(info.tobuf() + b"\0" * 10240)
    with pytest.raises(InputError, match=r"cannot be read as a tar file|2,147,483,648 bytes"):
        opened(tmp_path)


def test_rows_of_other_shapes_or_without_values_are_named(tmp_path):
    def refused(contents, message, **options):
        write_parquet(tmp_path / "a.parquet", contents)
        with pytest.raises(InputError, match=message):
            everything(opened(tmp_path, **options).splits["train"])

    a, b = [[1, 2], [3, 4]], [[1, 2, 3], [4, 5, 6]]
    refused([a, a, b, a], r"image 2' has shape \(1, 2, 3\), and the others have \(1, 2, 2\)")
    refused([a, [[1], [2, 3]], a, a], r"image 1' holds lists of several lengths")
    refused([a, None, a, a], r"image 1' is empty")
    refused([a, [[1, None], [2, 3]], a, a], r"'train image 1' is empty")
    refused([a, a, [[-1, 2], [3, 4]], a], r"image 2' has the value -1, but 0 to 4 is allowed")
    refused([a] * 4, r"levels = 4 allows 0 to 3; give --levels 5 or more", levels=4)
    refused([a] * 4, r"resize = \(4, 4\) is for images, and these are arrays", resize=(4, 4))
    pixels = png(image(1))
    only_path = [{"bytes": pixels, "path": "x"}, {"bytes": None, "path": "/etc/hostname"}] * 2
    refused(only_path, r"image 1' has no bytes, only the path '/etc/hostname'")
    refused([pixels] * 4, r"value_range = .* is for floats", value_range=(0, 1))
    mixed = [pixels, pixels, png(image(1, (5, 5))), pixels]
    refused(mixed, r"images differ in size: .*image 0' has 4×6 .*image 2' has 5×5.*--resize")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf:", "give hf:NAME or hf:NAME:CONFIG"),
        ("hf:a/b/c", "give hf:NAME or hf:NAME:CONFIG"),
        ("hf:ylecun/mnist", r"data = 'hf:ylecun/mnist' cannot be read \(.*\); check the name"),
        ("hf:ylecun/mnist:x", "data = 'hf:ylecun/mnist:x' cannot be read"),
    ],
)
def test_hub_names_that_do_not_open(source, message):
    with pytest.raises(InputError, match=message) as info:
        opened(source)
    assert "\n" not in str(info.value)


def test_only_formats_of_data_are_read_from_the_hub(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"is of the kind 'csv.*': parquet, arrow, imagefolder"):
        opened(f"hf:{tmp_path}")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["tar", "images"])
def test_hub_folders_of_tar_and_of_image_files(tmp_path, kind, streaming):
    options = {"streaming": True, "hold_out": 2} if streaming else {}
    for name in "train", "test":
        (tmp_path / name).mkdir()
        for i in range(8):
            if kind == "images":
                Image.fromarray(image(i)).save(tmp_path / name / f"{i}.png")
            elif i == 0:
                write_shards(tmp_path / name, "tar", [8])
    dataset = opened(f"hf:{tmp_path}", **options)
    assert dataset.shape == (3, 4, 6)
    values = [split.read()[:, 0, 0, 0].tolist() for split in dataset.splits.values()]
    if streaming:
        batches = training_batches(dataset, 6, seed=0)
        epochs = [sorted(next(batches)[:, 0, 0, 0].tolist() + values[1]) for _ in range(2)]
        assert epochs == [list(range(8))] * 2
        assert set(values[2]) < set(range(8))
    else:
        assert sorted(values[0] + values[1]) == sorted(values[2]) == list(range(8))


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_no_damage_makes_a_traceback(tmp_path, kind):
    write_shards(tmp_path, kind, [6], lambda i: npy(np.full((2, 3), i, np.uint8)))
    path = tmp_path / f"0.{kind}"
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    messages = []
    for _ in range(12):
        damaged = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for position in rng.integers(0, len(damaged), 4):
            damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        for options in {}, {"streaming": True, "hold_out": 1, "skip_damaged": True}:
            try:
                dataset = opened(tmp_path, **options)
                everything(dataset.splits["train"])
                next(training_batches(dataset, 2, seed=0))
            except InputError as error:
                messages.append(str(error))
    assert len(messages) > 5
    assert not any("\n" in message for message in messages)
