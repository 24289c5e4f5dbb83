"""The batch stream is a pure function of (split, batch size, seed, k), and exact."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from variational_diffusion.data import Split
from variational_diffusion.data.arrays import ArraySource
from variational_diffusion.data.loader import batch_positions, ordered_batches, training_batches
from variational_diffusion.errors import InputError


def numbered(n):
    """A split whose example i holds the value i."""
    return Split(ArraySource(np.arange(n, dtype=np.uint8)[:, None], "numbers"), np.arange(n))


def take(stream, n):
    return torch.stack(list(itertools.islice(stream, n))).squeeze(-1)


@given(st.integers(1, 40), st.integers(0, 2**40), st.data())
def test_the_stream_is_one_permutation_after_the_other(n, seed, data):
    batch_size = data.draw(st.integers(1, n))
    n_batches = -(-3 * n // batch_size)
    stream = np.concatenate([batch_positions(n, batch_size, seed, k) for k in range(n_batches)])
    for epoch in range(3):
        expected = np.random.default_rng([seed, epoch]).permutation(n)
        np.testing.assert_array_equal(stream[epoch * n : (epoch + 1) * n], expected)


@pytest.mark.parametrize("start", [0, 1, 2, 3, 50, 10**9])
def test_a_stream_begins_anywhere(start):
    split = numbered(10)
    batch = take(training_batches(split, 4, seed=3, start=start), 3)
    expected = [batch_positions(10, 4, 3, k) for k in range(start, start + 3)]
    np.testing.assert_array_equal(batch, expected)


def test_an_epoch_holds_every_example_once_across_batches():
    stream = take(training_batches(numbered(10), 4, seed=0), 10).flatten()
    for epoch in stream.reshape(4, 10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert stream[:10].tolist() != stream[10:20].tolist()


def test_seeds_give_other_orders_and_streams_do_not_disturb_each_other():
    split = numbered(50)
    one, other = training_batches(split, 10, seed=0), training_batches(split, 10, seed=1)
    mixed = [(next(one), next(other)) for _ in range(12)]
    assert torch.equal(
        torch.stack([a for a, _ in mixed]).squeeze(-1), take(training_batches(split, 10, 0), 12)
    )
    assert not torch.equal(mixed[0][0], mixed[0][1])


def test_the_global_generator_is_neither_used_nor_advanced():
    split = numbered(10)
    torch.manual_seed(0)
    first = take(training_batches(split, 4, seed=0), 3)
    after = torch.rand(())
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(()))
    torch.manual_seed(1)
    assert torch.equal(first, take(training_batches(split, 4, seed=0), 3))


def test_worker_threads_change_nothing():
    split = numbered(20)
    stream = training_batches(split, 8, seed=0, start=2, workers=3)
    read_ahead = take(stream, 6)
    del stream
    assert torch.equal(read_ahead, take(training_batches(split, 8, seed=0, start=2), 6))


def test_a_batch_is_fetched_in_one_call(monkeypatch):
    calls = []
    read = ArraySource.read
    monkeypatch.setattr(
        ArraySource, "read", lambda self, i: (calls.append(len(i)), read(self, i))[1]
    )
    next(training_batches(numbered(20), 8, seed=0))
    assert set(calls) == {8}


def test_evaluation_sees_every_example_once_in_order():
    split = Split(numbered(10).source, np.array([5, 1, 9, 7, 0]))
    seen = list(ordered_batches(split, 2))
    assert [batch.flatten().tolist() for batch in seen] == [[5, 1], [9, 7], [0]]
    assert [len(batch) for batch in ordered_batches(split, 100)] == [5]


def test_batches_that_cannot_be_filled_are_refused_at_once():
    with pytest.raises(InputError, match=r"batch_size = 11: .*has 10 examples; .*--batch-size 10"):
        training_batches(numbered(10), 11, seed=0)
    with pytest.raises(InputError, match=r"batch_size = 0: 1 to 10 is allowed"):
        training_batches(numbered(10), 0, seed=0)
    with pytest.raises(InputError, match=r"batch_size = 0: at least 1; give --batch-size"):
        ordered_batches(numbered(10), 0)
