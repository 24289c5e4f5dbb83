"""Folders of images: every mode, lazy decoding, and what is wrong with a file."""

import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from variational_diffusion.config import DataConfig
from variational_diffusion.data import Split, decoding, formats, images, open_dataset
from variational_diffusion.errors import InputError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
RGBA = RNG.integers(0, 256, (5, 7, 4), dtype=np.uint8)
DEEP = RNG.integers(0, 65_536, (5, 7), dtype=np.uint16)
BILEVEL = GREY > 127


def opened(folder, **options):
    return open_dataset(DataConfig(source=str(folder), **options))


def fill(folder, *arrays, extension="png"):
    """Write the arrays as 0.png, 1.png, …; at least four, so that there are three splits."""
    for i in range(max(4, len(arrays))):
        Image.fromarray(arrays[i % len(arrays)]).save(folder / f"{i}.{extension}")
    return folder


def read_all(dataset):
    """All examples in the order of their names."""
    source = dataset.splits["train"].source
    return Split(source, np.arange(len(source))).read()


def on_white(pixels):
    page = Image.new("RGBA", (7, 5), "white")
    page.alpha_composite(Image.fromarray(pixels))
    return np.asarray(page.convert("RGB")).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("array", "channels", "levels", "expected"),
    [
        (BILEVEL, "auto", 2, BILEVEL[None]),
        (BILEVEL, "rgb", 256, np.stack([BILEVEL * 255] * 3)),
        (GREY, "auto", 256, GREY[None]),
        (GREY, "rgb", 256, np.stack([GREY] * 3)),
        (GREY, "rgba", 256, np.stack([GREY] * 3 + [np.full((5, 7), 255)])),
        (RGB, "auto", 256, RGB.transpose(2, 0, 1)),
        (RGB, "grey", 256, np.asarray(Image.fromarray(RGB).convert("L"))[None]),
        (RGBA, "auto", 256, on_white(RGBA)),
        (RGBA, "rgba", 256, RGBA.transpose(2, 0, 1)),
        (DEEP, "auto", 65_536, DEEP[None]),
        (DEEP, "grey", 65_536, DEEP[None]),
    ],
)
def test_every_mode_comes_back_exactly(tmp_path, array, channels, levels, expected):
    dataset = opened(fill(tmp_path, array), channels=channels)
    assert dataset.levels == levels
    assert dataset.shape == expected.shape
    values = read_all(dataset)
    assert values.dtype == (np.uint16 if levels > 256 else np.uint8)
    for value in values:
        np.testing.assert_array_equal(value, expected)


def test_palettes_and_grey_with_alpha(tmp_path):
    palette = Image.fromarray(RGB).quantize(16)
    for i in range(4):
        palette.save(tmp_path / f"{i}.png")
    expected = np.asarray(palette.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(read_all(opened(tmp_path))[0], expected)

    for i in range(4):
        palette.save(tmp_path / f"{i}.png", transparency=bytes([0] + [255] * 15))
    clear = np.asarray(palette) == 0
    dataset = opened(tmp_path)
    np.testing.assert_array_equal(read_all(dataset)[0], np.where(clear, 255, expected))
    assert dataset.notes == (
        "4 images with a palette read as their colours",
        "alpha put on white in 4 images (--channels rgba keeps it)",
    )
    assert (read_all(opened(tmp_path, channels="rgba"))[0, 3] == np.where(clear, 0, 255)).all()

    alpha = np.where(BILEVEL, 255, 0).astype(np.uint8)
    for i in range(4):
        Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)]).save(
            tmp_path / f"{i}.png"
        )
    dataset = opened(tmp_path)
    assert dataset.shape == (1, 5, 7)
    np.testing.assert_array_equal(read_all(dataset)[0, 0], np.where(BILEVEL, GREY, 255))


def test_a_colour_among_grey_images_makes_all_rgb(tmp_path):
    dataset = opened(fill(tmp_path, GREY, RGB, GREY))
    assert dataset.shape == (3, 5, 7)
    np.testing.assert_array_equal(read_all(dataset)[2], np.stack([GREY] * 3))
    assert dataset.notes == ("3 grey images read with 3 channels",)
    grey = opened(tmp_path, channels="grey")
    assert grey.shape == (1, 5, 7)
    assert grey.notes == ("1 colour images turned grey",)


def test_subfolders_are_read_by_name_and_other_files_counted(tmp_path):
    for where in ("b", "a/deep", ".hidden"):
        (tmp_path / where).mkdir(parents=True)
    for i, name in enumerate(["b/0.png", "a/1.PNG", "a/deep/2.png", "z.png", ".dot.png"]):
        Image.fromarray(np.full((5, 7), i, np.uint8)).save(tmp_path / name)
    Image.fromarray(GREY).save(tmp_path / ".hidden" / "3.png")
    (tmp_path / "labels.csv").write_text("0,1")
    (tmp_path / "b" / "README").write_text("text")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    dataset = opened(tmp_path)
    assert read_all(dataset)[:, 0, 0, 0].tolist() == [1, 2, 0, 3]
    assert dataset.notes == (
        "2 files that are no images ignored: b/README, labels.csv",
        "1 of them tables: np.save their numbers as .npy",
    )
    assert dataset.source == str(tmp_path)


