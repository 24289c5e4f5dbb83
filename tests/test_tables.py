"""Every entry of the tables of data kinds and reverse variances keeps the contract of its table."""

import numpy as np
import pytest
import torch

from sharded import png, write_tar
from test_data_idx import write_folder
from variational_diffusion.config import DataConfig
from variational_diffusion.data import KINDS, at_hand, open_dataset, open_originals
from variational_diffusion.data.kinds import kind_named
from variational_diffusion.errors import InputError
from variational_diffusion.grids import VARIANCES, NoiseErrors, assumed_errors

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
OPTIONS = {
    "array": "x",
    "value_range": (0.0, 1.0),
    "column": "image",
    "resize": (8, 8),
    "channels": "grey",
    "skip_damaged": True,
    "frames": "each",
    "max_pixels": 10**9,
    "skip_sizes": True,
    "group": "(.*)_[0-9]+",
    "streaming": True,
}


def idx_folder(folder):
    write_folder(folder, IMAGES[:30, 0], IMAGES[30:, 0])
    return folder


def tar_file(folder):
    write_tar(folder / "x.tar", {f"{i:02}.png": png(x[0]) for i, x in enumerate(IMAGES)})
    return folder / "x.tar"


def image_folder(folder):
    for i, image in enumerate(IMAGES):
        (folder / f"{i:02}.png").write_bytes(png(image[0]))
    return folder


def array_file(folder):
    np.save(folder / "x.npy", IMAGES)
    return folder / "x.npy"


def arrays_file(folder):
    np.savez(folder / "x.npz", x=IMAGES)
    return folder / "x.npz"


MADE = {
    "digits": lambda folder: "digits",
    "fashion-mnist": lambda folder: "fashion-mnist",
    "hf:NAME": lambda folder: "hf:someone/something",
    "a folder of IDX files": idx_folder,
    "parquet or tar files": tar_file,
    "a folder of images": image_folder,
    ".npy": array_file,
    ".npz": arrays_file,
}


@pytest.fixture
def source(request, tmp_path):
    """What a kind is opened by; kinds that are not at hand are skipped."""
    name = request.param
    if name == "fashion-mnist" and name not in at_hand():
        pytest.skip("fashion-mnist is not at hand")
    return name, str(MADE[name](tmp_path))


def test_every_kind_of_data_is_tested():
    assert set(MADE) == set(KINDS)
    assert set(OPTIONS) >= set().union(*(kind.options for kind in KINDS.values()))


@pytest.mark.parametrize("source", KINDS, indirect=True)
def test_a_kind_is_known_by_its_source_and_refuses_options_of_others(source):
    name, given = source
    kind = KINDS[name]
    assert kind_named(given) is kind
    for option in OPTIONS.keys() - kind.options:
        with pytest.raises(InputError, match=rf"^{option} = .* is for .*; leave out --"):
            open_dataset(DataConfig(source=given, **{option: OPTIONS[option]}))


@pytest.mark.parametrize("source", [name for name in KINDS if name != "hf:NAME"], indirect=True)
def test_a_kind_opens_as_three_parts_of_all_its_examples(source, request):
    if source[0] == "parquet or tar files":
        request.getfixturevalue("offline")
    dataset = open_dataset(DataConfig(source=source[1]))
    assert list(dataset.splits) == ["train", "validation", "test"]
    assert dataset.levels in (17, 256)
    for split in dataset.splits.values():
        values = split.sample(5).read()
        assert values.shape[1:] == dataset.shape
        assert values.dtype == np.uint8
    if source[0] in ("digits", "fashion-mnist"):
        return
    read = np.concatenate([split.read() for split in dataset.splits.values()])
    assert sorted(map(bytes, read)) == sorted(map(bytes, IMAGES))


@pytest.mark.parametrize("source", [name for name in KINDS if name != "hf:NAME"], indirect=True)
def test_all_examples_of_a_kind_come_as_they_are_stored(source, request):
    if source[0] == "parquet or tar files":
        request.getfixturevalue("offline")
    levels = 17 if source[0] == "digits" else 256
    originals = open_originals(source[1], DataConfig(source="", levels=levels), (1, 8, 8))
    assert originals.levels == levels
    if source[0] in ("digits", "fashion-mnist"):
        assert len(originals) in (1797, 70_000)
        return
    read = originals.read(np.arange(len(originals)))
    np.testing.assert_array_equal(np.stack(read), IMAGES)
    names = originals.names(np.arange(2))
    assert names == (["00.png", "01.png"] if source[0] == "a folder of images" else None)


@pytest.mark.parametrize("name", VARIANCES)
def test_a_reverse_variance_assumes_errors_of_the_mean_that_was_measured(name):
    errors = NoiseErrors(torch.tensor([-1.0, 0.0, 1.0]), torch.rand(3, 2, 4) + 0.1)
    assumed = assumed_errors(name, errors)
    if VARIANCES[name].assumed is None:
        assert assumed is None
        assert assumed_errors(name, None) is None
        return
    means = [x.error.expand(3, 2, 4).flatten(1).mean(1) for x in (assumed, errors)]
    torch.testing.assert_close(*means)
    with pytest.raises(InputError, match=f"variance = '{name}' needs measured errors"):
        assumed_errors(name, None)


def test_an_unknown_reverse_variance_is_told():
    with pytest.raises(InputError, match="variance = 'wide': known are posterior, scalar"):
        assumed_errors("wide", None)
