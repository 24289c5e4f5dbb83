"""Code lengths against known answers, and files that can be decoded again."""

import importlib.util
import io

import numpy as np
import pytest
from PIL import Image

from variational_diffusion.compression.baselines import code_lengths, picture_lengths
from variational_diffusion.compression.mosaic import images_of, mosaic, size_of
from variational_diffusion.config import DataConfig
from variational_diffusion.data import open_dataset

IMAGE_CODERS = {"PNG (one mosaic)", "WebP lossless (one mosaic)"}


def test_entropy_has_the_known_values():
    uniform = np.arange(256, dtype=np.uint8).reshape(4, 1, 8, 8)
    assert code_lengths(uniform, 256)["order-0 entropy"] == pytest.approx(8, abs=1e-12)
    assert code_lengths(np.zeros((4, 3), np.uint8), 2)["order-0 entropy"] == 0
    biased = np.array([[0, 0, 0, 5]])
    expected = 0.75 * np.log2(4 / 3) + 0.25 * 2
    assert code_lengths(biased, 6)["order-0 entropy"] == pytest.approx(expected, abs=1e-12)


def test_noise_is_not_compressed_and_headers_are_counted():
    noise = np.random.default_rng(0).integers(0, 256, (64, 1, 16, 16), dtype=np.uint8)
    lengths = code_lengths(noise, 256)
    assert set(lengths) == {"order-0 entropy", "xz"} | IMAGE_CODERS
    for coder in {"xz"} | IMAGE_CODERS:
        assert 8 < lengths[coder] < 8.2, coder


def test_a_repeated_image_costs_next_to_nothing():
    image = np.random.default_rng(0).integers(0, 256, (1, 1, 16, 16), dtype=np.uint8)
    lengths = code_lengths(image.repeat(400, axis=0), 256)
    assert lengths["xz"] < 0.1
    assert lengths["order-0 entropy"] > 6


@pytest.mark.parametrize(
    ("shape", "levels", "coders"),
    [
        ((8, 12), 256, set()),
        ((8, 2, 4, 4), 256, set()),
        ((8, 3, 4, 4), 256, IMAGE_CODERS),
        ((8, 4, 4, 4), 256, IMAGE_CODERS),
        ((8, 1, 4, 4), 65_536, {"PNG (one mosaic)"}),
        ((8, 3, 4, 4), 65_536, set()),
        ((1, 1, 16_384, 1), 256, {"PNG (one mosaic)"}),
    ],
)
def test_image_coders_are_given_where_they_hold_the_data(shape, levels, coders):
    images = np.zeros(shape, np.uint16)
    images.flat[-1] = levels - 1
    lengths = code_lengths(images, levels)
    # One column of 16,384 pixels is folded into no mosaic: a single image stays as it is.
    assert set(lengths) == {"order-0 entropy", "xz"} | coders


@pytest.mark.parametrize("channels", [1, 3])
def test_picture_formats_take_each_image_alone(channels):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (6, channels, 24, 24), dtype=np.uint8)
    lengths = picture_lengths(noise, 256)
    together = code_lengths(noise, 256)
    names = {"PNG, one by one", "WebP lossless, one by one"}
    assert names <= set(lengths)
    assert lengths["PNG, one by one"] > together["PNG (one mosaic)"] > 8
    if importlib.util.find_spec("imagecodecs") is not None:
        assert lengths["JPEG XL, one by one"] > lengths["JPEG XL (one mosaic)"] > 8
        names |= {"JPEG XL, one by one", "JPEG XL (one mosaic)"}
    assert set(lengths) == names
    one = noise[:1].repeat(6, axis=0)
    assert picture_lengths(one, 256)["WebP lossless, one by one"] > 8
    assert picture_lengths(noise.reshape(6, -1), 256) == {}
    assert picture_lengths(noise, 65_536) == {}


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_mosaic_holds_every_image(channels):
    images = np.random.default_rng(0).integers(1, 17, (5, channels, 2, 3), dtype=np.uint8)
    picture = mosaic(images)
    assert picture.shape[:2] == size_of(images.shape)
    np.testing.assert_array_equal(images_of(picture, images.shape), images)
    picture = picture.reshape(*picture.shape[:2], channels)
    assert picture.shape == (3 * 2, 2 * 3, channels)
    for i, image in enumerate(images):
        top, left = i // 2 * 2, i % 2 * 3
        cell = picture[top : top + 2, left : left + 3].transpose(2, 0, 1)
        np.testing.assert_array_equal(cell, image)
    assert not picture[4:, 3:].any()


def test_transparent_pixels_keep_their_colours_in_webp():
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    picture[..., 3] = 0
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="WEBP", lossless=True, exact=True)
    with Image.open(file) as read:
        np.testing.assert_array_equal(np.asarray(read), picture)
    images = picture.transpose(2, 0, 1)[None]
    assert code_lengths(images, 256)["WebP lossless (one mosaic)"] > 6  # 3 of 4 channels are noise


def test_digits_need_what_the_documents_say():
    # Seed 0's test split; the draw of the images moves the figures by a few hundredths.
    lengths = code_lengths(open_dataset(DataConfig(source="digits")).splits["test"].read(), 17)
    assert lengths["order-0 entropy"] == pytest.approx(2.976, abs=0.001)
    assert lengths["xz"] == pytest.approx(2.89, abs=0.02)
    assert lengths["PNG (one mosaic)"] == pytest.approx(3.34, abs=0.1)  # zlib's version matters
    assert lengths["WebP lossless (one mosaic)"] == pytest.approx(3.10, abs=0.05)
