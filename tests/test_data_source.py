"""Splits are disjoint, complete and reproducible; values are verified at the door."""

import functools
import math
import operator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from variational_diffusion.config import DataConfig
from variational_diffusion.data import DATASETS, Dataset, Source, Split, open_dataset
from variational_diffusion.data.arrays import ArraySource
from variational_diffusion.data.source import Joined, mean_and_std, verify
from variational_diffusion.data.splits import random_splits
from variational_diffusion.errors import InputError


def numbered(n, dtype=np.uint16):
    """A source whose example i holds the value i."""
    return ArraySource(np.arange(n, dtype=dtype)[:, None], "numbers")


def members(split):
    return split.read().ravel().tolist()


@given(
    n=st.integers(20, 200),
    validation=st.floats(0.01, 0.5),
    test=st.floats(0.01, 0.4),
    seed=st.integers(0, 2**32),
)
def test_splits_are_disjoint_and_complete(n, validation, test, seed):
    splits = random_splits(numbered(n), validation=validation, test=test, seed=seed)
    assert list(splits) == ["train", "validation", "test"]
    assert sorted(functools.reduce(operator.iadd, map(members, splits.values()), [])) == list(
        range(n)
    )
    assert len(splits["validation"]) == max(1, round(n * validation))
    assert len(splits["test"]) == max(1, round(n * test))
    again = random_splits(numbered(n), validation=validation, test=test, seed=seed)
    assert all(members(splits[name]) == members(again[name]) for name in splits)


def test_the_seed_draws_the_splits_and_the_validation_does_not_move_the_test():
    first, second = (random_splits(numbered(100), validation=0.1, test=0.1, seed=s) for s in (0, 1))
    assert members(first["test"]) != members(second["test"])
    larger = random_splits(numbered(100), validation=0.3, test=0.1, seed=0)
    assert members(larger["test"]) == members(first["test"])


def test_a_test_set_of_the_source_is_kept():
    own = Split(numbered(5), np.arange(5))
    splits = random_splits(numbered(20), validation=0.2, test=own, seed=0)
    assert splits["test"] is own
    assert sorted(members(splits["train"]) + members(splits["validation"])) == list(range(20))
    assert len(splits["validation"]) == 4


@pytest.mark.parametrize(("n", "test"), [(2, 0.1), (1, 0.1), (10, 0.95), (10, 9)])
def test_splits_must_leave_something_to_train_on(n, test):
    message = rf"^{n} examples: 1 for the validation .*--validation and --test"
    with pytest.raises(InputError, match=message):
        random_splits(numbered(n), validation=0.1, test=test, seed=0)


@pytest.mark.parametrize("name", list(DATASETS))
def test_every_named_data_set_keeps_the_contract(name):
    try:
        dataset = open_dataset(DataConfig(source=name))
    except InputError as error:
        pytest.skip(str(error))
    assert isinstance(dataset, Dataset)
    assert dataset.source == name
    for split in dataset.splits.values():
        assert isinstance(split.source, Source)
        assert split.shape == dataset.shape
        values = split.sample(10).read()
        assert values.shape == (10, *dataset.shape)
        assert values.dtype == np.uint8
        assert values.max() < dataset.levels


def test_digits_have_297_test_images_and_17_levels():
    dataset = open_dataset(DataConfig(source="digits"))
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 1320,
        "validation": 180,
        "test": 297,
    }
    assert dataset.shape == (1, 8, 8)
    assert dataset.levels == 17
    everything = np.concatenate([split.read() for split in dataset.splits.values()])
    assert np.unique(everything).tolist() == list(range(17))
    assert everything.sum(dtype=np.int64) == 561_718  # of scikit-learn's copy
    with pytest.raises(
        InputError, match=r"digits, example \d+ .*levels = 16 .*--levels 17 or more"
    ):
        open_dataset(DataConfig(source="digits", levels=16))


def test_a_split_reads_tensors_by_position():
    source = numbered(10)
    split = Split(source, np.array([7, 3, 5]))
    assert len(split) == 3
    assert split[1].tolist() == [3]
    assert split.__getitems__([2, 0]).tolist() == [[5], [7]]
    assert split.read(np.array([1])).tolist() == [[3]]
    assert members(split) == [7, 3, 5]
    with pytest.raises(IndexError):
        split[3]


def test_a_sample_is_a_random_draw_in_order_that_a_larger_one_holds():
    """Every example is drawn as often as any other; the first ones are nothing special."""
    split = Split(numbered(50), np.arange(50)[::-1].copy(), name="test")
    few, more = split.sample(10), split.sample(20)
    assert few.positions.tolist() == sorted(few.positions)
    assert few.indices.tolist() == split.indices[few.positions].tolist()
    assert members(few) == few.indices.tolist()
    assert set(few.positions) < set(more.positions)
    assert few.description == "10 of 50 test examples, drawn with seed 0"
    assert split.description == "50 test examples"
    assert few.as_json()["of"] == 50
    assert split.sample(50) is split
    counts = np.zeros(50)
    for seed in range(1000):
        counts[split.sample(10, seed).positions] += 1
    # binomial of 1,000 and 0.2, two-sided at 4.5 standard deviations: false alarm 4e-4 for all 50
    assert np.abs(counts - 200).max() < 4.5 * np.sqrt(1000 * 0.2 * 0.8)
    again = more.sample(5, seed=3)  # of a sample: positions in what the first was drawn out of
    assert again.indices.tolist() == split.indices[again.positions].tolist()
    assert again.description == "5 of 50 test examples, drawn with seed 3"
    with pytest.raises(InputError, match=r"limit = 0: .*--limit 1"):
        split.sample(0)


