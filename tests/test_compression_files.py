"""Images of any size as groups, and the file that keeps them."""

import io
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coding import (
    file_of,
    file_of_images,
    group_of,
    header_of,
    images,
    known,
    model,
    opened,
    quick_coder,
    read,
)
from variational_diffusion.compression import (
    ChainCoder,
    Origin,
    Table,
    Writer,
    decode_images,
    encode,
)
from variational_diffusion.compression.records import runs_of
from variational_diffusion.compression.tiles import (
    image_of,
    number_of_tiles,
    padding_of,
    tiles_of,
)
from variational_diffusion.errors import InputError


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(*(st.integers(1, 9) for _ in range(2))),
    st.tuples(*(st.integers(1, 5) for _ in range(2))),
    st.integers(1, 3),
)
def test_tiles_give_the_image_back_and_padding_is_what_is_added(size, tile, channels):
    image = np.random.default_rng(0).integers(0, 256, (channels, *size), dtype=np.uint8)
    shape = (channels, *tile)
    tiles, padding = tiles_of(image, shape), padding_of(image.shape, shape)
    assert tiles.shape == padding.shape == (number_of_tiles(image.shape, shape), *shape)
    assert np.array_equal(image_of(tiles, image.shape), image)
    assert (~padding).sum() == image.size
    marked = tiles_of(np.full(image.shape, 7, np.uint8), shape)
    assert (marked == 7).all()


def test_padding_repeats_the_last_column_and_row():
    tiles = tiles_of(np.arange(6).reshape(1, 2, 3), (1, 3, 2))
    assert tiles.tolist() == [[[[0, 1], [3, 4], [3, 4]]], [[[2, 2], [5, 5], [5, 5]]]]
    assert padding_of((1, 2, 3), (1, 3, 2))[1].tolist() == [[[0, 1], [0, 1], [1, 1]]]


@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_runs_are_of_the_flags(flags):
    flags = np.array(flags)
    assert np.array_equal(Table(stack=0, runs=runs_of(flags)).beside(len(flags)), flags)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=8),
    st.sampled_from([2, 17, 256, 1000, 65_536]),
    st.integers(0, 2**32),
)
def test_images_of_any_size_come_back(channels, sizes, levels, seed):
    rng = np.random.default_rng(seed)
    coder = quick_coder(levels, (channels, 4, 3))
    x = []
    for size in sizes:
        spread = rng.choice([0.0, 0.3, 5.0])  # one value, a hump, all values
        values = (rng.normal(0, spread, (channels, *size)).clip(-0.99, 0.99) + 1) * levels / 2
        x.append(np.floor(values).astype(np.uint16))
    group = group_of(coder, x)
    back = dict(decode_images(coder, len(x), group.table, group.payload))
    assert sorted(back) == list(range(len(x)))
    assert all(np.array_equal(back[i], image) for i, image in enumerate(x))
    assert group.values == sum(image.size for image in x)
    assert 0 <= group.by_model + group.beside <= group.values


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from([(5,), (1, 3, 4), (3, 2, 2), (4, 1, 2), (2, 2, 2, 2)]),
    st.sampled_from([2, 17, 256, 65_536]),
    st.integers(0, 40),
    st.integers(1, 15),
)
def test_files_of_any_shape_and_number_come_back(shape, levels, n, size):
    coder, x = quick_coder(levels, shape), images(n, levels, shape)
    parts = [x[first : first + size] for first in range(0, n, size)]
    container, back = read(file_of_images(coder, *parts), coder)
    assert container.images == n
    assert container.damaged == []
    assert sorted(back) == list(range(n))
    assert all(np.array_equal(back[i], x[i]) for i in range(n))


def test_images_that_the_model_codes_worse_go_beside_it():
    coder = quick_coder()
    x = list(known(60, (1, 12, 12)))
    dull = [3, 20, 21, 22, 50]
    for i in dull:
        x[i] = np.full((1, 12, 12), 16, np.uint8)
    group = group_of(coder, x)
    assert np.flatnonzero(group.table.beside(60)).tolist() == dull
    assert group.beside_images == 5
    plain = group_of(coder, [x[i] for i in dull])
    assert plain.stack.by_model == 0
    kept = group_of(coder, [image for i, image in enumerate(x) if i not in dull])
    assert len(group.payload) <= len(plain.payload) + len(kept.payload) + 16
    back = dict(decode_images(coder, 60, group.table, group.payload))
    assert all(np.array_equal(back[i], x[i]) for i in range(60))


