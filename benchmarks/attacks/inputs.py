"""Inputs made to hurt: claims of 2⁶³ entries, endless nesting, huge numbers, names with escapes.

Their digests are right where the format has digests, so that what reads them has to find it.
"""

from __future__ import annotations

import copy
import io
import json
import shutil
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image

from attacks import reading
from attacks.corruption import TOGETHER
from attacks.isolation import isolated_each
from attacks.reading import KINDS, Kind, opened
from attacks.tally import Share, Tally
from variational_diffusion.cli import run as vdm
from variational_diffusion.config import digest_of_json
from variational_diffusion.storage.tensors import read_tensors, write_tensors

NUMBERS = (0, -1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 10**30)
"""Sizes that files claim."""
DEEP = 100_000
VALUES = (
    *("10" * 2500, "NaN", "Infinity", "-1e400", "true", "null", '""', "[]", "{}", "-1", "0"),
    *("9223372036854775808", "1e308", '"\\u0000"', '"\\ud800"', '"\\u001b]0;x\\u0007"'),
    *("[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP, "[[3000]]", "[1, [2, [3]]]"),
)
"""Values in JSON, as text."""
NAMES = (
    *("\x1b[31mred", "\x1b]0;title\x07", "bell\x07", "two\nlines", "tab\there", "back\x08\x08"),
    *("\u202egnp", "\u2066x\u2069", "\ufeffx", "=cmd|' C'!A1", "+1", "@x", "a|b", "`id`"),
    *("<script>alert(1)<script>", "$(id)", "back\\slash", " ", "..x", "~x", "-rf", "*", "[1]"),
    *("x" * 200, "\udce9", "e\u0301", "\x7f", "\x85", "\u2028", "%s", "{0}", "#", "'", '"'),
)
"""Names of files, without their extensions."""


class Hostile(NamedTuple):
    """A kind of hostile input: makes one in a folder; returns what reads it."""

    name: str
    make: Callable[[np.random.Generator, Path, Path], Callable[[], Any]]


def attack(base: Path, place: Path, share: Share) -> Tally:
    """Read hostile inputs until the time is over; arguments as in `corruption.attack`."""
    tally = Tally("inputs")
    for cases in share.batches(TOGETHER):
        kinds = [HOSTILE[case % len(HOSTILE)] for case in cases]
        works = []
        for case, kind in zip(cases, kinds, strict=True):
            here = place / str(case)
            here.mkdir(parents=True)
            works.append(kind.make(np.random.default_rng([share.seed, 3, case]), here, base))
        outcomes = isolated_each(works, seconds=reading.SECONDS)
        for case, kind, outcome in zip(cases, kinds, outcomes, strict=True):
            what = outcome.fault()
            text = f"{outcome.printed}{outcome.said}"
            if what is None and isinstance(outcome.value, tuple) and "\n" in str(outcome.value[1]):
                what = "a message of several lines"
            if what is None and any(map(_acts, text)):
                what = "control characters in what is printed"
            tally.memory = max(tally.memory, outcome.memory)
            refused = outcome.code == 2 or "refused" in str(outcome.value)[:12]
            tally.answers["refused" if refused else "read"] += 1
            tally.add(kind.name, case, what, f"{text}\n{outcome.value}")
            shutil.rmtree(place / str(case), ignore_errors=True)
    return tally


def _acts(char: str) -> bool:
    """Whether a terminal may do something else than to show a character."""
    return char != "\n" and unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp")


def _number(rng: np.random.Generator) -> int:
    return NUMBERS[int(rng.integers(len(NUMBERS)))]


def _reader(path: Path, read: Callable[[Path], Any] = opened) -> Callable[[], Any]:
    return reading.reader(Kind("", "", "", read), path)


def _header(rng: np.random.Generator) -> bytes:
    """Return the beginning of an .npy file that claims too much, or nonsense."""
    shapes = (
        f"({_number(rng)}, 16, 16)",
        f"(16, {_number(rng)}, {_number(rng)})",
        *("(True, 16, 16)", "(2.5, 16)", "(" * 2000 + ")" * 2000, f"({'1, ' * 5000})", "'abc'"),
        *("None", "(-1, 256)", f"({'9' * 5000},)", "(10, 10, 10)", "{}", "1e9"),
    )
    kinds = ("'<u1'", "'|O'", "'<f8'", "'|V99999999999'", "'<U1000000000'", "[('a', '<u1')]", "3")
    shape, kind = shapes[int(rng.integers(len(shapes)))], kinds[int(rng.integers(len(kinds)))]
    if rng.integers(2):
        kind = kinds[0]
    text = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text


def _npy(rng: np.random.Generator, here: Path, base: Path) -> Callable[[], Any]:
    (here / "a.npy").write_bytes(_header(rng) + rng.bytes(4096))
    return _reader(here / "a.npy")


def _npz(rng: np.random.Generator, here: Path, base: Path) -> Callable[[], Any]:
    """Deflated zeros, of which 1 byte is 1,000, below a header that claims more."""
    with zipfile.ZipFile(here / "a.npz", "w", zipfile.ZIP_DEFLATED) as file:
        for _ in range(int(rng.integers(1, 4))):
            name = NAMES[int(rng.integers(len(NAMES)))].encode(errors="replace").decode()
            file.writestr(f"{name}.npy", _header(rng) + bytes(int(rng.choice([10, 2**25]))))
    return _reader(here / "a.npz")


def _png(rng: np.random.Generator, here: Path, base: Path) -> Callable[[], Any]:
    """A claim of any size, and zeros for it if it is not too large, with right checksums."""
    width, height = (int(rng.choice([1, 8, 30_000, 2**31 - 1, 2**31, 2**32 - 1])) for _ in "ab")
    depth, colour = int(rng.choice([1, 8, 16, 3])), int(rng.choice([0, 2, 3, 6, 9]))
    rows = bytes(min(2**25, width * height))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    data = b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    )
    data += chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(2**25))) if rng.integers(3) == 0 else b""
    data += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    for number in range(3):
        (here / f"{number}.png").write_bytes(data)
    return _reader(here)