def test_opening_decodes_nothing_and_reading_only_what_is_asked(tmp_path, monkeypatch):
    fill(tmp_path, *[GREY] * 20)
    decoded = []
    read_pixels = images.read_pixels
    monkeypatch.setattr(
        decoding,
        "read_pixels",
        lambda stored, *rest, **options: (
            decoded.append(stored.name),
            read_pixels(stored, *rest, **options),
        )[1],
    )

    def refuse(self, *_):
        pytest.fail(f"{self.filename} was decoded on opening")

    with monkeypatch.context() as during_opening:
        during_opening.setattr("PIL.ImageFile.ImageFile.load", refuse)
        dataset = opened(tmp_path)
    assert decoded == []
    split = dataset.splits["train"]
    split.__getitems__([3, 1])
    assert decoded == [f"{sorted(map(str, range(20)))[split.indices[i]]}.png" for i in (3, 1)]


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path, orientation, extension):
    upright = np.zeros((16, 24), np.uint8)
    upright[:8, :8] = 255  # one corner is white
    undo = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
    stored = Image.fromarray(upright)
    if undo in images._TURNS:
        stored = stored.transpose(images._TURNS[undo])
    exif = Image.Exif()
    exif[0x0112] = orientation
    for i in range(4):
        stored.convert("RGB").save(tmp_path / f"{i}.{extension}", exif=exif.tobytes(), quality=95)
    dataset = opened(tmp_path, channels="grey")
    assert dataset.shape == (1, 16, 24)
    np.testing.assert_allclose(read_all(dataset)[0, 0], upright, atol=8)


def test_images_of_several_sizes_need_resize(tmp_path):
    fill(tmp_path, GREY, GREY, GREY[:, :6], GREY)
    message = (
        r"'0\.png' has 5×7 pixels .*, '2\.png' has 5×6, and 3 of 4 have 5×7; .*--resize 5x7"
        r".*--skip-sizes"
    )
    with pytest.raises(InputError, match=message):
        opened(tmp_path)
    dataset = opened(tmp_path, resize=(4, 3))
    assert dataset.shape == (1, 4, 3)
    expected = ImageOps.fit(Image.fromarray(GREY[:, :6]), (3, 4))
    np.testing.assert_array_equal(read_all(dataset)[2, 0], np.asarray(expected))
    with pytest.raises(InputError, match=r"resize = \(0, 3\): .*--resize HxW"):
        opened(tmp_path, resize=(0, 3))


def test_16_bit_images_are_resized_without_wrapping(tmp_path):
    edge = np.zeros((16, 16), np.uint16)
    edge[:, 8:] = 65_535
    values = read_all(opened(fill(tmp_path, edge), resize=(12, 12)))[0, 0]
    assert values[0, 0] == 0
    assert values[0, -1] == 65_535
    assert (np.diff(values.astype(int), axis=1) >= 0).all()


def test_a_mixture_of_depths_is_refused(tmp_path):
    fill(tmp_path, GREY, DEEP)
    with pytest.raises(InputError, match=r"'1\.png' has 16 bits, '0\.png' has 8; convert"):
        opened(tmp_path)


def test_16_bit_images_are_grey(tmp_path):
    fill(tmp_path, DEEP)
    with pytest.raises(InputError, match=r"channels = 'rgb': '0\.png' .*--channels grey"):
        opened(tmp_path, channels="rgb")


def test_modes_without_such_integers_are_refused(tmp_path):
    fill(tmp_path, GREY.astype(np.float32), extension="tiff")
    with pytest.raises(InputError, match=r"0\.tiff' has pillow's mode F: .*save all .*\.npy"):
        opened(tmp_path)


def test_16_bit_values_in_32_bits_are_verified(tmp_path):
    fill(tmp_path, DEEP.astype(np.int32), extension="tiff")
    np.testing.assert_array_equal(read_all(opened(tmp_path))[0, 0], DEEP)
    Image.fromarray(np.full((5, 7), 70_000, np.int32)).save(tmp_path / "2.tiff")
    with pytest.raises(InputError, match=r"'2\.tiff' has the value 70000, but 0 to 65535"):
        read_all(opened(tmp_path))


def test_fewer_levels_are_verified_when_read(tmp_path):
    dataset = opened(fill(tmp_path, GREY % 17), levels=17)
    assert dataset.levels == 17
    np.testing.assert_array_equal(read_all(dataset)[0, 0], GREY % 17)
    Image.fromarray(np.full((5, 7), 17, np.uint8)).save(tmp_path / "3.png")
    with pytest.raises(InputError, match=r"'3\.png' has the value 17, .*--levels 18 or more"):
        read_all(dataset)


def test_what_is_no_image_is_found_on_opening(tmp_path):
    fill(tmp_path, GREY)
    for content in (b"", b"<html>not found</html>", b"\x89PNG\r\n\x1a\n"):
        (tmp_path / "2.png").write_bytes(content)
        message = r"2\.png' is no image or is damaged \(.*\); .*--skip-damaged$"
        with pytest.raises(InputError, match=message):
            opened(tmp_path)


