"""What `open_dataset` makes of a name or a path, and of options that do not belong to it."""

import numpy as np
import pytest

from variational_diffusion.config import DataConfig
from variational_diffusion.data import DATASETS, open_dataset
from variational_diffusion.errors import InputError


def opened(source, **options):
    return open_dataset(DataConfig(source=str(source), **options))


@pytest.mark.parametrize("source", ["cifar-10", "no/such/folder", "data.parquet", ""])
def test_an_unknown_name_lists_what_is_known(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    if not source:
        source = "x" * 5000  # no name that a file could have
    with pytest.raises(
        InputError, match=rf"^data = '{source}' is no known name, and no such file"
    ) as info:
        opened(source)
    for name in [*DATASETS, "hf:NAME", "folder of images", "IDX files", ".npy", ".npz", ".tar"]:
        assert name in str(info.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("data.xyz", "is a file of no known kind; give digits"),
        ("data", "is a file of no known kind; give digits"),
        ("data.csv", r"is not read: tables: np\.save their numbers"),
        ("scan.nii.gz", r"is not read: volumes \(NIfTI.*nibabel"),
        ("scan.DCM", r"is not read: DICOM: np\.save the pixel_array"),
        ("shard.tar.gz", "is not read: packed files: unpack them first"),
        ("image.png", "is one image; give the folder that it is in"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_the_way_out(tmp_path, name, message):
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=rf"{name}' {message}"):
        opened(tmp_path / name)


def test_a_name_goes_before_a_path_and_dot_slash_gives_the_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert len(opened("digits").splits["test"]) == 297
    with pytest.raises(InputError, match="holds no images"):
        opened("./digits")


def test_a_relative_path_is_stored_so_that_it_opens_from_anywhere(tmp_path, monkeypatch):
    np.save(tmp_path / "data.npy", np.zeros((9, 3), np.uint8))
    monkeypatch.chdir(tmp_path)
    source = opened("data.npy").source
    monkeypatch.chdir("/")
    assert opened(source).shape == (3,)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert opened("~/data.npy").source == source


@pytest.mark.parametrize(
    ("source", "option", "message"),
    [
        ("digits", {"resize": (4, 4)}, r"resize = \(4, 4\) is for a folder of images.*--resize"),
        ("digits", {"channels": "rgb"}, r"channels = 'rgb' is for a folder.*--channels"),
        ("digits", {"skip_damaged": True}, r"skip_damaged = True is for .*--skip-damaged"),
        ("digits", {"value_range": (0, 1)}, r"value_range = \(0.0, 1.0\) is for .*--range"),
        ("a.npy", {"array": "x"}, r"array = 'x' is for an .npz file, and '.*' is none.*--array"),
        ("a.npy", {"resize": (4, 4)}, r"resize = \(4, 4\) is for a folder of images"),
        (".", {"array": "x"}, r"array = 'x' is for an .npz file"),
        (".", {"value_range": (0, 1)}, r"value_range = .* is for floats in .npy"),
    ],
)
def test_options_that_a_kind_does_not_have_are_refused(
    tmp_path, monkeypatch, source, option, message
):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.zeros((9, 3)))
    with pytest.raises(InputError, match=message):
        opened(source, **option)
