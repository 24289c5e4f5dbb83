"""Streaming: the order, what a position holds, several processes, and what goes wrong."""

import itertools
import json
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sharded import image, png, write_parquet, write_shards
from variational_diffusion.cli import run
from variational_diffusion.config import DataConfig
from variational_diffusion.data import open_dataset
from variational_diffusion.data.columns import ArrowShards
from variational_diffusion.data.dataset import streamed_dataset
from variational_diffusion.data.loader import joined_positions, training_batches
from variational_diffusion.data.stored import Stored
from variational_diffusion.errors import InputError

COUNTS = [7, 12, 3, 9, 5, 14]
HELD = 4  # for each of validation and test


class Numbers:
    """Shards in memory: example i is a vector that holds i."""

    def __init__(self, counts):
        self.firsts = np.cumsum([0, *counts])
        self.reads = []

    def __len__(self):
        return len(self.firsts) - 1

    def read(self, shard, start):
        self.reads.append(shard)
        for i in range(self.firsts[shard] + start, self.firsts[shard + 1]):
            yield Stored(f"example {i}", np.array([i], np.uint16))


def numbers(counts=COUNTS, **options):
    options = {"shuffle_buffer": 8, "hold_out": HELD} | options
    config = DataConfig(source="numbers", streaming=True, **options)
    return streamed_dataset({"train": Numbers(counts)}, config, "numbers")


def opened(source, **options):
    options = {"streaming": True, "shuffle_buffer": 8, "hold_out": HELD} | options
    return open_dataset(DataConfig(source=str(source), **options))


def take(stream, n):
    """The first entry of every example of n batches, shape (n, batch)."""
    return torch.stack([batch.flatten(1)[:, 0] for batch in itertools.islice(stream, n)]).numpy()


def held(dataset):
    return sorted(
        int(x.flat[0]) for name in ("validation", "test") for x in dataset.splits[name].read()
    )


@pytest.mark.parametrize("shuffle_buffer", [1, 8, 1000])
def test_an_epoch_holds_every_example_once_but_those_held_out(shuffle_buffer):
    dataset = numbers(shuffle_buffer=shuffle_buffer)
    n = sum(COUNTS) - 2 * HELD
    assert len(held(dataset)) == 2 * HELD
    epochs = take(training_batches(dataset, 1, seed=0), 3 * n).reshape(3, n)
    for epoch in epochs:
        assert sorted([*epoch, *held(dataset)]) == list(range(sum(COUNTS)))
    assert epochs[0].tolist() != epochs[1].tolist()
    again = take(training_batches(numbers(shuffle_buffer=shuffle_buffer), 1, seed=0), n)
    other = take(training_batches(dataset, 1, seed=1), n)
    assert epochs[0].tolist() == again[:, 0].tolist() != other[:, 0].tolist()


def test_a_block_is_shuffled_and_shards_are_permuted():
    firsts = np.cumsum([0, *COUNTS])
    shards = np.repeat(np.arange(len(COUNTS)), COUNTS)
    in_order = take(training_batches(numbers(shuffle_buffer=1), 1, seed=3), 42)[:, 0]
    visited = [int(shard) for shard, _ in itertools.groupby(shards[in_order])]
    assert sorted(visited) == list(range(6))
    assert visited != sorted(visited)
    assert all(np.diff(in_order[shards[in_order] == shard]).min() == 1 for shard in (0, 1, 3))
    shuffled = take(training_batches(numbers(shuffle_buffer=8), 1, seed=3), 42)[:, 0]
    assert firsts[-1] == 50
    orders = set()
    for i in range(0, 42, 8):
        assert sorted(shuffled[i : i + 8]) == sorted(in_order[i : i + 8])
        orders.add(tuple(in_order[i : i + 8].tolist().index(x) for x in shuffled[i : i + 8]))
    assert len(orders) == 6  # each block has an order of its own
    assert tuple(range(8)) not in orders


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(2, 12), min_size=3, max_size=7),
    lanes=st.integers(1, 3),
    buffer=st.integers(1, 20),
    width=st.integers(1, 4),
    parts=st.sampled_from([(1, 2), (2, 3), (3, 1), (2, 2)]),
    stop=st.integers(0, 12),
)
def test_a_stream_goes_on_from_anywhere_with_any_number_of_processes(
    counts, lanes, buffer, width, parts, stop
):
    dataset = numbers(counts, lanes=lanes, shuffle_buffer=buffer, hold_out=1)
    batch = 6 * lanes * width
    whole = take(training_batches(dataset, batch, seed=5), stop + 3)
    before, after = parts
    streams = [training_batches(dataset, batch, 5, part=(i, before)) for i in range(before)]
    first = [take(stream, stop) for stream in streams] if stop else []
    position = json.loads(json.dumps(joined_positions(s.position() for s in streams)))
    rest = [
        take(training_batches(dataset, batch, 5, start=stop, position=position, part=(i, after)), 3)
        for i in range(after)
    ]
    if stop:
        np.testing.assert_array_equal(np.concatenate(first, 1), whole[:stop])
    np.testing.assert_array_equal(np.concatenate(rest, 1), whole[stop:])


