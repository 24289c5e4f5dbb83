"""What people bring in arrays, tables and tar files: names, empty cells, hostile headers."""

import io
import resource
import struct
import tarfile
import zipfile
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import variational_diffusion as vd
from sharded import image, npy, png, write_parquet, write_shards, write_tar
from variational_diffusion.data import Split
from variational_diffusion.data.decoding import Decoded
from variational_diffusion.data.folder import shard_files
from variational_diffusion.data.loader import training_batches
from variational_diffusion.errors import InputError

pytestmark = pytest.mark.usefixtures("offline")


def read_all(dataset):
    parts = {id(split.source): split.source for split in dataset.splits.values()}
    return np.concatenate([Split(s, np.arange(len(s))).read() for s in parts.values()])


def names_of(dataset):
    source = dataset.splits["train"].source
    assert isinstance(source, Decoded)
    return [stored.name for stored in source.stored(np.arange(len(source)))]


@pytest.mark.parametrize(
    "name", ["x[1]", "x*", "x?", "[a-z]", "x{1,2}", "a b", "é", "#1", "x]", "!x", "%20"]
)
@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_path_is_a_path_and_not_a_pattern(tmp_path, name, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place, value in ((f"{name}.{kind}", 7), (f"x1.{kind}", 1), (f"b.{kind}", 2)):
        contents = [png(image(value))] * 4
        if kind == "tar":
            write_tar(tmp_path / place, {f"{i}.png": c for i, c in enumerate(contents)})
        else:
            write_parquet(tmp_path / place, contents)
    assert (read_all(vd.open_dataset(f"./{name}.{kind}")) == 7).all()
    (tmp_path / name).mkdir()
    (tmp_path / f"{name}.{kind}").rename(tmp_path / name / f"in{name}.{kind}")
    assert (read_all(vd.open_dataset(f"./{name}")) == 7).all()


def test_two_colons_in_a_path_are_one_line(tmp_path):
    write_parquet(tmp_path / "a::b.parquet", [png(image(1))] * 4)
    with pytest.raises(InputError, match=r"'::' stands in its path; rename"):
        vd.open_dataset(tmp_path / "a::b.parquet")


@pytest.mark.parametrize("kind", ["parquet", "tar"])
@pytest.mark.parametrize("streaming", [False, True])
def test_other_files_among_shards_are_named_and_left_out(tmp_path, kind, streaming):
    write_shards(tmp_path, kind, [12, 12])
    for name in ("_SUCCESS", "labels.csv", "test_notes.txt", "x.PNG.bak"):
        (tmp_path / name).write_text("x")
    options = {"streaming": True, "hold_out": 2, "shuffle_buffer": 4} if streaming else {}
    found = vd.open_dataset(tmp_path, **options)
    assert (
        f"4 files that are no .{kind} files ignored: _SUCCESS, labels.csv, test_notes.txt, …"
        in (found.notes)
    )
    if not streaming:
        assert sorted(read_all(found)[:, 0, 0, 0]) == list(range(24))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-0.tar", "train"),
        ("a.tar", "train"),
        ("test.tar", "test"),
        ("x_test_0.tar", "test"),
        ("dev/0.tar", "validation"),
        ("val0.tar", "validation"),
        ("evaluation/0.tar", "test"),
        ("contest.tar", "train"),
        ("latest/0.tar", "train"),
        ("valley.tar", "train"),
        ("train/test.tar", "train"),
    ],
)
def test_files_are_of_the_split_that_their_path_speaks_of(tmp_path, name, split):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert shard_files(tmp_path, ".tar") == ({split: [tmp_path / name]}, ())


def test_members_of_one_name_in_two_shards_keep_their_own_colours(tmp_path):
    for folder, channels in (("a", 3), ("b", 1)):
        (tmp_path / folder).mkdir()
        members = {f"{i}.png": png(image(9 + i, channels=channels)) for i in range(3)}
        write_tar(tmp_path / folder / "0.tar", members)
    found = vd.open_dataset(tmp_path)
    assert found.shape == (3, 4, 6)
    assert found.notes == ("3 grey images read with 3 channels",)
    names = names_of(found)
    assert names == [f"{f}/0.tar:{i}.png" for f in "ab" for i in range(3)]


