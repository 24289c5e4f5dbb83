"""IDX files: exact contents, and every way a file can disagree with its header."""

import gzip
import struct

import numpy as np
import pytest

from variational_diffusion.config import DataConfig
from variational_diffusion.data import idx, open_dataset
from variational_diffusion.data.idx import FASHION_MNIST, is_idx_folder, read_idx
from variational_diffusion.errors import InputError


def header(*numbers):
    return struct.pack(f">{len(numbers)}I", *numbers)


def encoded(images):
    return header(0x803, *images.shape) + images.tobytes()


def random_images(n, size=(4, 5)):
    return np.random.default_rng(n).integers(0, 256, (n, *size), dtype=np.uint8)


def write_folder(folder, train, test, *, suffix=""):
    write = gzip.compress if suffix else bytes
    for part, images in (("train", train), ("t10k", test)):
        (folder / f"{part}-images-idx3-ubyte{suffix}").write_bytes(write(encoded(images)))
    return DataConfig(source=str(folder))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_folder_of_idx_files_comes_back_exactly(tmp_path, suffix):
    train, test = random_images(30), random_images(7)
    dataset = open_dataset(write_folder(tmp_path, train, test, suffix=suffix))
    assert dataset.source == str(tmp_path)
    assert dataset.shape == (1, 4, 5)
    assert dataset.levels == 256
    np.testing.assert_array_equal(dataset.splits["test"].read(), test[:, None])
    drawn = [dataset.splits[name] for name in ("train", "validation")]
    assert len(drawn[0]) > len(drawn[1]) > 0
    indices = np.concatenate([split.indices for split in drawn])
    assert sorted(indices) == list(range(30))
    contents = np.concatenate([split.read() for split in drawn])
    np.testing.assert_array_equal(contents, train[indices, None])


def test_plain_files_are_mapped_and_gzip_is_known_by_its_contents(tmp_path):
    images = random_images(3)
    (tmp_path / "plain.gz").write_bytes(encoded(images))
    (tmp_path / "packed").write_bytes(gzip.compress(encoded(images)))
    assert isinstance(read_idx(tmp_path / "plain.gz"), np.memmap)
    for name in ("plain.gz", "packed"):
        np.testing.assert_array_equal(read_idx(tmp_path / name), images)


IMAGES = random_images(3)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"begins with nothing, but .*00000803"),
        (header(0x803, 3), r"begins with 00000803, but .*00000803"),
        (header(0x801, 3, 0, 0) + b"123", r"begins with 00000801, .*not of the labels"),
        (encoded(IMAGES)[:-1], r".* 3 images of 4×5 pixels \(60 bytes\).* cut short; fetch"),
        (encoded(IMAGES) + b"1", r".* 3 images of 4×5 pixels \(60 bytes\).* after them; fetch"),
    ],
    ids=["empty", "only a header's start", "labels", "cut", "longer"],
)
def test_files_that_disagree_with_their_header_are_named(tmp_path, content, pack, message):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(pack(content))
    with pytest.raises(InputError, match=rf"train-images-idx3-ubyte':? {message}"):
        read_idx(path)


def test_a_header_that_declares_too_much_is_refused_before_anything_is_allocated(tmp_path):
    for content in (
        header(0x803, 2**32 - 1, 2**16, 2**16),
        gzip.compress(header(0x803, *[2**31] * 3)),
    ):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(InputError, match=r"header declares .*; fetch"):
            read_idx(tmp_path / "file")


def test_a_gzip_bomb_is_not_inflated(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(gzip.compress(header(0x803, 1, 2, 2) + bytes(10**8)))
    inflated = []
    read = gzip.GzipFile.read
    monkeypatch.setattr(
        gzip.GzipFile,
        "read",
        lambda self, size=-1: (inflated.append(size), read(self, size))[1],
    )
    with pytest.raises(InputError, match=r"1 images of 2×2 pixels .*goes on after them"):
        read_idx(tmp_path / "file")
    assert inflated == [16, 4, 1]


@pytest.mark.parametrize("damage", [slice(0, -20), slice(0, 12)])
def test_cut_gzip_files_are_named(tmp_path, damage):
    (tmp_path / "file").write_bytes(gzip.compress(encoded(random_images(50)))[damage])
    with pytest.raises(InputError, match=r"file' cannot be read \(.*\); fetch the file again"):
        read_idx(tmp_path / "file")


def test_gzip_with_a_wrong_checksum_is_named(tmp_path):
    content = bytearray(gzip.compress(encoded(random_images(50))))
    content[-6] ^= 1
    (tmp_path / "file").write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"cannot be read \(CRC check failed"):
        read_idx(tmp_path / "file")


def test_missing_and_mismatched_files_are_named(tmp_path):
    config = write_folder(tmp_path, random_images(9), random_images(4, (5, 5)))
    with pytest.raises(InputError, match=r"shape \(1, 4, 5\), test images \(1, 5, 5\); give a"):
        open_dataset(config)
    (tmp_path / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(InputError, match=r"has no t10k-images-idx3-ubyte or .*\.gz; add the file"):
        open_dataset(config)
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte, example \d+ .*levels = 9"):
        open_dataset(config.model_copy(update={"levels": 9}))


def test_fashion_mnist_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "FASHION_MNIST", tmp_path)
    with pytest.raises(
        InputError, match=r"apt-get install dataset-fashion-mnist, or give a folder"
    ):
        open_dataset(DataConfig(source="fashion-mnist"))


def test_fashion_mnist_as_debian_packs_it():
    if not is_idx_folder(FASHION_MNIST):
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    dataset = open_dataset(DataConfig(source="fashion-mnist"))
    counts = {name: len(split) for name, split in dataset.splits.items()}
    assert counts == {"train": 54_000, "validation": 6_000, "test": 10_000}
    assert dataset.shape == (1, 28, 28)
    assert dataset.levels == 256
    test = dataset.splits["test"].read()
    assert test.mean() == pytest.approx(73.1466, abs=1e-3)  # of the published test images, 0.2868
    direct = gzip.decompress((FASHION_MNIST / "t10k-images-idx3-ubyte.gz").read_bytes())
    assert test.tobytes() == direct[16:]
