"""Measurements: what each sees, that all are linear, and what cannot be measured."""

import pytest
import torch
from torch.autograd.functional import jvp

from variational_diffusion.editing import operators
from variational_diffusion.editing.operators import MEASUREMENTS, Measurement
from variational_diffusion.errors import InputError

SHAPE = (3, 8, 12)
HALF = torch.zeros(SHAPE, dtype=torch.bool)
HALF[:, :, 6:] = True
OPTIONS = {"mask": {"mask": HALF}, "downsample": {"factor": 4}, "blur": {"width": 1.5}}


@pytest.fixture
def x(generator):
    """Two images in float64."""
    return torch.randn(2, *SHAPE, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_every_one_is_linear_keeps_examples_apart_and_has_a_derivative(name, x, generator):
    function = MEASUREMENTS[name](SHAPE, **OPTIONS.get(name, {}))
    v = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(function(2 * x - 3 * v), 2 * function(x) - 3 * function(v))
    torch.testing.assert_close(function(x)[1:], function(x[1:]))
    torch.testing.assert_close(jvp(function, x, v)[1], function(v))


def test_what_each_sees(x):
    seen = operators.mask(SHAPE, HALF)(x)
    assert torch.equal(seen, x[:, :, :, :6].flatten(1))
    small = operators.downsample(SHAPE, 4)(x)
    assert small.shape == (2, 3, 2, 3)
    torch.testing.assert_close(small[0, 1, 1, 2], x[0, 1, 4:, 8:].mean())
    colours = torch.tensor([1.0, 0.5, -1.0], dtype=torch.float64)
    plain = colours[:, None, None].expand(1, *SHAPE)
    shade = operators.grey(SHAPE)(plain)
    expected = 0.299 + 0.5 * 0.587 - 0.114
    torch.testing.assert_close(shade, torch.full((1, 1, 8, 12), expected).double())


def test_blur_is_a_gaussian_of_its_width():
    point = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    point[..., 20, 20] = 1
    blurred = operators.blur((1, 41, 41), 2.0)(point)[0, 0]
    place = torch.arange(41, dtype=torch.float64) - 20
    assert float(blurred.sum()) == pytest.approx(1, rel=1e-12)
    for rows in (blurred.sum(0), blurred.sum(1)):
        assert float((rows * place**2).sum()) == pytest.approx(4, rel=0.03)  # cut off at 3 widths
    flat = operators.blur((1, 9, 9), 2.0)(torch.full((1, 1, 9, 9), 0.7).double())
    torch.testing.assert_close(flat, torch.full((1, 1, 9, 9), 0.7).double())


def test_the_noise_is_drawn_as_said(generator):
    measurement = Measurement(lambda x: 2 * x, 0.3)
    y = measurement(torch.ones(20_000, 1, dtype=torch.float64), generator)
    # Two-sided at 5 standard errors: false alarm 6e-7 for each of two
    assert abs(float(y.mean()) - 2) < 5 * 0.3 / 20_000**0.5
    assert abs(float(y.std()) / 0.3 - 1) < 5 / 40_000**0.5


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("downsample", SHAPE, {"factor": 3}, "factor = 3: images of 8x12 are not divided"),
        ("downsample", SHAPE, {"factor": 0}, "factor = 0"),
        ("downsample", (5,), {}, r"downsample: data of shape \(5,\) are no images"),
        ("blur", SHAPE, {"width": 0.0}, "width = 0.0: a blur of images of 8x12 takes"),
        ("blur", SHAPE, {"width": 9.0}, "takes a standard deviation of 0.2 to 2.3 pixels"),
        ("grey", (1, 8, 8), {}, "grey: data of shape .* have no three channels"),
        ("mask", SHAPE, {"mask": HALF[0]}, r"mask has shape \(8, 12\): it takes"),
        ("mask", (2,), {"mask": torch.ones(2, dtype=torch.bool)}, "mask hides every entry"),
    ],
)
def test_what_cannot_be_measured_is_said(name, shape, options, message):
    with pytest.raises(InputError, match=message):
        MEASUREMENTS[name](shape, **options)


def test_noise_is_not_negative():
    with pytest.raises(InputError, match=r"noise = -0.1: a standard deviation is 0 or more"):
        Measurement(lambda x: x, -0.1)
