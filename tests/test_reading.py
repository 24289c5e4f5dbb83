"""What people bring in a folder of images: what is read, changed and left out."""

import io
import os
import re
import socket
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

import variational_diffusion as vd
from variational_diffusion.cli import run
from variational_diffusion.config import DataConfig
from variational_diffusion.data import Split, changes, doubts, formats, open_originals
from variational_diffusion.data.examined import examined
from variational_diffusion.errors import InputError
from variational_diffusion.images.pictures import animation, save_image, save_sheet

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
RGB = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
OTHER = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
FOUR = RNG.integers(0, 256, (8, 8, 4), dtype=np.uint8)
DEEP = RNG.integers(0, 65_536, (8, 8), dtype=np.uint16)
PLAIN = Image.fromarray(RGB)


def profile(gamma):
    """A profile with the colours of sRGB and another curve, made of the one that LCMS makes."""
    icc = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    start = icc.index(b"para")
    icc[start : start + 12] = b"para" + bytes(4) + struct.pack(">HH", 0, 0)
    icc[start + 12 : start + 16] = struct.pack(">i", int(gamma * 65_536))
    return bytes(icc)


def big_endian(path):
    Image.frombytes("I;16B", (8, 8), DEEP.astype(">u2").tobytes()).save(path)


def tiled(path, order="<", dtype="u2"):
    """A TIFF of one tile of 16×16 values, of which 8×8 are the image: pillow writes none."""
    values = np.zeros((16, 16), order + dtype)
    values[:8, :8] = DEEP if dtype == "u2" else GREY
    tags = [(256, 8), (257, 8), (258, values.itemsize * 8), (259, 1), (262, 1), (277, 1)]
    tags += [(322, 16), (323, 16), (324, 8 + 2 + 12 * 10 + 4), (325, values.nbytes)]
    head = b"II*\0" if order == "<" else b"MM\0*"
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags)
    start = struct.pack(order + "I", 8) + struct.pack(order + "H", len(tags))
    Path(path).write_bytes(head + start + entries + bytes(4) + values.tobytes())


def deep_colour_ppm(path):
    values = RNG.integers(0, 65_536, (8, 8, 3), dtype=np.uint16)
    Path(path).write_bytes(b"P6\n8 8\n65535\n" + values.astype(">u2").tobytes())


def turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    PLAIN.save(path, exif=exif)


def saved(image, several=False, **options):
    def save(path):
        more = {"save_all": True, "append_images": [Image.fromarray(OTHER)]} if several else {}
        image.copy().save(path, **options, **more)  # pillow leaves options in what it saves

    return save


LOSSY = {
    "pages.tif": (saved(PLAIN, several=True), "hold several pictures", "several pictures"),
    "film.webp": (saved(PLAIN, lossless=True, several=True), "hold several", "several pictures"),
    "film.gif": (saved(PLAIN, several=True), "hold several", "several pictures"),
    "film.png": (saved(PLAIN, several=True), "hold several", "several pictures"),
    "film.avif": (saved(PLAIN, several=True), "hold several", "several pictures"),
    "phone.jpg": (saved(PLAIN, format="MPO", several=True), "hold several", "several pictures"),
    "sizes.ico": (saved(PLAIN, sizes=[(8, 8), (4, 4)]), "hold several", "several pictures"),
    "print.jpg": (saved(Image.fromarray(FOUR, "CMYK")), "CMYK", "colours for print"),
    "print.tif": (saved(Image.fromarray(FOUR, "CMYK")), "CMYK", "colours for print"),
    "alpha.png": (saved(Image.fromarray(FOUR)), "alpha put on white", "transparency"),
    "palette.png": (
        saved(PLAIN.quantize(16), transparency=bytes([0] + [255] * 15)),
        "alpha put on white",
        "transparency",
    ),
    "key.png": (
        saved(PLAIN, transparency=tuple(map(int, RGB[0, 0]))),
        "alpha put on white",
        "transparency",
    ),
    "grey key.png": (
        saved(Image.fromarray(DEEP), transparency=int(DEEP[0, 0])),
        "transparent value read without",
        "transparent value",
    ),
    "deep.ppm": (deep_colour_ppm, "more than 8 bits", "more than 8 bits"),
    "wide.png": (saved(PLAIN, icc_profile=profile(1.0)), "colour profile", "colour profile"),
    "wide.jpg": (saved(PLAIN, icc_profile=profile(1.8)), "colour profile", "colour profile"),
    "wide.webp": (saved(PLAIN, icc_profile=profile(1.8)), "colour profile", "colour profile"),
}
"""Name of a file → how it is made, what vdm data notes, why vdm compress refuses it."""

