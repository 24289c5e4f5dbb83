"""Lossless compression: the stack, the chain, groups, and files that may be damaged."""

import json
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from variational_diffusion.checkpoint import Run
from variational_diffusion.cli import run
from variational_diffusion.cli.examples import chosen_examples
from variational_diffusion.compression import (
    ChainCoder,
    Container,
    Header,
    decode,
    encode,
    group_entry,
    write,
)
from variational_diffusion.compression.plain import from_plain_bytes, plain_bytes
from variational_diffusion.compression.rounding import BAND, Rounding
from variational_diffusion.compression.stack import ExhaustedError, Stack
from variational_diffusion.decoders import Discretized, Gaussian
from variational_diffusion.errors import InputError
from variational_diffusion.grids import NoiseErrors
from variational_diffusion.model import VDM
from variational_diffusion.networks import UNet
from variational_diffusion.schedules import FixedLinear

SHAPE = (1, 6, 5)


def model(levels=256, shape=SHAPE, seed=0, steps=12):
    """A network of random weights, wrong by what its reverse variance assumes, and a chain."""
    shift = 2 * np.log(256 / levels)
    ends = {"gamma_min": -13.3 + shift, "gamma_max": 5.0}
    torch.manual_seed(seed)
    network = UNet(shape, **ends, levels=levels, widths=[8], blocks=1, attention=False)
    vdm = VDM(network, FixedLinear(**ends), Discretized(levels), shape).eval()
    gamma = torch.linspace(ends["gamma_min"], ends["gamma_max"], 20)
    vdm.reverse_errors = NoiseErrors(gamma, torch.full((20, *(1 for _ in shape)), 0.7))
    return vdm, np.linspace(ends["gamma_max"], ends["gamma_min"], steps + 1)


def images(n, levels=256, shape=SHAPE, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, levels, (n, *shape))


def coded(coder, x):
    *_, done = encode(coder, x)
    return done


def decoded(coder, payload, n):
    x = np.full((n, *coder.shape), -1)
    for place, part in decode(coder, payload, n):
        x[place] = part
    return x


def random_stack(words=4000, seed=0):
    rng = np.random.default_rng(seed)
    return Stack(rng.integers(0, 2**32, words, dtype=np.uint32), sealed=True)


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
    stack.push_levels(x, position, spacing, levels)
    k = np.arange(levels)
    logits = -0.5 * spacing**2 * (position[:, None] - k) ** 2
    ideal = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    ideal = (ideal - logits[np.arange(5000), x]).sum() / np.log(2)
    assert stack.bits - bits == pytest.approx(ideal, rel=0.03, abs=64)
    assert np.array_equal(stack.pop_levels(position, spacing, levels), x)
    assert np.array_equal(stack.words(), before)


def test_an_empty_stack_says_so():
    with pytest.raises(ExhaustedError):
        random_stack(20).draw(np.zeros(1000), 20.0)


def test_close_decisions_are_followed_where_the_arithmetic_differs():
    rng = np.random.default_rng(0)
    exact = rng.integers(-1000, 1000, 200) + 0.5
    exact[::3] += 0.2
    ours, theirs = (exact + rng.uniform(-1e-12, 1e-12, 200) for _ in range(2))
    encoder = Rounding()
    calls = [encoder(ours, 3), encoder(-ours, 8)]
    assert len(encoder.decisions) == 2 * (exact % 1 == 0.5).sum()
    decoder = Rounding(encoder.decisions)
    assert np.array_equal(decoder(-theirs, 8), calls[1])
    assert np.array_equal(decoder(theirs, 3), calls[0])
    assert not np.array_equal(Rounding(band=0.0)(theirs, 3), calls[0])
    assert BAND >= 1e-9


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
    assert len(done.payload) <= len(plain_bytes(x, levels)) + 16


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
    per_dim = [
        value / (coder.dimensions * np.log(2)) for value in (nats.mean(), float(bound.total.mean()))
    ]
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
        error = rng.uniform(-1, 1, z_t.shape) * (1e-11 + 1e-15 * np.abs(reverse.mean))
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


@pytest.fixture(scope="module")
def container(tmp_path_factory):
    """A file of three groups, its coder and its examples."""
    vdm, gammas = model(17, steps=6)
    coder = ChainCoder(vdm, gammas)
    x = np.random.default_rng(3).binomial(16, 0.5, (45, *SHAPE))
    parts = np.split(x, [15, 30])
    payloads = [coded(coder, part).payload for part in parts]
    header = Header(
        model=coder.model,
        weights="ema",
        variance="position",
        shape=list(SHAPE),
        levels=17,
        precision="portable",
        gammas=Header.of_chain(coder.gammas),
        groups=[group_entry(p, part, 17) for p, part in zip(payloads, parts, strict=True)],
    )
    path = tmp_path_factory.mktemp("files") / "a.vdmz"
    write(path, header, payloads)
    return path, coder, x


def test_a_file_has_what_was_written(container):
    path, coder, x = container
    opened = Container(path)
    assert opened.header.examples == 45
    assert np.array_equal(opened.header.chain(), coder.gammas)
    for place, part in opened.decoded(coder):
        assert np.array_equal(part, x[place])
    assert opened.damaged == []


def damage(data, rng):
    kind, place = rng.integers(4), int(rng.integers(len(data)))
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data[:place] + bytes([data[place] ^ (1 << int(rng.integers(8)))]) + data[place + 1 :]
    other = int(rng.integers(len(data)))
    length = int(rng.integers(1, 40))
    if kind == 2:
        return data[:place] + data[other : other + length] + data[place + length :]
    return data[:place] + rng.bytes(length) + data[place:]


