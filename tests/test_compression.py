"""Lossless compression: the stack, the chain, and groups of examples that share a stack."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coding import SHAPE, coded, decoded, images, model, random_stack
from variational_diffusion.compression import ChainCoder
from variational_diffusion.compression.chain import Reverse
from variational_diffusion.compression.levels import pop_levels, push_levels
from variational_diffusion.compression.plain import from_plain_bytes, plain_bytes
from variational_diffusion.compression.rounding import Rounding
from variational_diffusion.compression.stack import ExhaustedError
from variational_diffusion.decoders import Gaussian
from variational_diffusion.errors import InputError


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.floats(-1e6, 1e6),
            st.floats(16, 1e6),
            st.integers(-(2**33), 2**33),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_a_gaussian_gives_back_what_was_pushed_and_the_stack_as_it_was(values):
    mean, std, pushed = (np.array(column) for column in zip(*values, strict=True))
    stack = random_stack()
    before = stack.words()
    stack.push(pushed, mean, std)
    assert np.array_equal(stack.pop(mean, std), pushed)
    assert np.array_equal(stack.words(), before)


@pytest.mark.parametrize("std", [16.0, 25.3, 32.0, 500.7])
def test_draws_are_gaussian_and_can_be_put_back(std):
    stack = random_stack(60_000)
    before = stack.words()
    mean = np.linspace(-1000, 1000, 40_000) + 0.3
    drawn = stack.draw(mean, std)
    error = (drawn - mean) / std
    # within 5 standard errors: one in a million by chance
    assert abs(error.mean()) < 5 / 200
    assert abs(error.std() - 1) < 5 / 280
    assert abs((np.abs(error) < 1).mean() - 0.6827) < 5 * 0.0024
    stack.undraw(drawn, mean, std)
    assert np.array_equal(stack.words(), before)


@pytest.mark.parametrize("std", [16.0, 100.0])
def test_coding_takes_the_entropy_of_the_gaussian(std):
    values = np.rint(np.random.default_rng(0).normal(7.2, std, 40_000)).astype(int)
    stack = random_stack(10)
    before = stack.bits
    stack.push(values, np.full(40_000, 7.2), np.full(40_000, std))
    ideal = 0.5 * ((values - 7.2) / std) ** 2 + np.log(std * np.sqrt(2 * np.pi))
    assert stack.bits - before == pytest.approx(ideal.sum() / np.log(2), rel=2e-4)


@pytest.mark.parametrize(("levels", "spacing"), [(2, 6.0), (17, 6.0), (256, 1.0), (1000, 0.05)])
def test_levels_come_back_and_cost_their_logarithm(levels, spacing):
    rng = np.random.default_rng(1)
    x = rng.integers(0, levels, 5000)
    position = x + rng.normal(0, 1, 5000).clip(-6, 6) / spacing
    stack = random_stack(100)
    before, bits = stack.words(), stack.bits
    push_levels(stack, x, position, spacing, levels)
    k = np.arange(levels)
    logits = -0.5 * spacing**2 * (position[:, None] - k) ** 2
    ideal = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    ideal = (ideal - logits[np.arange(5000), x]).sum() / np.log(2)
    assert stack.bits - bits == pytest.approx(ideal, rel=0.03, abs=64)
    assert np.array_equal(pop_levels(stack, position, spacing, levels), x)
    assert np.array_equal(stack.words(), before)


def test_an_empty_stack_says_so():
    with pytest.raises(ExhaustedError):
        random_stack(20).draw(np.zeros(1000), 20.0)


@pytest.mark.parametrize("size", [1.0, 1e5, 1e8])
def test_close_decisions_are_followed_where_the_arithmetic_differs(size):
    rng = np.random.default_rng(0)
    exact = rng.integers(-1000, 1000, 200) + 0.5
    exact[::3] += 0.2
    noise = 30 * 2.0**-53 * (size + np.abs(exact))  # three times what has been seen
    ours, theirs = (exact + rng.uniform(-1, 1, 200) * noise for _ in range(2))
    encoder = Rounding()
    calls = [encoder(ours, 3, size), encoder(-ours, 8, size)]
    assert len(encoder.decisions) == 2 * (exact % 1 == 0.5).sum()
    decoder = Rounding(encoder.decisions)
    assert np.array_equal(decoder(-theirs, 8, size), calls[1])
    assert np.array_equal(decoder(theirs, 3, size), calls[0])
    assert not np.array_equal(Rounding(portable=False)(theirs, 3, size), calls[0])


@pytest.mark.parametrize("levels", [2, 256, 65_536])
def test_the_band_follows_what_goes_into_a_mean(levels):
    """A mean in widths is a difference of numbers of about 1/width, also where it is small."""
    vdm, gammas = model(levels)
    coder, rng = ChainCoder(vdm, gammas), np.random.default_rng(0)
    for step in (1, 6, 12):
        middle = (rng.integers(-1000, 1000, SHAPE) + 0.5) / 8
        noise = 30 * 2.0**-53 / coder._lattice.width[step - 1]
        ours, theirs = (
            Reverse(middle + noise * rng.uniform(-1, 1, SHAPE), np.full(SHAPE, 20.0))
            for _ in range(2)
        )
        encoder = coder.rounding()
        mean, _ = coder._rounded(ours, encoder, 0, step)
        followed, _ = coder._rounded(theirs, coder.rounding(encoder.decisions), 0, step)
        assert np.array_equal(followed, mean)
        assert len(encoder.decisions) == middle.size
        clear, few = Reverse(middle + 0.05, np.full(SHAPE, 20.0)), coder.rounding()
        coder._rounded(clear, few, 0, step)
        assert few.decisions == []


@pytest.mark.parametrize(("levels", "shape"), [(256, (3, 7, 4)), (17, SHAPE), (1000, (5,))])
def test_examples_without_a_model_come_back(levels, shape):
    for n in (1, 2, 7):
        x = images(n, levels, shape)
        data = plain_bytes(x, levels)
        assert np.array_equal(from_plain_bytes(data, x.shape, levels), x)
        with pytest.raises(ValueError, match=r"\w"):
            from_plain_bytes(data[: len(data) // 2], x.shape, levels)


@pytest.mark.parametrize("portable", [True, False])
@pytest.mark.parametrize(
    ("levels", "shape", "n"),
    [(256, SHAPE, 1), (256, SHAPE, 40), (2, SHAPE, 25), (17, (3, 4, 4), 30), (65_536, SHAPE, 12)],
)
def test_groups_come_back(levels, shape, n, portable):
    vdm, gammas = model(levels, shape)
    coder = ChainCoder(vdm, gammas, portable=portable)
    x = images(n, levels, shape)
    done = coded(coder, x)
    assert done.done == n
    assert np.array_equal(decoded(coder, done.payload, n), x)
    assert done.by_model + done.seed == n


def test_the_stack_grows_by_the_bound_of_the_chain():
    vdm, gammas = model(17)
    coder = ChainCoder(vdm, gammas)
    x = images(200, 17)
    stack = random_stack(60_000)
    before = stack.bits
    nats, drawn = coder.push(stack, x, coder.rounding())
    bound = (
        vdm.double()
        .requires_grad_(False)
        .vlb(
            torch.from_numpy(np.repeat(x, 8, 0)),
            gammas=torch.from_numpy(coder.gammas),
            generator=torch.Generator().manual_seed(0),
        )
    )
    per_dim = [nats.mean() / np.log(2), float(bound.total.mean()) / (coder.dimensions * np.log(2))]
    spent = (stack.bits - before) / x.size
    # the spread between draws is 2 % of either
    assert per_dim[0] == pytest.approx(per_dim[1], rel=0.06)
    assert spent == pytest.approx(per_dim[0], rel=0.03)
    # without chance: lattice and rounding alone
    assert stack.bits - before == pytest.approx(drawn.sum() / np.log(2), rel=0.005, abs=64)


@pytest.mark.parametrize("levels", [17, 65_536])
def test_a_decoder_whose_arithmetic_differs_a_little_gives_the_same(levels):
    vdm, gammas = model(levels)
    x = images(100, levels)
    coder, other = ChainCoder(vdm, gammas), ChainCoder(vdm, gammas)
    stack, rounding = random_stack(30_000), coder.rounding()
    coder.push(stack, x, rounding)
    exact, rng = other._reverse, np.random.default_rng(0)

    def nearly(z_t, step):
        reverse = exact(z_t, step)
        noise = 30 * 2.0**-53 / other._lattice.width[step - 1]
        error = rng.uniform(-1, 1, z_t.shape) * noise
        return reverse._replace(mean=reverse.mean + error)

    other._reverse = nearly
    assert np.array_equal(other.pop(stack, 100, other.rounding(rounding.decisions)), x)


def test_models_that_cannot_code_are_refused():
    vdm, gammas = model()
    with pytest.raises(InputError, match="gammas"):
        ChainCoder(vdm, gammas[::-1])
    vdm.decoder = Gaussian()
    with pytest.raises(InputError, match="integers"):
        ChainCoder(vdm, gammas)