def test_of_members_of_one_name_in_one_tar_file_the_last_counts(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, value in [("0.png", 1), ("1.png", 2), ("2.png", 3), ("3.png", 4), ("0.png", 5)]:
            info, content = tarfile.TarInfo(name), png(image(value))
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    found = vd.open_dataset(tmp_path / "x.tar")
    assert sorted(read_all(found)[:, 0, 0, 0]) == [2, 3, 4, 5]
    assert len(set(names_of(found))) == 4


def test_dots_in_names_of_members_have_a_way_out(tmp_path):
    members = {f"v1.{i}.png": png(image(i)) for i in range(4)}
    members |= {f"v1.{i}.cls": str(i % 2).encode() for i in range(4)}
    write_tar(tmp_path / "x.tar", members)
    message = r"'v1' is an example both as \.0\.png and as \.1\.png; .*, with --column \.png$"
    with pytest.raises(InputError, match=message):
        vd.open_dataset(tmp_path / "x.tar")
    found = vd.open_dataset(tmp_path / "x.tar", column=".png", condition="label")
    split = found.splits["train"]
    values = Split(split.source, np.arange(4)).read()[:, 0, 0, 0]
    assert values.tolist() == [0, 1, 2, 3]
    assert [found.labels[k] for k in split.conditions] == ["0", "1", "0", "1"]
    write_tar(tmp_path / "y.tar", {"a.png": png(image(1)), "a.seg.png": png(image(2))})
    with pytest.raises(InputError, match="choose with --column"):  # a field is a field
        vd.open_dataset(tmp_path / "y.tar")


EMPTY = {
    "images": [*[{"bytes": png(image(i)), "path": None} for i in range(7)], None],
    "first": [None, *[{"bytes": png(image(i)), "path": None} for i in range(7)]],
    "no bytes": [*[{"bytes": png(image(i)), "path": None} for i in range(7)], {"bytes": None}],
    "path alone": [
        *[{"bytes": png(image(i)), "path": None} for i in range(7)],
        {"bytes": None, "path": "/etc/passwd"},
    ],
    "plain bytes": [*[png(image(i)) for i in range(7)], None],
    "zero bytes": [*[png(image(i)) for i in range(7)], b""],
    "arrays": [*[image(i, channels=1).tolist() for i in range(7)], None],
    "first array": [None, *[image(i, channels=1).tolist() for i in range(7)]],
    "a null in an array": [*[image(i, channels=1).tolist() for i in range(7)], [[None] * 6] * 4],
    "NaN": [*[image(i, channels=1).astype(float).tolist() for i in range(7)], [[np.nan] * 6] * 4],
    "an empty list": [*[image(i, channels=1).tolist() for i in range(7)], []],
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", EMPTY)
def test_one_empty_cell_costs_one_example(tmp_path, kind, streaming):
    pq.write_table(pa.table({"image": pa.array(EMPTY[kind])}), tmp_path / "x.parquet")
    options = {"levels": 256} if "arr" in kind or "list" in kind else {}
    with pytest.raises(InputError, match=r"'?train image [07]'? .*|.* 1 of|.* are not"):
        vd.open_dataset(tmp_path / "x.parquet", **options)
    if streaming:
        options |= {"streaming": True, "hold_out": 1, "shuffle_buffer": 4}
    found = vd.open_dataset(tmp_path / "x.parquet", skip_damaged=True, **options)
    if not streaming:
        assert "1 damaged examples skipped" in found.notes
        assert sorted(read_all(found)[:, 0, 0, 0]) == list(range(7))
        return
    batches = training_batches(found, 2, seed=0)
    assert all(np.isfinite(np.asarray(next(batches))).all() for _ in range(12))


def test_arrays_that_are_not_finite_are_damaged_examples_of_a_stream(tmp_path):
    contents = [np.full((4, 6), i, np.float32) for i in range(40)]
    for i in (30, 31, 35):
        contents[i][2, 3] = [np.nan, np.inf, -np.inf][i % 3]
    write_tar(tmp_path / "x.tar", {f"{i:02}.npy": npy(x) for i, x in enumerate(contents)})
    options = {"streaming": True, "hold_out": 2, "shuffle_buffer": 10}
    batches = training_batches(vd.open_dataset(tmp_path / "x.tar", **options), 4, seed=0)
    with pytest.raises(InputError, match=r"'x\.tar:3\d\.npy' holds values that are not finite"):
        list(islice(batches, 40))
    found = vd.open_dataset(tmp_path / "x.tar", skip_damaged=True, **options)
    batches = training_batches(found, 4, seed=0)
    seen = np.concatenate([np.asarray(next(batches)) for _ in range(40)])
    assert np.isfinite(seen).all()
    assert len(np.unique(seen)) == 40 - 3 - 4


def test_a_tar_file_that_was_cut_short_costs_its_last_member(tmp_path):
    write_tar(tmp_path / "x.tar", {f"{i}.npy": npy(np.full((40, 40), i, "u1")) for i in range(6)})
    content = (tmp_path / "x.tar").read_bytes()
    end = content.index(b"5.npy") + 512 + 700
    (tmp_path / "x.tar").write_bytes(content[:end])
    with pytest.raises(InputError, match=r"ends within '5\.npy'; copy .*--skip-damaged"):
        vd.open_dataset(tmp_path / "x.tar")
    found = vd.open_dataset(tmp_path / "x.tar", skip_damaged=True)
    assert sorted(read_all(found)[:, 0, 0, 0]) == [0, 1, 2, 3, 4]


def number(value):
    """A size as tar writes large ones."""
    return b"\x80" + value.to_bytes(11, "big")


def tar_header(name, size, kind=b"0"):
    head = name.ljust(100, b"\0") + b"0000644\0" + bytes(16) + size + b"00000000000\0"
    head = head.ljust(148, b"\0") + b" " * 8 + kind + bytes(100) + b"ustar  \0"
    head = head.ljust(512, b"\0")
    return head[:148] + b"%06o\0 " % sum(head) + head[156:]


def pax(*records):
    text = b""
    for record in records:
        length = len(record) + 3
        length += len(str(length))
        text += b"%d %s\n" % (length, record)
    body = text.ljust(-(-len(text) // 512) * 512, b"\0")
    return tar_header(b"pax", b"%011o\0" % len(text), b"x") + body


HOSTILE = {
    "2^63": tar_header(b"x.png", number(2**63)),
    "2^80": tar_header(b"x.png", number(2**80)),
    "2^62": tar_header(b"x.png", number(2**62)),
    "2^40": tar_header(b"x.png", number(2**40)),
    "sparse size": pax(b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"GNU.sparse.realsize=9" * 9)
    + tar_header(b"x.png", b"%011o\0" % 512)
    + b"9" * 512,
    "sparse map": pax(b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"GNU.sparse.name=x.png")
    + tar_header(b"x.png", b"%011o\0" % 512)
    + b"99999999999999999999\n" * 24
    + bytes(8),
    "sparse 0.1": pax(b"GNU.sparse.map=a,b,c", b"GNU.sparse.size=9")
    + tar_header(b"x.png", b"%011o\0" % 512)
    + bytes(512),
    "sparse 0.0": pax(b"GNU.sparse.offset=0", b"GNU.sparse.numbytes=x", b"GNU.sparse.size=1")
    + tar_header(b"x.png", b"%011o\0" % 512)
    + bytes(512),
    "old sparse": tar_header(b"x.png", b"%011o\0" % 512, b"S") + bytes(512),
    "pax size": pax(b"size=99999999999999999999") + tar_header(b"x.png", b"%011o\0" % 0),
    "pax of 2^62": tar_header(b"pax", number(2**62), b"x"),
    "long name of 2^40": tar_header(b"././@LongLink", number(2**40), b"L"),
    "negative": tar_header(b"x.png", b"\xff" * 12),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("skip_damaged", [False, True])
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_tar_headers_get_a_line(tmp_path, kind, skip_damaged):
    good = io.BytesIO()
    with tarfile.open(fileobj=good, mode="w") as archive:
        for i in range(4):
            info, content = tarfile.TarInfo(f"{i}.png"), png(image(i))
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    end = good.getvalue().rstrip(b"\0")
    end = end.ljust(-(-len(end) // 512) * 512, b"\0")
    (tmp_path / "x.tar").write_bytes(end + HOSTILE[kind] + bytes(1024))
    problem = "x.tar"
    try:
        found = vd.open_dataset(tmp_path / "x.tar", skip_damaged=skip_damaged)
        assert set(read_all(found)[:, 0, 0, 0]) >= {0, 1, 2, 3}
    except InputError as error:
        problem = str(error)
    assert "x.tar" in problem
    assert "\n" not in problem
    assert len(problem) < 400


def npy_head(text):
    text = text.encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text


def with_shape(shape, kind="'<u1'"):
    return f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}"


HEADS = {
    "True": with_shape("(True, 4)"),
    "False": with_shape("(4, False)"),
    "negative": with_shape("(-1, 4)"),
    "2^63": with_shape("(9223372036854775807, 4)"),
    "more": with_shape("(99999999999999999999999, 4)"),
    "float": with_shape("(4.0, 4)"),
    "text": with_shape("'abc'"),
    "nested": "[" * 9000,
    "nested shape": with_shape("(" * 900 + ")" * 900),
    "digits": with_shape("(" + "9" * 5000 + ",)"),
    "minus": "-" * 9000 + "1",
    "objects": with_shape("(4,)", "'|O'"),
    "records": with_shape("(4, 4)", "[('a', '<f4')]"),
    "none": "",
    "no dictionary": "5",
    "expression": with_shape("(4,)", "'x' * 10"),
    "dates": with_shape("(2, 4)", "'<M8[s]'"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", HEADS)
def test_hostile_headers_of_arrays_get_a_line(tmp_path, kind):
    content = npy_head(HEADS[kind]) + bytes(64)
    (tmp_path / "x.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", content)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(InputError, match=rf"^{name}") as info:
            vd.open_dataset(tmp_path / name)
        assert len(str(info.value)) < 400
        assert "\n" not in str(info.value)
    members = {f"{i}.npy": npy(np.full((4, 4), i, np.uint8)) for i in range(4)}
    write_tar(tmp_path / "x.tar", {**members, "4.npy": content})
    message = r"'x\.tar:4\.npy' (is damaged or no file of numpy|holds \S+)"
    with pytest.raises(InputError, match=message):
        vd.open_dataset(tmp_path / "x.tar")
    if kind in ("records", "dates"):  # whole, and of another kind
        return
    found = vd.open_dataset(tmp_path / "x.tar", skip_damaged=True)
    assert sorted(read_all(found)[:, 0, 0, 0]) == [0, 1, 2, 3]


def peak():
    """The most memory that this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_an_npz_that_claims_much_more_than_it_holds_takes_no_memory(tmp_path):
    head = io.BytesIO()
    shape = (20_000, 3, 256, 160)
    np.lib.format.write_array_header_1_0(
        head, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    with (
        zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x.npy", "w", force_zip64=True) as file,
    ):
        file.write(head.getvalue())
        for _ in range(300):
            file.write(bytes(8 * 1024 * 1024))
    before = peak()
    with pytest.raises(InputError, match=r"x\.npz\[x\] has 2,\d+,\d+,\d+ bytes, packed .*unzip"):
        vd.open_dataset(tmp_path / "x.npz")
    assert peak() - before < 1 << 28
    np.savez_compressed(tmp_path / "small.npz", x=np.zeros((100, 8, 8), np.uint8))
    assert vd.open_dataset(tmp_path / "small.npz").shape == (1, 8, 8)


def bomb_of_lists(path):
    flat = pa.array(np.zeros(1000 * 65_536, np.uint8))
    table = pa.table(
        {"x": pa.ListArray.from_arrays(np.arange(1001, dtype=np.int32) * 65_536, flat)}
    )
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for _ in range(6):
            writer.write_table(table)


def bomb_of_pictures(path):
    content = io.BytesIO()
    Image.fromarray(np.zeros((1000, 1000, 3), np.uint8)).save(content, "bmp")
    table = pa.table({"x": [content.getvalue()] * 400})
    pq.write_table(table, path, compression="zstd", dictionary_pagesize_limit=1 << 30)


@pytest.mark.parametrize("bomb", [bomb_of_lists, bomb_of_pictures])
def test_a_table_that_claims_much_more_than_it_holds_takes_no_memory(tmp_path, bomb):
    bomb(tmp_path / "x.parquet")
    assert (tmp_path / "x.parquet").stat().st_size < 10_000
    before = peak()
    with pytest.raises(InputError, match=r"x\.parquet' has [\d,]+ bytes and claims 1,[\d,]+"):
        vd.open_dataset(tmp_path / "x.parquet")
    assert peak() - before < 1 << 29