KEPT = {
    "plain.png": (saved(PLAIN), None),
    "srgb.png": (
        saved(
            PLAIN,
            icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        ),
        None,
    ),
    "damaged profile.png": (saved(PLAIN, icc_profile=b"no profile"), None),
    "palette.png": (saved(PLAIN.quantize(16)), "palette read as their colours"),
    "opaque.png": (saved(PLAIN.convert("RGBA")), "alpha put on white"),
    "turned.webp": (turned, "turned upright"),
    "grey.png": (saved(Image.fromarray(GREY)), None),
    "big endian.tif": (big_endian, None),
    "little endian.tif": (saved(Image.fromarray(DEEP)), None),
    "tiled.tif": (tiled, None),
    "tiled big endian.tif": (lambda path: tiled(path, ">"), None),
    "tiled 8.tif": (lambda path: tiled(path, "<", "u1"), None),
    "deep.jp2": (saved(Image.fromarray(DEEP), irreversible=False), None),
    "bilevel.png": (saved(Image.fromarray(GREY > 127)), None),
}
"""The same for what comes back as it was."""


def folder_of(tmp_path, name, make, n=4):
    stem, suffix = os.path.splitext(name)
    for i in range(n):
        make(tmp_path / f"{stem}{i}{suffix}")
    return tmp_path


def read_all(dataset):
    source = dataset.splits["train"].source
    return Split(source, np.arange(len(source))).read()


@pytest.mark.parametrize("name", LOSSY)
def test_what_reading_loses_is_noted_and_refused_by_compress(tmp_path, name):
    make, note, loss = LOSSY[name]
    folder = folder_of(tmp_path, name, make)
    found = vd.open_dataset(folder)
    assert any(note in line for line in found.notes), found.notes
    with pytest.raises(InputError, match=rf"0\.\w+' has .*{loss}.*: it would not come back as"):
        open_originals(folder, DataConfig(source="x"), (3, 8, 8))


@pytest.mark.parametrize("name", KEPT)
def test_what_reading_keeps_is_exact(tmp_path, name):
    make, note = KEPT[name]
    folder = folder_of(tmp_path, name, make)
    found = vd.open_dataset(folder)
    assert [line for line in found.notes if note is None or note not in line] == []
    assert bool(found.notes) == (note is not None)
    originals = open_originals(folder, DataConfig(source="x"), found.shape)
    assert originals.mode is not None
    with Image.open(next(folder.iterdir())) as image:
        expected = np.asarray(image.convert("RGB") if image.mode in ("P", "RGBA") else image)
    read = originals.read(np.arange(1))[0]
    if "turned" in name:
        expected = np.rot90(expected, -1)
    assert np.array_equal(np.moveaxis(read, 0, -1).squeeze(), expected)


def test_every_change_is_seen_by_a_file_above(tmp_path):
    noted = set()
    for i, (name, (make, *_)) in enumerate([*LOSSY.items(), *KEPT.items()]):
        (tmp_path / str(i)).mkdir()
        folder = folder_of(tmp_path / str(i), name, make)
        for channels in ("auto", "grey", "rgba"):
            try:
                noted |= set(vd.open_dataset(folder, channels=channels).notes)
            except InputError:
                assert channels == "rgba"  # 16 bits
    for change in changes.CHANGES:
        tail = change.note.rpartition("}")[2].strip() or change.note[:30]
        assert any(tail in note for note in noted), change.note