def _picture(rng: np.random.Generator, here: Path, base: Path) -> Callable[[], Any]:
    """Fields of headers of every format, replaced by sizes."""
    ends = sorted(reading.PICTURES)
    end = ends[int(rng.integers(len(ends)))]
    shutil.copytree(base / f"images-{end}", here / "images")
    for path in (here / "images").iterdir():
        data = bytearray(path.read_bytes())
        for _ in range(int(rng.integers(1, 4))):
            size = int(rng.choice([2, 4, 8]))
            place = int(rng.integers(min(len(data), 160))) // 2 * 2
            value = _number(rng) % 2 ** (8 * size)
            data[place : place + size] = value.to_bytes(size, str(rng.choice(["little", "big"])))
        path.write_bytes(data)
        if rng.integers(2):
            break
    return _reader(here / "images")


def _idx(rng: np.random.Generator, here: Path, base: Path) -> Callable[[], Any]:
    sizes = [_number(rng) % 2**32 if rng.integers(2) else 16 for _ in range(3)]
    kind = int(rng.choice([0x803, 0x803, 0x8FF, 0xE03, 0x801]))
    for name in ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte"):
        (here / name).write_bytes(struct.pack(">IIII", kind, *sizes) + rng.bytes(5000))
    return _reader(here)


def _tar(rng: np.random.Generator, here: Path, base: Path) -> Callable[[], Any]:
    """Sizes, links, devices and sparse maps in headers of every kind, and names."""
    with tarfile.open(
        here / "a.tar", "w", format=int(rng.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    ) as tar:
        for number in range(6):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(buffer, "PNG")
            name = f"{number}.png"
            if rng.integers(3) == 0:
                name = f"{'../' * int(rng.integers(3))}{NAMES[int(rng.integers(len(NAMES)))]}.png"
            member = tarfile.TarInfo(name)
            member.size = len(buffer.getvalue())
            if rng.integers(3) == 0:
                headers = ("size", "path", "GNU.sparse.map", "GNU.sparse.size", "linkpath", "mtime")
                key = headers[int(rng.integers(len(headers)))]
                number_ = str(_number(rng))
                member.pax_headers = {key: number_, "GNU.sparse.major": "1"}
            if rng.integers(4) == 0:
                kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, b"S")
                member.type = kinds[int(rng.integers(len(kinds)))]
                member.linkname = "/etc/passwd"
            tar.addfile(member, io.BytesIO(buffer.getvalue()))
    data = bytearray((here / "a.tar").read_bytes())
    if rng.integers(2):  # the size of the first member, in base 256
        data[124:136] = b"\x80" + max(0, _number(rng) % 2**80).to_bytes(11, "big")
        data[148:156] = b" " * 8
        data[148:156] = b"%06o\0 " % sum(data[:512])
        (here / "a.tar").write_bytes(data)
    return _reader(here / "a.tar")