def test_joined_sources_are_read_in_any_order():
    joined = Joined([numbered(3), numbered(1), numbered(3)])
    assert len(joined) == 7
    indices = np.array([6, 0, 2, 3, 3, 1])
    assert [int(x[0]) for x in joined.read(indices)] == [2, 0, 2, 0, 0, 1]
    assert joined.read(np.array([], dtype=int)) == []
    split = Split(joined, np.arange(7))
    assert split.read().ravel().tolist() == [0, 1, 2, 0, 0, 1, 2]


@pytest.mark.parametrize(
    ("array", "stored", "tensor"),
    [
        (np.array([[200]], np.uint8), np.uint8, torch.uint8),
        (np.array([[60_000]], np.uint16), np.uint16, torch.int32),
        (np.array([[16]], np.int64), np.uint8, torch.uint8),
        (np.array([[300]], np.int64), np.uint16, torch.int32),
        (np.array([[True]]), np.uint8, torch.uint8),
        (np.array([[1e9 + 0.1]], np.float64), np.float64, torch.float64),
        (np.array([[0.5]], np.float32), np.float32, torch.float32),
        (np.array([[0.5]], ">f2"), np.float32, torch.float32),
    ],
)
def test_types_that_come_out(array, stored, tensor):
    split = Split(ArraySource(array, "array"), np.array([0]))
    assert split.read().dtype == stored
    assert split[0].dtype == tensor
    assert split[0].item() == array.item()


@pytest.mark.parametrize("scale", [1e-200, 1e-9, 3.0, 1e9, 1e200])
@pytest.mark.parametrize("offset", [0.0, 1e6, 1e12])
def test_mean_and_std_keep_their_digits(scale, offset):
    """Against whole numbers, summed exactly; float64 holds x to 1e-16 of the offset."""
    whole = np.random.default_rng(0).integers(-(2**20), 2**20, (700, 3, 5))
    exact = [[int(v) for v in whole[:, i].ravel()] for i in range(3)]
    mean = [sum(values) / len(values) for values in exact]
    squares = [sum(v * v for v in values) for values in exact]
    std = [
        math.sqrt(len(v) * s - sum(v) ** 2) / len(v) for v, s in zip(exact, squares, strict=True)
    ]
    x = (whole + offset) * scale
    pieces = [x[:1], x[1:40], x[40:41], x[41:]]  # the first is a single example
    found_mean, found_std = mean_and_std(pieces)
    assert found_mean / scale - offset == pytest.approx(mean, rel=1e-9, abs=1e-3)
    assert found_std / scale == pytest.approx(std, rel=1e-9)


def test_the_spread_of_a_constant_column_is_exactly_zero():
    values = np.full((1000, 2), 0.1)
    values[:, 1] = 1e9 + 0.3
    assert mean_and_std([values[:300], values[300:]])[1].tolist() == [0.0, 0.0]
    values[999, 1] += 1e-6
    assert mean_and_std([values[:300], values[300:]])[1][1] > 0


def example(row):
    return f"image {row}"


@pytest.mark.parametrize(
    ("values", "levels", "value_range", "message"),
    [
        ([0, 17], 17, None, r"^image 1 has the value 17, .*levels = 17 .*0 to 16; .*--levels 18"),
        ([-1, 0], 17, None, r"^image 0 has the value -1, but 0 to 16 .*; subtract the smallest"),
        ([0, 65_536], 65_536, None, r"^image 1 has the value 65536, but 0 to 65535 .*rescale"),
        ([0.0, np.nan], None, None, r"^image 1 has the value nan, but values must be finite;"),
        (
            [-np.inf, 0.0],
            None,
            (0.0, 1.0),
            r"^image 0 has the value -inf, but values must be finite;",
        ),
        ([0.5, 1.5], None, (0.0, 1.0), r"^image 1 has the value 1.5, but 0.0 to 1.0 .*--range"),
        ([-0.5, 0.5], None, (0.0, 1.0), r"^image 0 has the value -0.5, but 0.0 to 1.0 .*--range"),
    ],
)
def test_a_value_that_is_not_allowed_is_named(values, levels, value_range, message):
    with pytest.raises(InputError, match=message):
        verify(np.array(values)[:, None], levels, value_range, example)


def test_the_ends_of_the_range_are_allowed():
    verify(np.array([[0], [16]]), 17, None, example)
    verify(np.array([[255]], np.uint8), 256, None, example)
    verify(np.array([[0.1], [0.7]], np.float32), None, (0.1, 0.7), example)


def test_a_sample_has_nothing_to_do_with_the_splits_of_the_same_seed():
    """Of 1,000 examples with 100 for the test, 200 drawn have 20 ± 3.8 of them (hypergeometric)."""
    source = ArraySource(np.zeros((1000, 2), np.uint8), "zeros")
    for seed in range(5):
        splits = random_splits(source, validation=0.1, test=0.1, seed=seed)
        everything = Split(source, np.arange(1000)).sample(200, seed)
        common = len(np.intersect1d(everything.indices, splits["test"].indices))
        assert 4 <= common <= 36  # four standard deviations, five times: one false alarm in 3,000