def test_images_are_left_out_where_that_is_worthwhile():
    coder, x = quick_coder(), known(25, (1, 12, 12))
    *_, done = encode(coder, x)
    most = np.full(25, 1.5 * done.nats.mean())  # the spread between images is 5 %
    most[[3, 8]] = 0.6 * done.nats.mean()
    *_, fewer = encode(coder, x, most=most)
    assert fewer.left_out == [3, 8]
    assert fewer.done == 25
    most[[3, 8]] = 0.98 * done.nats.mean()  # two of a batch of 20: a fifth of a percent of its bits
    *_, same = encode(coder, x, most=most)
    assert same.left_out == []


def test_other_images_in_a_piece_are_found():
    coder = quick_coder()
    one, other = (group_of(coder, list(images(3, 256, (1, 9, 9), seed))) for seed in (0, 1))
    table = other.table.model_copy(update={"contents": one.table.contents})
    with pytest.raises(ValueError, match="other values than were coded"):
        list(decode_images(coder, 3, table, other.payload))


@pytest.mark.parametrize("n", [1, 2, 30])
def test_nothing_is_larger_than_what_classical_coders_make(n):
    coder = quick_coder(256, (1, 8, 8))
    x = list(images(n, 256, (1, 11, 9)))  # noise, and tiles with much padding
    alone = sum(len(group_of(coder, [image]).payload) for image in x)
    group = group_of(coder, x)
    assert group.stack.by_model == 0
    assert len(group.payload) <= alone
    assert len(group.payload) <= sum(image.size for image in x) + 100 + 11 * n


def test_the_cost_of_padding_is_its_part_of_the_bound():
    coder, x = quick_coder(), known(40, (1, 12, 12))
    *_, done = encode(coder, x, padded=np.broadcast_to(np.arange(12) >= 9, x.shape))
    # a quarter of the entries, each as dear as another; the spread is 0.5 %
    assert done.padding / done.nats.sum() == pytest.approx(1 / 4, abs=0.02)


@pytest.fixture(scope="module")
def written():
    """The bytes of a file of three groups, each with two images beside the model; coder, images."""
    coder, x = quick_coder(), known(90, (1, 12, 12))
    x[::15] = 3
    return file_of_images(coder, *np.split(x, 3)), coder, x


def marks_of(data):
    """Return where the groups and the end begin."""
    return [m.start() for m in re.finditer(rb"\xabgrp|\xabend", data)]


def test_a_damaged_place_takes_what_comes_after_it_in_its_group(written):
    data, coder, x = written
    _, start, end, _ = marks_of(data)
    lost = []
    for place in np.linspace(start + 420, end - 80, 5).astype(int):
        container, back = read(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :], coder)
        assert all(np.array_equal(values, x[i]) for i, values in back.items())
        assert {*range(30), *range(60, 90), 30, 45} <= set(back)
        missing = sorted(set(range(90)) - set(back))
        lost.append(len(missing))
        # from one image on to the end of the group, but for the one beside the model
        assert missing == [i for i in range(missing[0], 60) if i != 45]
        assert f"images {missing[0]} to " in container.damaged[0]
        assert "bytes are damaged" in container.damaged[0]
    assert lost == sorted(lost, reverse=True)
    assert lost[0] > 15
    assert 8 > lost[-1] > 0


def test_a_file_that_was_cut_off_gives_what_is_there(written):
    data, coder, x = written
    seen = []
    for share in (0.2, 0.5, 0.9):
        container, back = read(data[: int(share * len(data))], coder)
        assert all(np.array_equal(values, x[i]) for i, values in back.items())
        assert "cut off" in " ".join(container.damaged)
        seen.append(len(back))
    assert seen == sorted(seen)
    assert seen[-1] > 60


def test_a_decoder_that_computes_something_else_is_found_at_the_first_wrong_batch(written):
    data, _, x = written
    coder = quick_coder()
    exact, calls = coder._reverse, []

    def wrong(z_t, step):
        calls.append(step)
        reverse = exact(z_t, step)
        return reverse._replace(mean=reverse.mean + 0.3 * (len(calls) == 8))

    coder._reverse = wrong
    container, back = read(data, coder)
    assert all(np.array_equal(values, x[i]) for i, values in back.items())
    assert len(container.damaged) == 1
    assert "bytes" not in container.damaged[0]
    assert {0, *range(30, 90)} <= set(back)
    assert 1 < len([i for i in back if i < 30]) < 30