def test_damage_behind_the_header_is_found_when_read_or_skipped(tmp_path):
    fill(tmp_path, *[RNG.integers(0, 256, (50, 50), dtype=np.uint8) for _ in range(6)])
    content = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "4.png").write_bytes(b"no image")
    (tmp_path / "notes.txt").touch()
    dataset = opened(tmp_path, skip_damaged=True)
    assert dataset.notes == (
        "2 damaged examples skipped",
        "1 files that are no images ignored: notes.txt",
    )
    assert len(read_all(dataset)) == 4
    (tmp_path / "4.png").unlink()
    dataset = opened(tmp_path)
    with pytest.raises(InputError, match=r"2\.png' is no image or is damaged .*--skip-damaged"):
        read_all(dataset)


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_no_damage_makes_a_traceback(tmp_path, extension):
    fill(tmp_path, RGB, extension=extension)
    content = (tmp_path / f"0.{extension}").read_bytes()
    rng = np.random.default_rng(1)
    messages = []
    for _ in range(60):
        damaged = bytearray(content[: rng.integers(1, len(content) + 1)])
        for position in rng.integers(0, len(damaged), 3):
            damaged[position] = rng.integers(256)
        (tmp_path / f"0.{extension}").write_bytes(damaged)
        for skip_damaged in (False, True):
            try:
                read_all(opened(tmp_path, resize=(5, 7), skip_damaged=skip_damaged))
            except InputError as error:  # also when skipping: a header may claim too many pixels
                messages.append(str(error))
    assert messages
    for message in messages:
        assert f"0.{extension}'" in message
        assert "\n" not in message


@pytest.mark.parametrize("pillows", [1000, 20, 15])  # it warns above, and refuses at double
def test_a_decompression_bomb_is_an_error_that_names_the_option(tmp_path, monkeypatch, pillows):
    fill(tmp_path, GREY)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows)
    message = r"0\.png' has 5×7 pixels, 34 are allowed: take .* give --max-pixels 35$"
    for skip_damaged in (False, True):
        with pytest.raises(InputError, match=message):
            opened(tmp_path, skip_damaged=skip_damaged, max_pixels=34)
    np.testing.assert_array_equal(read_all(opened(tmp_path, max_pixels=35))[0, 0], GREY)
    assert pillows == Image.MAX_IMAGE_PIXELS


def test_files_that_change_after_opening_are_named(tmp_path):
    dataset = opened(fill(tmp_path, GREY))
    Image.fromarray(GREY[1:]).save(tmp_path / "1.png")
    with pytest.raises(
        InputError, match=r"'1\.png' has shape \(1, 4, 7\), and the others have \(1, 5, 7\)"
    ):
        read_all(dataset)
    (tmp_path / "1.png").unlink()
    with pytest.raises(InputError, match=r"1\.png' cannot be read: no such file.*restore"):
        read_all(dataset)


def test_postscript_is_not_given_to_another_program(tmp_path):
    assert ".png" in formats.extensions()
    assert not {".eps", ".ps", ".pdf", ".h5", ".wmf"} & formats.extensions()
    fill(tmp_path, GREY)
    Image.fromarray(GREY).save(tmp_path / "0.eps")
    os.replace(tmp_path / "0.eps", tmp_path / "0.png")
    with pytest.raises(InputError, match=r"0\.png' is no image"):
        opened(tmp_path)


def test_folders_without_images_say_what_they_hold(tmp_path):
    with pytest.raises(InputError, match=rf"'{tmp_path}' holds no images; give .*IDX files"):
        opened(tmp_path)
    (tmp_path / "a.txt").touch()
    with pytest.raises(
        InputError, match=r"holds no images; 1 files that are no images ignored: a\.txt; give"
    ):
        opened(tmp_path)
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match="all 1 examples are damaged; give"):
        opened(tmp_path, skip_damaged=True)


def test_colour_of_16_bits_is_read_with_8_and_noted(tmp_path):
    fill(tmp_path, GREY)
    deep_colour = _png_with_16_bit_colour(RGB.astype(np.uint16) * 257)
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(deep_colour)
    dataset = opened(tmp_path)
    np.testing.assert_array_equal(read_all(dataset)[0], RGB.transpose(2, 0, 1))
    assert dataset.notes == (
        "4 images with more than 8 bits (of colour, or beside opacity) read with 8",
    )


def _png_with_16_bit_colour(pixels):
    """Encode (height, width, 3) uint16, which pillow cannot write."""

    def chunk(name, content):
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_an_unreadable_subfolder_is_not_passed_over(tmp_path, monkeypatch):
    fill(tmp_path, GREY)
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"locked' cannot be read: permission denied; change"):
        opened(tmp_path)


def test_pillows_remarks_on_odd_files_are_not_shown(tmp_path):
    palette = Image.fromarray(RGB).quantize(4)
    for i in range(4):
        palette.save(tmp_path / f"{i}.png", transparency=bytes([0, 9, 99, 255]))
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        read_all(opened(tmp_path))
    assert shown == []