def _parquet(rng: np.random.Generator, here: Path, base: Path) -> Callable[[], Any]:
    """Cells of every type in a column that is read, and names of columns."""
    n = int(rng.choice([1, 40, 100_000]))
    columns: tuple[Callable[[], Any], ...] = (
        lambda: pyarrow.array([[0] * 64] * n, pyarrow.list_(pyarrow.uint8())),
        lambda: pyarrow.array([None] * n, pyarrow.list_(pyarrow.uint8())),
        lambda: pyarrow.array([[]] * n, pyarrow.list_(pyarrow.float64())),
        lambda: pyarrow.array([[float("nan"), float("inf")]] * n),
        lambda: pyarrow.array([{"bytes": b"\x89PNG", "path": "\x1b[31m"}] * n),
        lambda: pyarrow.array([{"bytes": None, "path": "/etc/passwd"}] * n),
        lambda: pyarrow.array([b""] * n),
        lambda: pyarrow.array([[[1, 2], [3]]] * n),
        lambda: pyarrow.array([[2**63, 2**64 - 1]] * n, pyarrow.list_(pyarrow.uint64())),
        lambda: pyarrow.array(["x" * 100] * n).dictionary_encode(),
    )
    name = NAMES[int(rng.integers(len(NAMES)))] if rng.integers(2) else "image"
    name = name.encode(errors="replace").decode()
    table = {name: columns[int(rng.integers(len(columns)))]()}
    pyarrow.parquet.write_table(pyarrow.table(table), here / "a.parquet")
    return _reader(here / "a.parquet")


def _changed(value: Any, rng: np.random.Generator) -> str:
    """Return a value as JSON with a hostile one in any place of it."""
    mark = "@hostile@"
    value = copy.deepcopy(value)
    inner = value
    while True:
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        key = keys[int(rng.integers(len(keys)))]
        if not isinstance(inner[key], dict | list) or not inner[key] or rng.integers(4) == 0:
            break
        inner = inner[key]
    inner[key] = mark
    return json.dumps(value).replace(f'"{mark}"', VALUES[int(rng.integers(len(VALUES)))])


def _run_config(rng: np.random.Generator, here: Path, base: Path) -> Callable[[], Any]:
    shutil.copytree(base / "run", here / "run")
    path = here / "run" / "config.json"
    path.write_text(_with_digest(_changed(json.loads(path.read_text()), rng)))
    kinds = [kind for kind in KINDS if kind.whole == "run"]
    return _reader(here / "run", kinds[int(rng.integers(len(kinds)))].read)


def _with_digest(text: str) -> str:
    """Return a configuration with a right digest, where it can be read at all."""
    try:
        values = json.loads(text)
        kept = {k: v for k, v in values.items() if k not in ("format", "digest", "identity")}
        return json.dumps(values | {"digest": digest_of_json(kept)})
    except (ValueError, RecursionError, AttributeError, TypeError):
        return text


def _hub_config(rng: np.random.Generator, here: Path, base: Path) -> Callable[[], Any]:
    shutil.copytree(base / "hub", here / "hub")
    path, weights = here / "hub" / "config.json", here / "hub" / "model.safetensors"
    text = _changed(json.loads(path.read_text()), rng)
    path.write_text(text)
    with suppress(ValueError, RecursionError, TypeError):
        digest = digest_of_json(json.loads(text))
        write_tensors(weights, read_tensors(weights)[0], {"config": digest})
    read = next(kind.read for kind in KINDS if kind.name == "export: weights")
    return _reader(here / "hub", read)