def test_lanes_are_read_by_their_processes_alone_and_each_has_epochs_of_its_own():
    dataset = numbers(lanes=3)
    shards = dataset.stream.shards
    shards.reads.clear()
    rows = take(training_batches(dataset, 6, seed=0, part=(1, 3)), 40).flatten()
    assert set(shards.reads) == {1, 4}
    own = [*range(7, 19), *range(31, 36)]
    n = len(set(own) - set(held(dataset)))
    for epoch in rows[: len(rows) // n * n].reshape(-1, n):
        assert sorted([*epoch, *(i for i in held(dataset) if i in own)]) == own


@pytest.mark.parametrize("kind", ["parquet", "tar", "hf"])
def test_every_kind_streams_and_goes_on(tmp_path, offline, kind):
    folder = write_shards(tmp_path, "tar" if kind == "tar" else "parquet", COUNTS)
    dataset = opened(f"hf:{folder}" if kind == "hf" else folder, lanes=2)
    assert dataset.shape == (3, 4, 6)
    n = sum(COUNTS) - 2 * HELD
    stream = training_batches(dataset, 4, seed=0, workers=2)
    first = take(stream, 5)
    position = json.loads(json.dumps(stream.position()))
    assert set(position["lanes"]) == {"0", "1"}
    rest = take(stream, 20)
    again = training_batches(dataset, 4, seed=0, start=5, position=position)
    np.testing.assert_array_equal(take(again, 20), rest)
    seen = np.concatenate([first, rest])
    values = set(seen.flatten().tolist())
    assert len(values) == n
    assert values.isdisjoint(held(dataset))
    assert {*dataset.splits["train"].read()[:, 0, 0, 0]} < values


def test_a_single_parquet_file_is_cut_at_its_row_groups(tmp_path, offline):
    write_parquet(tmp_path / "a.parquet", [png(image(i)) for i in range(20)], row_group=5)
    dataset = opened(tmp_path / "a.parquet", hold_out=1)
    assert len(dataset.stream.shards) == 4
    order = take(training_batches(opened(tmp_path, shuffle_buffer=1, hold_out=1), 1, seed=0), 18)
    assert sorted(order[:, 0].tolist() + held(dataset)) == list(range(20))


def test_own_splits_are_read_and_the_training_kept_whole(tmp_path, offline):
    for i, name in enumerate(["train", "validation", "test"]):
        contents = [png(image(10 * i + j)) for j in range(6)]
        write_parquet(tmp_path / f"{name}-0.parquet", contents, row_group=6)
    dataset = opened(tmp_path)
    assert held(dataset) == [10, 11, 12, 13, 20, 21, 22, 23]
    order = take(training_batches(dataset, 6, seed=0), 2)
    assert sorted(order[0]) == sorted(order[1]) == list(range(6))


def test_a_position_counts_what_was_handed_out_alone():
    stream = training_batches(numbers(shuffle_buffer=10), 4, seed=0)
    assert stream.position() == {}
    next(stream)
    place = {"epoch": 0, "shard": 0, "example": 0, "block": 0}
    assert stream.position() == {"lanes": {"0": {**place, "taken": 4}}}


def test_a_file_that_disappears_is_named(tmp_path, offline):
    dataset = opened(write_shards(tmp_path, "parquet", [20, 20, 20]), shuffle_buffer=4)
    stream = training_batches(dataset, 2, seed=0)
    next(stream)
    for i in range(3):
        (tmp_path / f"{i}.parquet").unlink()
    with pytest.raises(InputError, match=r"\d\.parquet.*check the name, the files") as info:
        take(stream, 40)
    assert "\n" not in str(info.value)


def test_a_damaged_image_is_named_or_another_takes_its_place(tmp_path, offline):
    good = {i: png(image(i)) for i in range(30)}
    contents = good | {17: b"no image", 25: good[25][:50]}
    write_shards(tmp_path, "tar", [30], good.__getitem__)
    sound = take(training_batches(opened(tmp_path, hold_out=2), 6, seed=0), 10)
    write_shards(tmp_path, "tar", [30], contents.__getitem__)
    with pytest.raises(InputError, match=r"0\.tar:0(17|25)\.png' is no image or is damaged"):
        take(training_batches(opened(tmp_path, hold_out=2), 5, seed=0), 6)
    dataset = opened(tmp_path, hold_out=2, skip_damaged=True)
    whole = take(training_batches(dataset, 6, seed=0), 10)
    assert {17, 25}.isdisjoint(whole.flatten())
    np.testing.assert_array_equal(np.where(np.isin(sound, [17, 25]), whole, sound), whole)
    parts = [take(training_batches(dataset, 6, seed=0, part=(i, 3)), 10) for i in range(3)]
    np.testing.assert_array_equal(np.concatenate(parts, 1), whole)


def test_later_images_of_another_kind_are_named(tmp_path, offline):
    def grey(i):
        return image(i, channels=1)

    def refused(odd, message, **options):
        write_shards(tmp_path, "tar", [12], lambda i: odd if i == 11 else png(grey(i)))
        with pytest.raises(InputError, match=message):
            take(training_batches(opened(tmp_path, hold_out=1, **options), 4, seed=0), 4)

    refused(png(image(1)), r"011\.png' has colours, .*--channels rgb or --channels grey")
    refused(
        png(image(1, channels=1, dtype=np.uint16)),
        r"011\.png' has 16 bits, unlike the others",
    )
    refused(png(image(1, (5, 5), 1)), r"011\.png' has shape \(1, 5, 5\), .*--resize HxW")
    write_shards(tmp_path, "tar", [12], lambda i: png(image(i, channels=3 if i == 11 else 1)))
    rgb = opened(tmp_path, hold_out=1, channels="rgb")
    assert next(training_batches(rgb, 4, seed=0)).shape == (4, 3, 4, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 5}, r"batch_size = 5: .* multiple of lanes = 2; give --batch-size 4"),
        ({"batch_size": 0}, r"batch_size = 0: at least 1"),
        ({"part": (0, 4)}, r"batch_size = 6: .* number of processes, 4; give --batch-size 8"),
        ({"start": 3}, r"position = \{\} is none of this stream with 2 lanes at batch 3"),
        ({"start": 3, "position": {"lanes": {"0": {}}}}, r"position = .* is none of this stream"),
        ({"position": {"lanes": {"0": {"taken": 0}, "1": {"taken": -1}}}}, "is none of this"),
        (
            {"position": {"lanes": {"0": {"taken": 0}, "1": {"taken": 99}}}},
            "99 examples were taken",
        ),
    ],
)
def test_what_a_stream_cannot_begin_with(arguments, message):
    arguments = {"batch_size": 6, "seed": 0} | arguments
    with pytest.raises(InputError, match=message):
        next(training_batches(numbers(lanes=2), **arguments))