def test_groups_of_another_file_or_out_of_place_are_not_taken(written):
    data, coder, x = written
    marks = marks_of(data)
    one, two, three, end = (data[a:b] for a, b in zip(marks, [*marks[1:], None], strict=True))
    head = data[: marks[0]]
    other = file_of_images(coder, known(30, (1, 12, 12), seed=9))
    foreign = other[slice(*marks_of(other))]
    cases = {
        head + foreign + two + three + end: {*range(30, 90)},
        head + one + three + two + end: {*range(30), *range(60, 90)},
        head + one + two + two + end: {*range(60)},
        head + one + one + two + three + end: {*range(90)},
        head + one + two + three + end + three: {*range(90)},
        head + one + b"some bytes" + two + three + end: {*range(90)},
        head + one + two + three: {*range(90)},
    }
    for text, numbers in cases.items():
        container, back = read(text, coder)
        assert set(back) == numbers
        assert all(np.array_equal(values, x[n]) for n, values in back.items())
        assert ("missing" in " ".join(container.damaged)) == (len(numbers) < 90)
    assert "cut off" in container.damaged[0]


def test_a_coder_of_another_model_is_refused(written):
    for other in (quick_coder(steps=5), quick_coder(17), quick_coder(shape=(1, 12, 11))):
        with pytest.raises(InputError, match="another model"):
            read(written[0], other)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [1, -1, 12]},
        {"gammas": "A"},
        {"levels": 70_000},
        {"model": "0"},
        {"weights": "w" * 5_000_000},
        {"origin": Origin.model_construct(dtype="|O")},
    ],
)
def test_headers_are_checked(changes):
    coder = quick_coder()
    with pytest.raises(InputError, match="header is not what one is"):
        opened(file_of(coder, [], header_of(coder, **changes)))


@pytest.mark.parametrize(
    "table",
    [
        {"stack": 10, "sizes": [[10**12, 12, 12]]},
        {"stack": 10, "sizes": [[30, 1 << 20, 1 << 20]]},
        {"stack": 10, "sizes": [[30, 0, 12]]},
        {"stack": 10, "sizes": [[30, 12]]},
        {"stack": 10, "runs": [10**12]},
        {"stack": 10, "runs": [-5, 35]},
        {"stack": 10, "runs": [0, 30], "plain": [[10**12, 5]], "contents": "AAAAAAAAAAA="},
        {"stack": 10, "runs": [0, 30], "plain": [[30, 5]], "contents": "AAAAAAAAAAAAA"},
        {"stack": 10, "names": ["a"]},
        {"stack": 1 << 50},
    ],
)
def test_tables_are_checked_before_memory_is_taken(table):
    coder = quick_coder()
    data = file_of(coder, [(30, Table.model_construct(**table), bytes(100))])
    container, back = read(data, coder)
    assert back == {}
    assert "images 0 to 29" in container.damaged[0]


@pytest.mark.parametrize("sizes", [[], [[1 << 20, 1, 1]], [[1, 1 << 15, 1 << 15]]])
def test_no_group_has_more_values_than_it_may(sizes):
    n = sizes[0][0] if sizes else 1 << 20
    with pytest.raises(ValueError, match="more values than a group may have"):
        Table(stack=0, sizes=sizes).shapes(n, (1, 32, 32))


def test_a_file_that_claims_a_trillion_images_is_refused():
    file = io.BytesIO()
    with Writer(file, header_of(quick_coder())) as writer:
        writer._images = 10**12
    with pytest.raises(InputError, match="claims 1,000,000,000,000 images"):
        opened(file.getvalue())


def test_files_of_another_format_are_refused(written):
    data = written[0]
    with pytest.raises(InputError, match="has format 1"):
        opened(data[:8] + b"\1\0" + data[10:])
    with pytest.raises(InputError, match=r"is no \.vdmz file"):
        opened(b"PK" + data[2:])


def test_models_whose_outputs_are_not_finite_are_refused():
    coder = quick_coder()
    coder._vdm.network.mean.fill_(float("nan"))
    with pytest.raises(InputError, match="not finite"):
        group_of(coder, list(known(200, (1, 12, 12))))
    vdm, gammas = model()
    with pytest.raises(InputError, match="errors are not"):
        ChainCoder(vdm, gammas * np.nan)