def test_pages_and_frames_are_examples_if_asked_for(tmp_path):
    saved(PLAIN, several=True)(tmp_path / "a.tif")
    saved(PLAIN, lossless=True, several=True)(tmp_path / "b.webp")
    PLAIN.save(tmp_path / "c.png")
    found = vd.open_dataset(tmp_path, frames="each")
    assert found.notes == ()
    first, second = RGB.transpose(2, 0, 1), OTHER.transpose(2, 0, 1)
    assert np.array_equal(read_all(found), np.stack([first, second, first, second, first]))
    originals = open_originals(tmp_path, DataConfig(source="x", frames="each"), (3, 8, 8))
    names = ["a.tif/000", "a.tif/001", "b.webp/000", "b.webp/001", "c.png"]
    assert originals.names(np.arange(5)) == names


def test_heic_is_read_with_the_package_and_named_without(tmp_path, monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    assert ".heic" in formats.extensions()
    heif.from_pillow(PLAIN).save(tmp_path / "0.heic")
    for i in range(1, 4):
        PLAIN.save(tmp_path / f"{i}.png")
    read = read_all(vd.open_dataset(tmp_path))
    assert np.abs(read[0].astype(int) - read[1]).mean() < 64  # its colours have half the pixels
    without = formats.extensions() - {".heic", ".heif"}
    monkeypatch.setattr(formats, "extensions", lambda: without)
    assert vd.open_dataset(tmp_path).notes == (
        "1 files that are no images ignored: 0.heic",
        "1 of them HEIC: pip install 'variational-diffusion[heif]'",
    )
    for i in range(1, 4):
        (tmp_path / f"{i}.png").unlink()
    with pytest.raises(InputError, match=r"holds no images; 1 files.*0\.heic; 1 of them HEIC: pip"):
        vd.open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *[("x.NEF", "raw"), ("x.dng", "raw"), ("x.dcm", "DICOM"), ("x.nii.gz", "volumes")],
        *[("x.svg", "drawings"), ("x.psd", "layers"), ("x.mp4", "films"), ("x.h5", "arrays")],
        *[("x.exr", "real numbers"), ("x.jxl", "JPEG XL"), ("a.b.zip", "packed")],
    ],
)
def test_files_of_known_other_kinds_are_named_with_the_way_out(tmp_path, name, kind):
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=rf"holds no images; 1 files .*{name}; 1 of them.*{kind}"):
        vd.open_dataset(tmp_path)
    with pytest.raises(InputError, match=rf"{name}' is not read: .*{kind}"):
        vd.open_dataset(tmp_path / name)


def test_the_formats_are_those_that_pillow_has_and_the_table_of_the_docs():
    known = set(Image.OPEN) | {"HEIF"}
    assert set(formats.FORMATS) <= known
    beside = {"BUFR", "EPS", "GRIB", "HDF5", "IMT", "IPTC", "MCIDAS", "MPEG", "PSD", "SPIDER"}
    assert known - set(formats.FORMATS) == beside | {"WMF", "XVTHUMB"}
    ends = [end for entry in formats.FORMATS.values() for end in entry.extensions]
    assert len(ends) == len(set(ends))
    for name, entry in formats.FORMATS.items():
        assert all(Image.registered_extensions().get(end, name) == name for end in entry.extensions)
    docs = Path(__file__).parents[1] / "docs" / "data.md"
    assert formats.table() in docs.read_text()