def test_damage_is_found_and_the_other_groups_come_back(container, tmp_path):
    path, coder, x = container
    rng, data = np.random.default_rng(0), path.read_bytes()
    refused = partly = 0
    for i in range(300):
        changed = damage(data, rng)
        if changed == data:
            continue
        other = tmp_path / f"{i}.vdmz"
        other.write_bytes(changed)
        try:
            opened = Container(other)
        except InputError:
            refused += 1
            continue
        groups = 0
        for place, part in opened.decoded(coder) if i % 6 == 0 else ():
            assert np.array_equal(part, x[place])
            groups += 1
        if i % 6 == 0:
            assert len(opened.damaged) == 3 - groups > 0
            partly += 1
    assert refused > 100
    assert partly > 10


def test_payloads_that_pass_for_whole_end_in_an_error_or_in_other_values(container):
    _, coder, x = container
    payload = coded(coder, x[:15]).payload
    rng = np.random.default_rng(1)
    for _ in range(60):
        with suppress(ValueError):
            assert decoded(coder, damage(payload, rng), 15).shape == (15, *SHAPE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"examples": 10**12}, "header is not what one is"),
        ({"examples": 10**6, "shape": [1, 4096, 4096]}, "more examples in a group"),
        ({"gammas": "AAAA"}, "chain"),
        ({"names": ["a"]}, "1 names for 45 examples"),
    ],
)
def test_claims_are_refused_before_memory_is_taken(container, tmp_path, change, message):
    path = container[0]
    header = Container(path).header
    change = dict(change)
    if "examples" in change:
        entry = header.groups[0].model_copy(update={"examples": change.pop("examples")})
        change["groups"] = [entry, *header.groups[1:]]
    other = tmp_path / "b.vdmz"
    write(other, header.model_copy(update=change), [b"x" * entry.size for entry in header.groups])
    with pytest.raises(InputError, match=message):
        ChainCoder(model(17)[0], Container(other).header.chain())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of three steps on the digits."""
    path = str(tmp_path_factory.mktemp("runs") / "digits")
    small = ["--steps", "3", "--batch-size", "8", "--set", "network.widths=[8,8]"]
    assert run(["train", "digits", "--run", path, *small]) == 0
    return path


@pytest.mark.parametrize("options", [[], ["--fast", "--group", "20", "--no-verify"]])
def test_commands_bring_back_the_run_s_own_examples(capsys, trained, tmp_path, options):
    file, array = str(tmp_path / "a.vdmz"), str(tmp_path / "a.npy")
    compress = ["compress", trained, "--limit", "50", "--steps", "5", "--out", file, "--json"]
    assert run([*compress, *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"] == (tmp_path / "a.vdmz").stat().st_size
    assert told["bits_per_dim"] == pytest.approx(8 * told["bytes"] / (50 * 64))
    assert run(["decompress", trained, file, "--out", array]) == 0
    split = chosen_examples(Run.open(trained), None, "test", 50)
    assert np.array_equal(np.load(array), split.read())
    assert run(["decompress", trained, file, "--out", array]) == 2
    assert run([*compress]) == 2
    told = capsys.readouterr().err
    assert "a.npy' exists" in told
    assert "a.vdmz' exists" in told


def test_images_come_back_with_their_names(capsys, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("b/one.png", "b/two.bmp", "a.png", "c.png", "d.png", "e.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    model, file = str(tmp_path / "run"), str(tmp_path / "a.vdmz")
    small = ["--steps", "2", "--batch-size", "2", "--set", "network.widths=[8]"]
    assert run(["train", str(tmp_path / "in"), "--run", model, *small]) == 0
    errors = NoiseErrors(torch.linspace(-13, 5, 10), torch.ones(10, 3, 8, 8))
    Run.open(model).save_errors(errors)
    compress = ["compress", model, str(tmp_path / "in"), "--out", file]
    assert run([*compress, "--steps", "4", "--variance", "posterior", "--group", "2"]) == 0
    data = bytearray((tmp_path / "a.vdmz").read_bytes())
    assert run(["decompress", model, file, "--out", str(tmp_path / "out")]) == 0
    for name in ("b/one.png", "b/two.bmp", "a.png", "c.png", "d.png", "e.png"):
        back = tmp_path / "out" / (name if name.endswith("png") else name + ".png")
        assert np.array_equal(np.asarray(Image.open(tmp_path / "in" / name)), Image.open(back))
    data[-5] ^= 1
    (tmp_path / "bad.vdmz").write_bytes(data)
    capsys.readouterr()
    decompress = ["decompress", model, str(tmp_path / "bad.vdmz"), "--out", str(tmp_path / "part")]
    assert run(decompress) == 2
    assert "examples 4 to 5 (its bytes are damaged" in capsys.readouterr().err
    assert len(list((tmp_path / "part").rglob("*.png"))) == 4


def test_another_model_is_refused(capsys, trained, tmp_path):
    file = str(tmp_path / "a.vdmz")
    steps = ["--limit", "5", "--steps", "3", "--variance", "posterior"]
    assert run(["compress", trained, *steps, "--out", file]) == 0
    other = str(tmp_path / "other")
    small = ["--steps", "2", "--batch-size", "8", "--set", "network.widths=[8,8]"]
    assert run(["train", "digits", "--run", other, *small]) == 0
    capsys.readouterr()
    assert run(["decompress", other, file, "--out", str(tmp_path / "a.npy")]) == 2
    assert "another model" in capsys.readouterr().err
    assert not (tmp_path / "a.npy").exists()
    assert run(["decompress", trained, trained + "/config.json", "--out", file]) == 2
    assert "no .vdmz file" in capsys.readouterr().err
