"""Decoders: p(x|z_0) is a distribution, equal to the soft-max over all levels, without one."""

import math

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from variational_diffusion import process
from variational_diffusion.decoders import DECODERS, Discretized, Gaussian
from variational_diffusion.errors import InputError
from variational_diffusion.numerics import bits_per_dim


def naive_log_prob(levels: int, z_0: torch.Tensor, gamma_0: torch.Tensor) -> torch.Tensor:
    """The log soft-max of the definition, (…, levels)."""
    centres = 2 * (torch.arange(levels, dtype=torch.float64) + 0.5) / levels - 1
    scaled = z_0 / process.alpha(gamma_0)
    return (-0.5 * torch.exp(-gamma_0) * (scaled[..., None] - centres) ** 2).log_softmax(-1)


@pytest.mark.parametrize("gamma_0", [-13.3, -9.0, -4.0, 0.0, 3.0])
@pytest.mark.parametrize("levels", [2, 3, 17, 256])
def test_p_is_the_soft_max_over_all_levels_and_sums_to_one(levels, gamma_0, generator):
    gamma = torch.tensor(gamma_0, dtype=torch.float64)
    inside = 1.1 * (2 * torch.rand(20, dtype=torch.float64, generator=generator) - 1)
    z_0 = torch.cat([inside, torch.tensor([-40.0, -3.0, -1.0, 1.0, 3.0]).double()])
    expected = naive_log_prob(levels, z_0, gamma)
    decoder = Discretized(levels)
    n = len(z_0)
    every_level = torch.arange(levels).repeat(n, 1).flatten()
    got = decoder.log_prob(every_level, z_0.repeat_interleave(levels), gamma).reshape(n, levels)
    torch.testing.assert_close(got.exp().sum(-1), torch.ones(n, dtype=torch.float64))
    # the naive form subtracts numbers of the size of (z_0 − f)² e^−γ_0, up to 1e9
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9 if gamma_0 > -9 else 1e-6)


@pytest.mark.parametrize("gamma_0", [-9.0, -3.0])
def test_gradients_by_finite_differences(gamma_0, generator):
    z_0 = 2 * torch.rand(6, 5, dtype=torch.float64, generator=generator) - 1
    x = torch.randint(0, 17, (6, 5), generator=generator)
    inputs = (z_0.requires_grad_(), torch.tensor(gamma_0, dtype=torch.float64, requires_grad=True))
    assert torch.autograd.gradcheck(lambda z, g: Discretized(17).log_prob(x, z, g), inputs)


@pytest.mark.parametrize("levels", [2, 17, 256, 65_536])
def test_decoding_undoes_encoding(levels):
    x = torch.arange(levels).reshape(1, -1)
    encoded = Discretized(levels).encode(x)
    assert encoded.abs().max() < 1
    assert torch.equal(Discretized(levels).decode(encoded), x)
    torch.testing.assert_close(encoded + encoded.flip(1), torch.zeros_like(encoded))


@pytest.mark.parametrize(("gamma_0", "expected"), [(-13.3, 0.0105), (-13.0, 0.038), (-12.0, 0.418)])
@pytest.mark.parametrize("levels", [17, 256, 65_536])
def test_reconstruction_costs_what_is_known(levels, gamma_0, expected):
    """0.0105 bits per dimension for 256 levels at −13.3; the spacing alone decides.

    The mean over ε is a sum over a fine grid; the level is one with neighbours on both sides.
    """
    gamma = torch.tensor(gamma_0 + 2 * math.log(256 / levels), dtype=torch.float64)
    noise = torch.linspace(-10, 10, 20_001, dtype=torch.float64)
    weight = torch.exp(-0.5 * noise**2) / torch.exp(-0.5 * noise**2).sum()
    k = levels // 2
    z_0 = process.alpha(gamma) * ((2 * k + 1) / levels - 1) + process.sigma(gamma) * noise
    nats = -(weight * Discretized(levels).log_prob(torch.full_like(noise, k).long(), z_0, gamma))
    digits = 4 if expected < 0.02 else 3
    assert float(bits_per_dim(nats.sum(), 1)) == pytest.approx(expected, abs=0.5 * 10**-digits)


def test_draws_follow_p(generator):
    n, gamma = 100_000, torch.tensor(-3.0, dtype=torch.float64)
    decoder = Discretized(17)
    z_0 = torch.full((n,), 0.21, dtype=torch.float64)
    p = naive_log_prob(17, z_0[:1], gamma)[0].exp()
    counts = torch.bincount(decoder.sample(z_0, gamma, generator), minlength=17)
    kept = p * n > 5
    statistic = ((counts - p * n) ** 2 / (p * n))[kept].sum()
    freedom = int(kept.sum()) - 1
    # chi² is about N(k, 2k): two-sided at 5 standard deviations, false alarm below 1e-4
    assert abs(statistic - freedom) < 5 * math.sqrt(2 * freedom)


def saved_elements(levels: int) -> int:
    """Elements of all tensors that a backward pass through log_prob keeps."""
    total = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        total += tensor.numel()
        return tensor

    gamma = torch.tensor(-13.3 + 2 * math.log(256 / levels), requires_grad=True)
    z_0 = torch.zeros(4, 100, requires_grad=True)
    with saved_tensors_hooks(count, lambda tensor: tensor):
        Discretized(levels).log_prob(torch.zeros(4, 100).long(), z_0, gamma).sum().backward()
    return total


def test_memory_does_not_grow_with_the_number_of_levels():
    assert saved_elements(256) == saved_elements(65_536) == saved_elements(17)
    assert saved_elements(65_536) < 20 * 400