def test_data_that_cannot_be_streamed():
    with pytest.raises(InputError, match=r"lanes = 9: the data have 6 shards; give --lanes 6"):
        training_batches(numbers(lanes=9), 9, seed=0)
    with pytest.raises(InputError, match=r"too few examples to stream: .*leave out --streaming"):
        numbers([1, 1])
    with pytest.raises(InputError, match=r"lane 1 of 2 holds no examples; |lane 1 of 2 holds no"):
        next(training_batches(numbers([20, 0], lanes=2), 2, seed=0))
    message = r"shuffle_buffer = 5 is for streaming; give --streaming, or leave out"
    with pytest.raises(InputError, match=message):
        open_dataset(DataConfig(source="digits", shuffle_buffer=5))


def test_levels_must_be_given_where_the_first_examples_cannot_tell(tmp_path, offline):
    write_parquet(tmp_path / "a.parquet", [[i, i + 1] for i in range(12)])
    with pytest.raises(InputError, match=r"hold int64, so the number of levels .*--levels"):
        opened(tmp_path)
    dataset = opened(tmp_path, levels=13)
    assert (dataset.levels, dataset.shape) == (13, (2,))
    assert next(training_batches(dataset, 3, seed=0)).dtype == torch.uint8


def test_reading_and_decoding_go_on_while_the_caller_works(monkeypatch):
    dataset = numbers(shuffle_buffer=4)
    decode = type(dataset.stream.decoder).decode

    def slow(self, stored):
        time.sleep(0.005)
        return decode(self, stored)

    monkeypatch.setattr(type(dataset.stream.decoder), "decode", slow)
    stream = training_batches(dataset, 4, seed=0)
    next(stream)
    waits = [stream.waited]
    assert waits[0] >= 0.015  # nothing was made ahead yet
    for _ in range(5):
        time.sleep(0.06)
        next(stream)
        waits.append(stream.waited)
    assert np.diff(waits).min() < 0.01  # a batch takes 0.02; on a busy machine some may be late
    before = stream.waited
    take(stream, 10)
    assert stream.waited - before > 0.1


def test_only_the_column_is_read(tmp_path, offline):
    write_parquet(tmp_path / "a.parquet", [png(image(i)) for i in range(9)], text=["long"] * 9)
    shards = opened(tmp_path, hold_out=1).stream.shards
    assert isinstance(shards, ArrowShards)
    assert shards._rows.column_names == ["image"]


def test_the_commands_read_a_stream(tmp_path, offline, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    write_shards(tmp_path / "d", "tar", [30, 30])
    options = ["--streaming", "--hold-out", "4", "--crop", "4x4", "--flip", "both", "--lanes", "2"]
    assert run(["data", "d", "--json", *options]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["splits"] == {"train": None, "validation": 4, "test": 4}
    assert shown["shape"] == [3, 4, 4]
    assert run(["data", "d", *options]) == 0
    assert capsys.readouterr().out.count("unknown number, streamed") == 2
    small = ["--steps", "2", "--batch-size", "4", "--set", "network.widths=[8]"]
    assert run(["train", "d", "--run", "r", *small, *options]) == 0
    assert run(["data", "d", "--lanes", "2"]) == 2
    assert "lanes = 2 is for streaming" in capsys.readouterr().err