def _line(rng: np.random.Generator, here: Path, base: Path) -> Callable[[], Any]:
    """A line of a journal with a right checksum."""
    shutil.copytree(base / "run", here / "run")
    name = str(rng.choice(["metrics", "evaluations"]))
    path = here / "run" / f"{name}.jsonl"
    lines = path.read_text().splitlines()
    values = json.loads(lines[int(rng.integers(len(lines)))])
    values.pop("crc32")
    text = _changed(values, rng)
    line = f'{text[:-1]}, "crc32": {zlib.crc32(text.encode(errors="replace"))}}}'
    if rng.integers(3) == 0:
        line = VALUES[int(rng.integers(len(VALUES)))]
    lines.insert(int(rng.integers(len(lines) + 1)), line)
    path.write_text("\n".join(lines) + "\n")
    read = next(kind.read for kind in KINDS if kind.name == f"run: {name}")
    return _reader(here / "run", read)


def _tensors(rng: np.random.Generator, here: Path, base: Path) -> Callable[[], Any]:
    """Tensors of other names, types, shapes and values, with right digests; or bare headers."""
    shutil.copytree(base / "run", here / "run")
    states = sorted((here / "run" / "state").glob("*.safetensors"))
    path = [here / "run" / "ema.safetensors", states[-1]][int(rng.integers(2))]
    if rng.integers(3) == 0:
        headers = (
            b"[" * DEEP,
            b'{"a":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}' % (2**62, 2**63),
            b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[4,0]}}',
            b'{"__metadata__":{"format":1}}',
        )
        header = headers[int(rng.integers(len(headers)))]
        size = len(header) if rng.integers(2) else _number(rng) % 2**64
        path.write_bytes(struct.pack("<Q", size) + header)
    else:
        tensors, metadata = read_tensors(path)
        names = sorted(tensors)
        name = names[int(rng.integers(len(names)))]
        changes: tuple[Callable[[torch.Tensor], Any], ...] = (
            lambda x: x.double(),
            lambda x: x[None],
            lambda x: x.reshape(-1)[:0],
            lambda x: torch.zeros(2**22),
            lambda x: None,
            lambda x: torch.zeros(x.shape, dtype=torch.int64),
        )
        value = changes[int(rng.integers(len(changes)))](tensors.pop(name))
        if value is not None:
            tensors[name if rng.integers(2) else f"{name}.\x1b[31m"] = value
        if rng.integers(3) == 0:
            keys = sorted(metadata.keys() - {"format", "digest"})
            key = keys[int(rng.integers(len(keys)))]
            metadata[key] = VALUES[int(rng.integers(len(VALUES)))]
        write_tensors(path, tensors, metadata)
    read = next(
        k.read for k in KINDS if k.name == ("run: ema" if "ema" in path.name else "run: states")
    )
    return _reader(here / "run", read)


def _names(rng: np.random.Generator, here: Path, base: Path) -> Callable[[], Any]:
    """A folder of images with names that a terminal would obey."""
    folder = here / "photos"
    folder.mkdir()
    for number in range(5):
        name = NAMES[int(rng.integers(len(NAMES)))]
        pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
        path = folder / f"{name}{number}.png"
        Image.fromarray(pixels).save(path)
        if rng.integers(4) == 0:
            path.write_bytes(b"no image")
    run, out, quiet = str(base / "run"), str(here / "out"), ["--threads", "1"]
    commands = (
        ["data", str(folder), *(["--skip-damaged"] if rng.integers(2) else [])],
        ["score", run, str(folder), "--score", "bits", "--table", f"{out}.csv", *quiet],
        ["evaluate", run, str(folder), "--table", f"{out}.csv", *quiet],
        ["compress", run, str(folder), "--steps", "3", "--out", f"{out}.vdmz", *quiet],
    )
    chosen = commands[int(rng.integers(len(commands)))]
    if rng.integers(2):
        chosen = [*chosen, "--json"]
    return lambda: vdm(chosen)


HOSTILE = (
    *(Hostile("npy", _npy), Hostile("npz", _npz), Hostile("png", _png), Hostile("idx", _idx)),
    *(Hostile("headers of images", _picture), Hostile("tar", _tar), Hostile("parquet", _parquet)),
    *(Hostile("run: config.json", _run_config), Hostile("export: config.json", _hub_config)),
    *(Hostile("run: lines", _line), Hostile("run: tensors", _tensors), Hostile("names", _names)),
)