def test_memory_does_not_grow_where_many_levels_carry_weight():
    x, gamma = torch.zeros(4, 100).long(), torch.tensor(-13.3, requires_grad=True)
    sizes = []
    for levels in (256, 4096):
        kept: list[int] = []
        with saved_tensors_hooks(lambda t, kept=kept: (kept.append(t.numel()), t)[1], lambda t: t):
            Discretized(levels).log_prob(x, torch.zeros(4, 100), gamma).sum().backward()
        sizes.append(sum(kept))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 3), r"type torch.float32.*integers 0 to 16.*Gaussian"),
        (torch.full((2, 3), 17), r"x lies in \[17, 17\].*\[0, 16\]"),
        (torch.full((2, 3), -1), r"x lies in \[-1, -1\]"),
    ],
)
def test_data_of_another_kind_are_refused(x, message):
    with pytest.raises(InputError, match=message):
        Discretized(17).encode(x)


def test_all_values_of_a_byte_are_data_of_256_levels():
    x = torch.arange(256, dtype=torch.uint8).reshape(1, -1)
    assert Discretized(256).encode(x).shape == x.shape
    with pytest.raises(InputError, match=r"x lies in \[0, 255\]"):
        Discretized(255).encode(x)


@pytest.mark.parametrize("levels", [1, 65_537])
def test_numbers_of_levels(levels):
    with pytest.raises(InputError, match=rf"levels = {levels}.*2 to 65536"):
        Discretized(levels)


def test_the_gaussian_decoder_is_a_density_of_the_data():
    """It integrates to one in the data's own units, so the scale must be in it."""
    decoder = Gaussian(location=3.0, scale=20.0).double()
    gamma = torch.tensor(-2.0, dtype=torch.float64)
    x = torch.linspace(-300, 300, 60_001, dtype=torch.float64).reshape(-1, 1)
    log_p = decoder.log_prob(x, torch.full_like(x, 0.4), gamma)
    assert float(log_p.exp().sum() * 0.01) == pytest.approx(1, abs=1e-9)
    centre = decoder.decode(torch.full((1, 1), 0.4, dtype=torch.float64) / process.alpha(gamma))
    assert float((x[:, 0] * log_p.exp()).sum() * 0.01) == pytest.approx(float(centre), abs=1e-9)


def test_the_gaussian_decoder_standardises_by_the_first_axis():
    decoder = Gaussian(location=[1.0, 2.0], scale=[2.0, 4.0])
    x = torch.tensor([[[3.0, 1.0], [6.0, 2.0]]], dtype=torch.float64)
    expected = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]], dtype=torch.float64)
    torch.testing.assert_close(decoder.encode(x), expected)
    torch.testing.assert_close(decoder.encode(x.float()), expected)
    torch.testing.assert_close(decoder.decode(decoder.encode(x)), x)
    with pytest.raises(InputError, match=r"torch.int64.*Discretized"):
        decoder.encode(torch.zeros(1, 2, 2).long())
    with pytest.raises(InputError, match=r"^scale of entry 1 is 0: [^\n]*constant columns"):
        Gaussian(scale=[1.0, 0.0])
    with pytest.raises(InputError, match=r"^scale of entry 0 is 0, as are 783 others of 784"):
        Gaussian(scale=[0.0] * 784)
    with pytest.raises(InputError, match=r"^location is nan: a location is finite"):
        Gaussian(location=math.nan)


def support(name: str) -> tuple[Discretized | Gaussian, torch.Tensor, float]:
    """A decoder, all its data (or a fine grid of them) and what one of them weighs in a sum."""
    if name == "discretized":
        return Discretized(17), torch.arange(17), 1.0
    grid = torch.linspace(-60, 60, 24_001, dtype=torch.float64)
    return Gaussian(location=3.0, scale=5.0).double(), grid, 120 / 24_000


@pytest.mark.parametrize("z", [0.21, -1.4])
@pytest.mark.parametrize("name", DECODERS)
def test_draws_have_the_moments_of_p(name, z, generator):
    n, gamma = 100_000, torch.tensor(-2.5, dtype=torch.float64)
    decoder, values, weight = support(name)
    z_0 = torch.full((n,), z, dtype=torch.float64)
    p = weight * decoder.log_prob(values, z_0[:1].expand(values.shape), gamma).exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-9)
    mean = (p * values).sum()
    second, fourth = ((p * (values - mean) ** k).sum() for k in (2, 4))
    draws = decoder.sample(z_0, gamma, generator).double()
    # Two-sided at 5 standard errors: false alarm 6e-7 each
    assert abs(draws.mean() - mean) < 5 * (second / n).sqrt()
    assert abs((draws - mean).square().mean() - second) < 5 * ((fourth - second**2) / n).sqrt()
    again = decoder.sample(z_0, gamma, torch.Generator().manual_seed(20210701))
    assert torch.equal(again.double(), draws)


@pytest.mark.parametrize("name", DECODERS)
def test_decoding_undoes_encoding_for_every_decoder(name):
    decoder, values, _ = support(name)
    back = decoder.decode(decoder.encode(values.reshape(1, -1)))
    torch.testing.assert_close(back, values.reshape(1, -1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_has_no_level(value):
    z = torch.zeros(3, 2)
    z[1, 0] = value
    for use in (
        lambda: Discretized(256).decode(z),
        lambda: Discretized(256).sample(z, torch.tensor(-13.3)),
        lambda: Gaussian().sample(z, torch.tensor(-10.0)),
    ):
        with pytest.raises(InputError, match="z is not finite in 1 of 3 examples"):
            use()
