"""Damaged files: each ends in a clear error, or in images as they were coded.

The suite takes 1,000 files; FUZZ_CASES=10000 in the environment takes so many.
"""

import os
import resource
import sys
import time
import zlib

import numpy as np
import pytest

from coding import (
    file_of,
    file_of_images,
    group_of,
    header_of,
    images,
    known,
    quick_coder,
    read,
)
from variational_diffusion.compression import Header, Table
from variational_diffusion.compression.digests import CONTENT, digest
from variational_diffusion.compression.group import _HEAD
from variational_diffusion.errors import InputError

CASES = int(os.environ.get("FUZZ_CASES", "1000")) // 2  # above the digests, and below them
MEBIBYTE = 1024 if sys.platform != "darwin" else 1 << 20  # in units of ru_maxrss


@pytest.fixture(scope="module")
def coder():
    return quick_coder(steps=1)


@pytest.fixture(scope="module")
def originals():
    """Three groups: by the model; of several sizes and with names; beside the model."""
    by_model = list(known(6, (1, 12, 12)))
    mixed = list(known(10, (1, 12, 12), seed=1))
    mixed[3] = np.full((1, 5, 30), 7, np.uint8)
    mixed[5:8] = [np.zeros((1, 12, 12), np.uint8)] * 3
    return [by_model, mixed, list(images(3, 256, (1, 9, 9)))]


@pytest.fixture(scope="module")
def groups(coder, originals):
    names = [None, [f"{i}.png" for i in range(10)], None]
    return [group_of(coder, x, n) for x, n in zip(originals, names, strict=True)]


class RawHeader(Header):
    raw: bytes

    def packed(self):
        return self.raw


class RawTable(Table):
    raw: bytes

    def packed(self):
        return self.raw


def damage(data, rng, other=b""):
    """Flip bits, cut, leave out, insert, repeat or splice bytes, one to three times."""
    for _ in range(rng.integers(1, 4)):
        if not data:
            return data
        kind, place = rng.integers(7), int(rng.integers(len(data)))
        length = int(rng.choice([1, 2, 4, 8, 40, 400]))
        if kind == 0:
            flipped = data[place] ^ (1 << int(rng.integers(8)))
            data = data[:place] + bytes([flipped]) + data[place + 1 :]
        elif kind == 1:
            data = data[:place]
        elif kind == 2:
            data = data[:place] + data[place + length :]
        elif kind == 3:
            data = data[:place] + rng.bytes(length) + data[place:]
        elif kind == 4:
            extreme = bytes([int(rng.choice([0, 1, 127, 128, 255]))]) * min(length, 8)
            data = data[:place] + extreme + data[place + len(extreme) :]
        elif kind == 5:
            source = int(rng.integers(len(data)))
            data = data[:place] + data[source : source + length] + data[place + length :]
        else:
            source = int(rng.integers(len(other) + 1))
            data = data[:place] + other[source : source + length] + data[place + length :]
    return data


def outcome(data, coder, expected):
    """Open and decode; return "refused", "damaged" or "whole". Every image is as it was coded."""
    try:
        container, back = read(data, coder)
    except InputError as error:
        message = str(error)
        return "refused" if "\n" not in message else message
    if expected is not None:
        for number, values in back.items():
            assert np.array_equal(values, expected[number])
    if container.damaged:
        assert all("\n" not in line for line in container.damaged)
        return "damaged"
    assert expected is None or len(back) == len(expected)
    return "whole"


def run(cases, coder, expected, make, seed):
    """Return how often every outcome came; no case takes long, and memory does not grow."""
    rng, counts = np.random.default_rng(seed), {"refused": 0, "damaged": 0, "whole": 0}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for case in range(cases):
        data, start = make(rng), time.process_time()
        counts[outcome(data, coder, expected)] += 1
        assert time.process_time() - start < 5, f"case {case}"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 400 * MEBIBYTE
    return counts


def test_damaged_bytes(coder, originals, groups):
    packed = [(len(x), g.table, g.payload) for x, g in zip(originals, groups, strict=True)]
    data = file_of(coder, packed)
    other = file_of_images(coder, known(6, (1, 12, 12), seed=5))
    expected = [image for x in originals for image in x]
    assert outcome(data, coder, expected) == "whole"
    counts = run(CASES, coder, expected, lambda rng: damage(data, rng, other), seed=0)
    assert counts["refused"] > CASES / 20
    assert counts["damaged"] > CASES / 2
    assert counts["whole"] < CASES / 10


@pytest.mark.parametrize("part", ["header", "table", "group", "pieces"])
def test_damage_with_digests_that_hold(coder, originals, groups, part):
    """What stands in front of the digests is made anew: the parsers have to find it."""

    def make(rng):
        packed = [[len(x), g.table, g.payload] for x, g in zip(originals, groups, strict=True)]
        header, chosen = header_of(coder), packed[rng.integers(3)]
        stack = chosen[1].stack
        if part == "header":
            header = RawHeader.model_construct(raw=repacked(header, rng))
        elif part == "table":
            chosen[1] = RawTable.model_construct(raw=repacked(chosen[1], rng))
        elif part == "group":
            chosen[2] = with_digest(damage(chosen[2][:stack], rng)) + chosen[2][stack:]
        else:
            chosen[2] = chosen[2][:stack] + damage(chosen[2][stack:], rng)
        return file_of(coder, packed, header)

    expected = [image for x in originals for image in x]
    # with another table, other images may be what was meant: sizes and numbers are only there
    counts = run(CASES // 4, coder, None if part == "table" else expected, make, seed=1)
    assert counts["whole"] < CASES // 4 * (0.3 if part == "header" else 0.7)


def repacked(record, rng):
    """Return damaged JSON deflated, or damaged deflated JSON."""
    packed = record.packed()
    if rng.integers(4) == 0:
        return damage(packed, rng)
    return zlib.compress(damage(zlib.decompress(packed), rng))


def with_digest(payload):
    """Put the right digest behind what the head of a group's bytes says is its table."""
    if len(payload) < _HEAD.size:
        return payload
    _, _, batches, decisions = _HEAD.unpack_from(payload)
    end = _HEAD.size + 4 * batches + CONTENT * (batches + 1) + 8 * decisions
    return payload[:end] + digest(payload[:end]) + payload[end + 16 :]
