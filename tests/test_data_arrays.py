"""Arrays: their axes, their levels, what is refused, and that memory maps stay maps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from variational_diffusion.config import DataConfig
from variational_diffusion.data import arrays, open_dataset
from variational_diffusion.data.arrays import ArraySource
from variational_diffusion.data.source import channels_first
from variational_diffusion.errors import InputError


def opened(path, **options):
    return open_dataset(DataConfig(source=str(path), **options))


def saved(tmp_path, array, name="data.npy"):
    np.save(tmp_path / name, array)
    return tmp_path / name


@given(st.data(), st.integers(1, 4), st.integers(5, 9), st.integers(5, 9))
def test_channels_come_first_wherever_they_were(data, c, h, w):
    images = data.draw(hnp.arrays(np.uint8, (3, c, h, w)))
    np.testing.assert_array_equal(channels_first(images, "a"), images)
    np.testing.assert_array_equal(channels_first(np.moveaxis(images, 1, 3), "a"), images)
    np.testing.assert_array_equal(channels_first(images[:, 0], "a"), images[:, :1])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 7), (7,)),
        ((5, 28, 28), (1, 28, 28)),
        ((5, 3, 2), (1, 3, 2)),
        ((5, 16, 16, 16), (16, 16, 16)),
        ((5, 2, 3, 4, 5), (2, 3, 4, 5)),
    ],
)
def test_shapes_of_examples(shape, expected):
    assert ArraySource(np.zeros(shape, np.uint8), "a").shape == expected


@pytest.mark.parametrize("shape", [(5, 3, 8, 3), (5, 1, 8, 4)])
def test_channels_on_both_sides_are_refused(shape):
    with pytest.raises(InputError, match=r"a has shape .*axis 1 or axis 3; save grey"):
        channels_first(np.zeros(shape), "a")


@pytest.mark.parametrize("shape", [(), (5,), (0, 3), (5, 0, 3)])
def test_arrays_without_examples_or_values_are_refused(shape):
    with pytest.raises(InputError, match=r"a has shape .*; save it as \(n, d\)"):
        ArraySource(np.zeros(shape, np.uint8), "a")


@pytest.mark.parametrize(
    ("array", "levels"),
    [
        (np.zeros((2, 2), bool), 2),
        (np.zeros((2, 2), np.uint8), 256),
        (np.zeros((2, 2), np.uint16), 65_536),
        (np.zeros((2, 2), ">u2"), 65_536),
        (np.array([[0, 16]], np.int64), 17),
        (np.array([[0, 16]], np.uint32), 17),
        (np.zeros((2, 2), np.int8), 2),
        (np.array([[65_535]], np.int32), 65_536),
        (np.zeros((2, 2), np.float16), None),
    ],
)
def test_levels_follow_from_the_type_or_the_largest_value(array, levels):
    assert ArraySource(array, "a").levels == levels
    if levels is not None:
        assert ArraySource(array, "a", levels=65_536).levels == 65_536


def test_the_whole_array_is_scanned_in_pieces(monkeypatch):
    monkeypatch.setattr(arrays, "_CHUNK", 64)
    values = np.zeros((1000, 3), np.int64)
    values[777, 2] = 40
    assert ArraySource(values, "a").levels == 41
    with pytest.raises(InputError, match=r"^a, example 777 has the value 40, .*--levels 41"):
        ArraySource(values, "a", levels=40)
    values[500, 1] = -1
    with pytest.raises(InputError, match=r"^a, example 500 has the value -1, .*subtract"):
        ArraySource(values, "a")
    values[500, 1] = 70_000
    with pytest.raises(InputError, match=r"^a, example 500 has the value 70000, but 0 to 65535"):
        ArraySource(values, "a")
    real = np.zeros((1000, 3))
    real[999, 0] = np.nan
    with pytest.raises(InputError, match=r"^a, example 999 has the value nan, .*finite"):
        ArraySource(real, "a")
    real[:700, 1] = np.inf
    with pytest.raises(InputError, match=r"^a, example 0 has the value inf, [^\n]*701 of 3000"):
        ArraySource(real, "a")
    real[:700, 1] = 0.0
    real[999, 0] = 1e39  # infinite in float32
    assert ArraySource(real, "a").read(np.array([999]))[0, 0] == 1e39
    real[999, 0] = 2.0
    with pytest.raises(InputError, match=r"^a, example 999 has the value 2.0, but 0.0 to 1.0"):
        ArraySource(real, "a", value_range=(0.0, 1.0))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("low", "high"), [(0, 255), (0, 1), (-1, 1), (-1000, 1000)])
def test_floats_that_are_levels_become_integers(dtype, low, high):
    k = np.random.default_rng(0).integers(0, 256, (20, 3, 6, 6))
    values = (low + k / 255 * (high - low)).astype(dtype)
    value_range = None if high == 255 else (float(low), float(high))
    source = ArraySource(values, "a", levels=256, value_range=value_range)
    assert source.levels == 256
    read = source.read(np.arange(20))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, k)


def test_a_value_that_changed_after_opening_is_found_when_read():
    values = np.zeros((5, 2), np.int64)
    source = ArraySource(values, "a", levels=17)
    values[3] = 300
    with pytest.raises(InputError, match=r"^a, example 3 has the value 300"):
        source.read(np.array([0, 3]))


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (np.zeros((5, 2), complex), {}, r"a holds complex128: bool, integers or floats .*astype"),
        (np.full((5, 2), "x"), {}, r"a holds <U1: bool, integers or floats"),
        (
            np.full((5, 2), 0.3),
            {"levels": 4, "value_range": (0.0, 1.0)},
            r"a, example 0 has the value 0.3, which is none of 4 levels from 0 to 1; .*--range LOW",
        ),
        (np.full((5, 2), 4.0), {"levels": 4}, r"the value 4.0, .* none of 4 levels from 0 to 3;"),
        (
            np.zeros((5, 2), int),
            {"value_range": (0.0, 1.0)},
            r"a holds int64: value_range = .* for floats; leave out --range",
        ),
        (
            np.zeros((5, 2)),
            {"value_range": (1.0, 0.0)},
            r"value_range = \(1.0, 0.0\): the lower end comes first; give --range LOW HIGH",
        ),
    ],
)
def test_types_and_options_that_do_not_fit_are_refused(array, options, message):
    with pytest.raises(InputError, match=message):
        ArraySource(array, "a", **options)


def test_npy_files_are_mapped_and_come_back_exactly(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (50, 6, 7, 3), dtype=np.uint8)
    path = saved(tmp_path, images)
    dataset = opened(path)
    assert dataset.source == str(path)
    assert dataset.shape == (3, 6, 7)
    for split in dataset.splits.values():
        assert isinstance(split.source._examples, np.memmap)
        np.testing.assert_array_equal(split.read(), images[split.indices].transpose(0, 3, 1, 2))
    train = dataset.splits["train"]
    assert type(train.read()) is np.ndarray
    assert train.read().flags.c_contiguous


def test_a_fortran_ordered_array_keeps_its_examples(tmp_path):
    values = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    train = opened(saved(tmp_path, np.asfortranarray(values))).splits["train"]
    np.testing.assert_array_equal(train.read(), values[train.indices])


def test_an_npz_file_with_several_arrays_needs_a_choice(tmp_path):
    path = tmp_path / "data.npz"
    np.savez_compressed(path, images=np.full((9, 5, 5), 3, np.uint8), labels=np.zeros((9, 1), int))
    with pytest.raises(InputError, match=r"data\.npz holds images, labels; .*--array NAME"):
        opened(path)
    with pytest.raises(InputError, match=r"no array 'x'; it holds images, labels; .*--array NAME"):
        opened(path, array="x")
    assert opened(path, array="images").splits["test"].read().tolist() == [[[[3] * 5] * 5]]
    np.savez(path, **{"two\nlines": np.zeros((9, 2)), "a": np.zeros((9, 2))})
    with pytest.raises(InputError, match=r"holds a, two\\nlines; choose"):
        opened(path)
    np.savez(path, only=np.zeros((9, 2)))
    assert opened(path).levels is None
    np.savez(path)
    with pytest.raises(InputError, match=r"data\.npz holds no array"):
        opened(path)


def test_python_objects_are_never_loaded(tmp_path):
    objects = np.array([[{}], [{}]], dtype=object)
    np.save(tmp_path / "data.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "data.npz", objects)
    for name in ("data.npy", "data.npz"):
        message = rf"{name} holds Python objects, which are never loaded; save [^\n]*$"
        with pytest.raises(InputError, match=message):
            opened(tmp_path / name)
    (tmp_path / "raw.npy").write_bytes(b"\x80\x04]\x94.")  # a pickled list
    with pytest.raises(InputError, match=r"raw\.npy holds Python objects"):
        opened(tmp_path / "raw.npy")


def test_damaged_files_are_named(tmp_path):
    path = saved(tmp_path, np.zeros((50, 5), np.uint8))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"data\.npy is damaged or no file of numpy .*np\.save"):
        opened(path)
    np.savez(tmp_path / "data.npz", np.zeros((50, 5), np.uint8))
    content = (tmp_path / "data.npz").read_bytes()
    for damaged in (content[:100], content.replace(b"NUMPY", b"numpy"), b"", b"PK\x03\x04rest"):
        (tmp_path / "data.npz").write_bytes(damaged)
        with pytest.raises(InputError, match=r"^data\.npz (is damaged|holds) [^\n]*$"):
            opened(tmp_path / "data.npz")


def test_files_with_the_extension_of_the_other_kind_are_named(tmp_path):
    saved(tmp_path, np.zeros((5, 5))).rename(tmp_path / "a.npz")
    with pytest.raises(InputError, match=r"a\.npz is a \.npy file .*rename it"):
        opened(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", np.zeros((5, 5)))
    (tmp_path / "b.npz").rename(tmp_path / "b.npy")
    with pytest.raises(InputError, match=r"b\.npy is an \.npz file .*rename it"):
        opened(tmp_path / "b.npy")


def test_an_array_that_does_not_fit_into_memory_is_named(tmp_path, monkeypatch):
    path = saved(tmp_path, np.zeros((5, 5)))

    def too_large(*_, **__):
        raise MemoryError

    monkeypatch.setattr(np, "load", too_large)
    with pytest.raises(InputError, match=r"data\.npy does not fit into memory; .*np\.save"):
        opened(path)