SPECIAL = {
    "fifo": os.mkfifo,
    "dead link": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
    "empty": lambda path: path.touch(),
    "text": lambda path: path.write_text("no image"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_is_no_file_is_skipped_or_one_line_and_never_waited_for(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    folder_of(Path(), "a.png", saved(PLAIN))
    SPECIAL[kind](Path("x.png"))
    with pytest.raises(InputError, match=r"^'x\.png' (cannot be read: |is no image).*skip-damaged"):
        vd.open_dataset(tmp_path)
    found = vd.open_dataset(tmp_path, skip_damaged=True)
    assert "1 damaged examples skipped" in found.notes
    assert len(read_all(found)) == 4
    with pytest.raises(InputError, match=r"'x\.png'"):
        vd.open_dataset(tmp_path, frames="each")
    assert len(read_all(vd.open_dataset(tmp_path, frames="each", skip_damaged=True))) == 4


@pytest.mark.timeout(60)
@pytest.mark.parametrize("suffix", [".tar", ".parquet"])
def test_a_pipe_among_shards_is_one_line(tmp_path, suffix, offline):
    os.mkfifo(tmp_path / f"x{suffix}")
    with pytest.raises(InputError, match=rf"'x{suffix}' cannot be read: it is no regular file"):
        vd.open_dataset(tmp_path)


def test_each_real_folder_is_read_once(tmp_path):
    for where in ("2023", "2024/deep"):
        (tmp_path / "d" / where).mkdir(parents=True)
        PLAIN.save(tmp_path / "d" / where / "0.png")
    (tmp_path / "beside").mkdir()
    folder_of(tmp_path / "beside", "b.png", saved(PLAIN), 2)
    links = {"a-latest": "2024", "latest": "2024", "deep": "2024/deep", "loop": ".", "up": ".."}
    for name, target in {**links, "b1": "../beside", "b2": "../beside"}.items():
        (tmp_path / "d" / name).symlink_to(target)
    source = vd.open_dataset(tmp_path / "d").splits["train"].source
    names = [stored.name for stored in source.stored(np.arange(len(source)))]
    assert names == ["2023/0.png", "2024/deep/0.png", "b1/b0.png", "b1/b1.png"]


def test_what_vdm_wrote_below_the_data_is_no_data(tmp_path, monkeypatch):
    folder_of(tmp_path, "a.png", saved(PLAIN), 8)
    before = read_all(vd.open_dataset(tmp_path))
    samples = before[:4]
    save_sheet(samples, 256, tmp_path / "samples.png")
    save_sheet(samples, 256, tmp_path / "sheet.webp")
    animation([samples, samples], 256, tmp_path / "film.gif")
    animation([samples, samples], 256, tmp_path / "film.webp")
    for name in ("samples", "report", "state"):
        (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "run" / "metrics.jsonl").touch()
    PLAIN.save(tmp_path / "run" / "report" / "figure.png")
    found = vd.open_dataset(tmp_path)
    assert "4 sheets and animations that vdm drew left out" in found.notes
    assert "1 runs of vdm in it: what they wrote is left out" in found.notes
    assert np.array_equal(read_all(found), before)
    save_image(samples[0], 256, tmp_path / "one.png")  # a picture that can be trained on
    assert len(read_all(vd.open_dataset(tmp_path))) == 9
    (tmp_path / "run" / "config.json").unlink()  # now a folder like others
    assert len(read_all(vd.open_dataset(tmp_path))) == 10


def test_vdm_data_writes_nothing_that_is_not_named(tmp_path, monkeypatch, capsys):
    folder_of(tmp_path, "a.png", saved(PLAIN))
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir())
    assert run(["data", "."]) == 0
    assert run(["data", ".", "--json"]) == 0
    assert sorted(os.listdir()) == before
    assert run(["data", ".", "--out", "sheet.png"]) == 0
    assert run(["data", "."]) == 0
    assert "1 sheets and animations that vdm drew left out" in capsys.readouterr().out


def test_vdm_data_counts_what_is_damaged_behind_the_header(tmp_path, capsys):
    folder_of(tmp_path, "a.png", saved(Image.fromarray(RNG.integers(0, 256, (64, 64), np.uint8))))
    content = (tmp_path / "a2.png").read_bytes()
    (tmp_path / "a2.png").write_bytes(content[: len(content) // 2])
    dataset = vd.open_dataset(tmp_path)
    assert len(examined(dataset).damaged) == 1
    assert run(["data", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "damaged" in told
    assert "1 examples cannot be read: 'a2.png' is no image or is damaged" in told
    assert vd.open_dataset(tmp_path, skip_damaged=True).notes == ("1 damaged examples skipped",)


@pytest.mark.parametrize(
    ("values", "levels", "question"),
    [
        ([0, 1, 2], 256, "--levels 3"),
        ([0, 255], 256, "--levels 2 --range 0 255"),
        ([0, 85, 170, 255], 256, "--levels 4 --range 0 255"),
        (range(4000), 65_536, "--levels 4096"),
        (range(200), 256, None),
        ([7], 256, None),
        ([0, 3, 255], 256, None),
        ([0, 1], 2, None),
    ],
)
def test_far_fewer_levels_than_the_type_has_are_asked_about(values, levels, question):
    notes = doubts.of_levels(np.array(values), levels)
    assert [question in note for note in notes] == [True] * (question is not None)


def test_the_options_that_are_asked_about_read_the_levels(tmp_path):
    mask = (GREY > 127).astype(np.uint8)
    np.save(tmp_path / "x.npy", np.stack([mask * 255] * 8))
    assert any("--levels 2 --range 0 255" in n for n in vd.open_dataset(tmp_path / "x.npy").notes)
    found = vd.open_dataset(tmp_path / "x.npy", levels=2, value_range=(0, 255))
    assert found.levels == 2
    assert np.array_equal(found.splits["test"].read()[0, 0], mask)
    with pytest.raises(InputError, match=r"value 255, but levels = 2 .*--levels 256 or more; or, "):
        vd.open_dataset(tmp_path / "x.npy", levels=2)
    with pytest.raises(InputError, match="is none of 3 levels from 0 to 200"):
        vd.open_dataset(tmp_path / "x.npy", levels=3, value_range=(0, 200))
    (tmp_path / "d").mkdir()
    folder_of(tmp_path / "d", "a.png", saved(Image.fromarray(mask * 255)))
    meant = "is --levels 2 --range 0 255 meant?"
    assert (
        f"read with 256 levels, of which 2 were found (0, 255): {meant}"
        in examined(vd.open_dataset(tmp_path / "d")).notes
    )
    found = vd.open_dataset(tmp_path / "d", levels=2, value_range=(0, 255))
    assert np.array_equal(found.splits["test"].read()[0, 0], mask)


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ((9, 2, 100), r"9 grey images of 2×100 .*saved as \(9, 2, 1, 100\)"),
        ((9, 100, 3), r"9 grey images of 100×3 .*saved as \(9, 3, 1, 100\)"),
        ((9, 2, 8, 8), r"9 images of 8×8 with 2 channels; volumes are saved as \(9, 1, 2, 8, 8\)"),
        ((9, 16, 8, 8), r"9 images of 8×8 with 16 channels; volumes .*\(9, 1, 16, 8, 8\)"),
        ((9, 1, 5, 8, 8), "9 examples of 1×5×8×8, which are no images"),
        ((9, 8, 8), None),
        ((9, 3, 8, 8), None),
        ((9, 8, 8, 4), None),
        ((9, 100), None),
    ],
)
def test_axes_that_may_mean_something_else_are_told(shape, told):
    notes = vd.open_dataset(RNG.integers(0, 256, shape, dtype=np.uint8)).notes
    if told is None:
        assert notes == ()
    else:
        (note,) = notes
        assert re.search(told, note), note


def test_more_pixels_than_usual_are_read_with_the_option_and_a_crop(tmp_path):
    stripes = np.zeros((9_500, 9_500), np.uint8)
    stripes[4_744:4_756] = 7
    content = io.BytesIO()
    Image.fromarray(stripes).save(content, "png")
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(content.getvalue())
    message = r"9,500×9,500 pixels, 89,478,485 are allowed: .*--max-pixels 90250000$"
    with pytest.raises(InputError, match=message):
        vd.open_dataset(tmp_path, crop=(8, 8))
    found = vd.open_dataset(tmp_path, crop=(8, 8), max_pixels=90_250_000)
    assert (found.splits["test"].read() == 7).all()
