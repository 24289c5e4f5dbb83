"""Pictures show what the arrays hold, pixel by pixel."""

import sys

import av
import numpy as np
import pytest
import torch
from PIL import Image

import variational_diffusion as vd
from variational_diffusion.errors import InputError
from variational_diffusion.images import pictures


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("extension", ["png", "webp"])
def test_images_with_256_levels_are_read_back_exactly(tmp_path, channels, extension):
    image = np.random.default_rng(0).integers(0, 256, (channels, 5, 7), dtype=np.uint8)
    path = tmp_path / f"image.{extension}"
    pictures.save_image(image, 256, path)
    with Image.open(path) as file:
        read = np.asarray(file.convert("L" if channels == 1 else file.mode))
    expected = image[0] if channels == 1 else image.transpose(1, 2, 0)
    np.testing.assert_array_equal(read, expected)


def test_grey_images_with_16_bits_are_read_back_exactly(tmp_path):
    image = np.array([[[0, 1, 256], [40_000, 65_534, 65_535]]], np.uint16)
    pictures.save_image(image, 65_536, tmp_path / "image.png")
    with Image.open(tmp_path / "image.png") as file:
        np.testing.assert_array_equal(np.asarray(file), image[0])


def test_levels_are_spread_evenly_from_black_to_white():
    image = np.arange(17, dtype=np.uint8).reshape(1, 1, 17)
    shown = np.asarray(pictures.to_pil(image, 17))
    np.testing.assert_array_equal(shown[0], np.rint(np.arange(17) * 255 / 16))


def test_real_values_are_shown_within_their_range_and_clipped():
    image = np.array([[[-3.0, -1.0, 0.0, 1.0, 9.0, np.nan, np.inf]]])
    shown = np.asarray(pictures.to_pil(image, None, value_range=(-1.0, 1.0)))[0]
    assert shown.tolist() == [0, 0, 128, 255, 255, 0, 255]
    shown = np.asarray(pictures.to_pil(image[..., :5], None))[0]
    assert shown.tolist() == [0, 42, 64, 85, 255]
    assert np.asarray(pictures.to_pil(np.full((1, 1, 2), 3.0), None)).tolist() == [[0, 0]]


@pytest.mark.parametrize("shape", [(4,), (2, 8, 8), (8, 8), (1, 2, 3, 4)])
def test_other_shapes_are_no_pictures(shape):
    with pytest.raises(InputError, match=r"1, 3 or 4 channels; .*--out FILE\.npy"):
        pictures.to_pil(np.zeros(shape, np.uint8), 256)
    assert not pictures.is_image(shape)
    assert pictures.is_image((3, 8, 9))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_image_is_where_it_belongs_on_the_sheet(channels):
    images = np.random.default_rng(1).integers(0, 256, (5, channels, 2, 3), dtype=np.uint8)
    page = np.asarray(pictures.sheet(images, 256, columns=2, scale=3))
    page = page.reshape(*page.shape[:2], channels).transpose(2, 0, 1)
    assert page.shape == (channels, 3 * (2 * 3 + 2) + 2, 2 * (3 * 3 + 2) + 2)
    for i, image in enumerate(images):
        top, left = 2 + i // 2 * 8, 2 + i % 2 * 11
        shown = page[:, top : top + 6, left : left + 9]
        np.testing.assert_array_equal(shown, image.repeat(3, 1).repeat(3, 2))
    assert (page[:3, 0, 0] == 128).all()  # the gap


def test_small_images_are_enlarged_and_the_sheet_is_square():
    digits = pictures.sheet(np.zeros((64, 1, 8, 8), np.uint8), 17)
    assert digits.size == (8 * 66 + 2, 8 * 66 + 2)
    assert pictures.sheet(np.zeros((1, 1, 100, 1), np.uint8), 17).size == (5, 104)
    with pytest.raises(InputError, match=r"at least one image; give --n 1"):
        pictures.sheet(np.zeros((0, 1, 8, 8), np.uint8), 17)


def test_a_sheet_is_written_once(tmp_path):
    path = tmp_path / "sheet.png"
    images = np.full((2, 1, 4, 4), 200, np.uint8)
    pictures.save_sheet(images, 256, path)
    with pytest.raises(InputError, match=r"sheet\.png' exists .*--out"):
        pictures.save_sheet(images, 256, path)
    pictures.save_sheet(images, 256, path, columns=1, overwrite=True)
    with Image.open(path) as file:
        assert file.size == (4 * 16 + 4, 2 * (4 * 16 + 2) + 2)


def test_lossy_pictures_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"sheet\.jpg' is no name of a lossless .*\.png or \.webp"):
        pictures.save_sheet(np.zeros((1, 1, 4, 4), np.uint8), 256, tmp_path / "sheet.jpg")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("extension", ["gif", "webp"])
def test_an_animation_has_a_sheet_for_every_frame(tmp_path, channels, extension):
    frames = np.zeros((3, 4, channels, 8, 8), np.uint8)
    for i, frame in enumerate(frames):
        frame[:] = 100 * i
        if channels == 4:
            frame[:, 3] = 255
    path = tmp_path / f"way.{extension}"
    pictures.animation(frames, 256, path)
    with Image.open(path) as file:
        assert file.n_frames == 3
        assert file.info["loop"] == 0
        for i in range(3):
            file.seek(i)
            assert file.convert("RGB").getpixel((10, 10)) == (100 * i,) * 3
            assert file.info["duration"] == (80, 80, 1500)[i]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_film_has_a_picture_for_every_frame(tmp_path, channels):
    frames = np.full((3, 4, channels, 7, 7), 255, np.uint8)  # sheets of 131 pixels: not even
    frames[:, :, 0] = np.array([0, 100, 200])[:, None, None, None]
    path = tmp_path / "way.mp4"
    pictures.animation(frames, 256, path)
    with av.open(str(path)) as film:
        shown = list(film.decode(video=0))
        assert film.streams.video[0].codec_context.name == "h264"
    assert len(shown) == 3 - 1 + 19
    assert [float(one.time) for one in shown[:4]] == pytest.approx([0, 0.08, 0.16, 0.24])
    for one, red in zip(shown, [0, 100, 200, 200], strict=False):
        pixel = one.to_ndarray(format="rgb24")[20, 20]
        expected = [red, *[red if channels == 1 else 255] * 2]
        np.testing.assert_allclose(pixel.astype(int), expected, atol=6)  # the codec loses a little
    assert one.width % 2 == one.height % 2 == 0


def test_sheets_of_a_frame_stand_side_by_side(tmp_path):
    frames = np.zeros((2, 2, 4, 1, 8, 8), np.uint8)
    frames[:, 1] = 200
    pictures.animation(frames, 256, tmp_path / "way.gif")
    with Image.open(tmp_path / "way.gif") as file:
        assert file.size == (2 * 134 + 8, 134)
        shown = np.asarray(file.convert("L"))
    left, between, right = np.split(shown, [134, 142], axis=1)
    assert (between == 255).all()
    np.testing.assert_array_equal(left, np.asarray(pictures.sheet(frames[0, 0], 256)))
    np.testing.assert_array_equal(right, np.asarray(pictures.sheet(frames[0, 1], 256)))


def test_captions_stand_under_their_images():
    images = np.full((3, 1, 8, 8), 77, np.uint8)
    page = np.asarray(pictures.sheet(images, 256, columns=2, captions=["", "shirt", "a" * 99]))
    assert page.shape == (2 * (64 + 14 + 2) + 2, 2 * 66 + 2)
    assert (page[2:66, 2:66] == page[2:66, 68:132]).all()
    assert (page[2:66, 2:66] == 77).all()
    below = page[66:80]
    assert (below[:, 2:66] == 255).all()
    assert 0 < (below[:, 68:132] < 100).mean() < 0.3
    assert (page[:, -2:] == 128).all()  # what is too long is cut off
    assert (page[82:146, 2:66] == 77).all()


def test_an_animation_needs_frames_and_a_name(tmp_path, monkeypatch):
    frame = np.zeros((1, 1, 1, 8, 8), np.uint8)
    with pytest.raises(InputError, match=r"way\.png': an animation is a \.gif, \.webp, \.mp4"):
        pictures.animation(frame, 256, tmp_path / "way.png")
    with pytest.raises(InputError, match="at least one frame; give --steps"):
        pictures.animation([], 256, tmp_path / "way.gif")
    (tmp_path / "way.webp").touch()
    with pytest.raises(InputError, match=r"way\.webp' exists and is not overwritten"):
        pictures.animation(frame, 256, tmp_path / "way.webp")
    pictures.animation(frame, 256, tmp_path / "way.webp", overwrite=True)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"^av is not installed; pip install .*\[video\]'$"):
        pictures.check_animation(tmp_path / "way.mp4")


@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor])
def test_anything_that_is_an_image_is_shown(make):
    """Integers from 0 to their largest, real values from lowest to highest, of all images."""
    levels = np.array([[0, 4], [8, 16]])[None]
    shown = np.asarray(vd.show(make(levels)))
    assert shown[2 + 32 * np.arange(2)][:, 2 + 32 * np.arange(2)].tolist() == [[0, 64], [128, 255]]
    darker = np.asarray(vd.show(make(levels), levels=33))
    assert darker[-3, -3] == 128
    noise = np.array([-2.0, 1.0, 2.0, 0.0], dtype=np.float32).reshape(1, 1, 2, 2)
    assert np.asarray(vd.show(make(noise)))[2, [2, -3]].tolist() == [0, 191]
    rows = make(np.zeros((2, 3, 1, 64, 64)))
    assert vd.show(rows).size == (3 * 66 + 2, 2 * 66 + 2)
    assert vd.show(make(np.ones((3, 5, 5), bool))).mode == "RGB"


def test_gradients_and_half_precision_are_shown():
    z = torch.linspace(-1, 1, 64).reshape(1, 8, 8).requires_grad_()
    assert vd.show(z) == vd.show(z.detach().double().numpy())
    assert vd.show(z.bfloat16()).size == (68, 68)


@pytest.mark.parametrize("shape", [(4,), (4, 2), (2, 8, 8), (0, 1, 8, 8), (1, 1, 1, 1, 8, 8)])
def test_what_is_not_an_image_is_refused_in_a_line(shape):
    with pytest.raises(InputError, match=r"values = an array of shape|images = none") as raised:
        vd.show(np.zeros(shape))
    assert "\n" not in str(raised.value)
