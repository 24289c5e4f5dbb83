"""What reaches the coder is the same number on every machine."""

import ast
import decimal
import hashlib
import inspect
import json
import os
import subprocess
import sys
import textwrap
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path

import constriction
import numpy as np
import pytest

from coding import images, model, random_stack, read
from test_compression_golden import CODERS
from variational_diffusion.compression import (
    ChainCoder,
    chain,
    exact,
    format2,
    lattice,
    levels,
    stack,
)
from variational_diffusion.compression.container import VERSION
from variational_diffusion.compression.exact import GRID, OCTAVE, PER_OCTAVE, on_grid
from variational_diffusion.compression.lattice import lattice_of
from variational_diffusion.compression.stack import TOTAL, Stack

FINEST = GRID * 2.0**-22
"""The grid that means and deviations lie on after a Gaussian's unit is 2^22 at most."""


class Watched:
    """A coder of constriction that looks at every number it is given, and notes of what kind."""

    def __init__(self, coder, seen):
        self._coder, self._seen = coder, seen

    def __getattr__(self, name):
        return getattr(self._coder, name)

    def clone(self):
        return Watched(self._coder.clone(), self._seen)

    def encode_reverse(self, symbols, model, *parameters):
        assert symbols.dtype == np.int32
        self._look(parameters)
        self._coder.encode_reverse(symbols, model, *parameters)

    def decode(self, model, *parameters):
        self._look(parameters)
        return self._coder.decode(model, *parameters)

    def _look(self, parameters):
        if len(parameters) == 2:
            assert all(_multiples(values, FINEST) for values in parameters)
            self._seen.append("gaussian")
        for values in parameters if len(parameters) == 1 else ():
            if np.ndim(values) == 2:
                assert _multiples(values, 1.0)
                assert values.min() >= 0
                assert np.all(values.sum(1) == TOTAL - values.shape[1])
                self._seen.append("table")
            else:
                assert isinstance(values, int) or values.dtype == np.int32
                self._seen.append("uniform")


class WatchedGaussian(stack._Gaussian):
    """A Gaussian that looks at its mean and deviation before they are scaled."""

    def __init__(self, mean, std, **options):
        assert _multiples(mean, GRID)
        assert _multiples(std, GRID)
        super().__init__(mean, std, **options)


def _multiples(values, unit):
    return bool(np.all(np.asarray(values) / unit == np.rint(np.asarray(values) / unit)))


@pytest.mark.parametrize(
    ("n_levels", "kinds"),
    [(2, {"gaussian", "table"}), (256, {"gaussian", "table"}), (65_536, {"gaussian", "uniform"})],
)
def test_every_number_that_the_coder_is_given_is_on_its_grid(monkeypatch, n_levels, kinds):
    monkeypatch.setattr(stack, "_Gaussian", WatchedGaussian)
    vdm, gammas = model(n_levels, steps=5)
    if n_levels == 65_536:  # noise much wider than a level
        gammas = np.linspace(5.0, -13.3, 6)
    coder, x = ChainCoder(vdm, gammas), images(20, n_levels)
    bits, rounding, seen = random_stack(9000), coder.rounding(), []
    bits._coder = Watched(bits._coder, seen)
    coder.push(bits, x, rounding)
    assert np.array_equal(coder.pop(bits, 20, coder.rounding(rounding.decisions)), x)
    assert kinds <= set(seen)


@pytest.mark.parametrize(
    "give",
    [
        lambda s: s.draw(np.full(9, np.pi), 20.0),
        lambda s: s.push(np.zeros(9, int), np.zeros(9), np.full(9, 5 * np.pi)),
        lambda s: s.push_near(np.zeros(9, int), np.zeros(9), np.pi, 30),
        lambda s: s.take(stack.TABLE, np.full((9, 4), 0.25)),
    ],
)
def test_the_watch_sees_numbers_that_are_on_no_grid(monkeypatch, give):
    monkeypatch.setattr(stack, "_Gaussian", WatchedGaussian)
    watched = random_stack()
    watched._coder = Watched(watched._coder, [])
    with pytest.raises(AssertionError):
        give(watched)


EXACT_FUNCTIONS = {
    *("rint", "ceil", "frexp", "ldexp", "divmod", "abs", "sign"),  # of IEEE 754, or of integers
    *("arange", "array", "append", "zeros", "empty", "full", "broadcast_to", "flatnonzero"),
    *("float64", "int32", "int64", "uint32", "ndarray"),
}
EXACT_METHODS = {
    *("astype", "ravel", "reshape", "clip", "any", "tolist", "append", "keys"),
    *("sum",),  # of integers and flags
    *("exp", "ln", "sqrt"),  # of decimal, which is imported here and nothing else has them
    *("encode_reverse", "decode", "clone", "num_bits", "num_words", "get_compressed"),
    "__new__",
    *("Categorical", "Uniform", "QuantizedGaussian"),
}


def free_digits(tree):
    """Return the calls and powers of code whose last digit a library chooses."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="np"), attr=name):
                found += [] if name in EXACT_FUNCTIONS else [f"np.{name}"]
            case ast.Attribute(value=ast.Name(id="math" | "torch" | "process" as module)):
                found += [module]
            case ast.Call(func=ast.Attribute(value=value, attr=name)):
                ours = isinstance(value, ast.Name) and value.id in {"np", "self", "stack"}
                found += [] if ours or name in EXACT_METHODS else [name]
            case ast.BinOp(left=left, op=ast.Pow()):
                found += [] if isinstance(left, ast.Constant) else ["**"]
    return found


@pytest.mark.parametrize("module", [exact, lattice, levels, stack])
def test_modules_below_the_chain_use_nothing_whose_last_digit_is_free(module):
    """No exp and no log but decimal's, no mean, no power: the last digit of these is free."""
    assert free_digits(ast.parse(Path(module.__file__).read_text())) == []


@pytest.mark.parametrize("name", ["pop", "_encoded", "_exact", "_position"])
def test_the_way_from_latents_to_the_coder_uses_nothing_whose_last_digit_is_free(name):
    source = textwrap.dedent(inspect.getsource(getattr(ChainCoder, name)))
    assert free_digits(ast.parse(source)) == []


@pytest.mark.parametrize(
    "line", ["np.exp(x)", "x**2", "x.mean()", "math.log(x)", "torch.exp(x)", "np.add.reduce(x)"]
)
def test_free_digits_are_found(line):
    assert free_digits(ast.parse(line)) != []


def exactly(gamma, n_levels, digits=80):
    """Return alpha², sigma² and the spacing of the levels at γ, to 80 digits."""
    with localcontext(decimal.Context(prec=digits)):
        snr = Decimal(-gamma).exp()
        return snr / (1 + snr), 1 / (1 + snr), (4 * snr).sqrt() / n_levels


@pytest.mark.parametrize("n_levels", [2, 256, 65_536])
def test_constants_are_the_nearest_floats(n_levels):
    gammas = np.rint(np.linspace(5, -13.3, 8) * 1024) / 1024
    found = lattice_of(gammas, n_levels)
    rising = gammas[::-1].tolist()
    alpha, sigma, spacing = exactly(rising[0], n_levels)
    assert found.spacing == float(spacing)
    for i in range(1, 8):
        with localcontext(decimal.Context(prec=80)):
            alpha_s, _, _ = exactly(rising[i - 1], n_levels)
            alpha_t, sigma_t, _ = exactly(rising[i], n_levels)
            given_s = (1 - alpha_t / alpha_s).sqrt()  # the deviation of q(z_t|z_s)
            widths = [Decimal(w) for w in found.width[i - 1 : i + 1].tolist()]
            ratio = (alpha_t / alpha_s).sqrt() * widths[0] / widths[1]
            assert found.forward[i] == float(ratio)
            assert abs(Decimal(found.drawn_std[i]) - given_s / widths[1]) <= Decimal(GRID) / 2
            back = given_s * (exactly(rising[i - 1], n_levels)[1] / sigma_t).sqrt()
            assert abs(Decimal(found.coded_std[i - 1]) - back / widths[0]) <= Decimal(GRID) / 2
    with localcontext(decimal.Context(prec=80)):
        width = Decimal(found.width[0])
        assert found.signal == float(alpha.sqrt() / width)
        assert found.to_levels == float(n_levels * width / (2 * alpha.sqrt()))
        assert abs(Decimal(found.drawn_std[0]) - sigma.sqrt() / width) <= Decimal(GRID) / 2
    assert found.prior_std == pytest.approx(1 / found.width[-1], rel=1e-9)
    least = np.minimum(found.drawn_std, found.coded_std)
    assert least == pytest.approx(np.full(8, stack.UNIT), rel=1e-8)


def test_constants_do_not_depend_on_the_decimals_of_the_caller():
    gammas = np.array([5.0, 0.25, -13.0])
    expected = lattice_of(gammas, 256)
    with localcontext(decimal.Context(prec=5, rounding=decimal.ROUND_UP, Emax=9, Emin=-9)):
        found = lattice_of(gammas, 256)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_powers_of_two_are_rounded_from_their_exact_values():
    for i, value in enumerate(OCTAVE.tolist()):
        below, above = Fraction(value) - GRID / 16, Fraction(value) + GRID / 16
        assert below**PER_OCTAVE < 2**i < above**PER_OCTAVE
    # files of format 2 have numpy's: the same, since none is near the middle of two
    exponent = np.arange(PER_OCTAVE * 3, PER_OCTAVE * 24 + 1) / PER_OCTAVE
    assert np.array_equal(chain._STDS, format2._shortened(np.exp2(exponent)))


@pytest.mark.parametrize(
    ("n_levels", "spacing"), [(2, 6.0), (2, 0.3), (17, 6.0), (256, 6.04), (256, 1.3), (1000, 0.2)]
)
def test_tables_are_of_integers_and_cost_next_to_nothing(n_levels, spacing):
    rng = np.random.default_rng(0)
    position = on_grid(rng.uniform(-1 / spacing, n_levels - 1 + 1 / spacing, 4000))
    nearest, reach = levels.nearest_of(position, n_levels), levels.reach_of(spacing)
    table = levels.table_of(position, nearest, spacing, n_levels, reach)
    level = nearest[:, None] + np.arange(-reach, reach + 1)
    inside = (level >= 0) & (level < n_levels)
    assert table.dtype == np.int64
    assert np.all(table.sum(1) == TOTAL)
    assert np.all(table[~inside] == 1)
    assert table.min() == 1
    log_p = np.where(inside, -0.5 * spacing**2 * (position[:, None] - level) ** 2, -np.inf)
    log_p -= np.logaddexp.reduce(log_p, 1, keepdims=True)
    p = np.exp(log_p)
    divergence = (p * np.where(p > 0, log_p - np.log(table / TOTAL), 0)).sum(1) / np.log(2)
    # a level is off by 2^(1/256) at most: ½ · 0.0027² / 3 nats if all are; and 2^−24 a symbol
    assert divergence.max() < 2e-5
    assert divergence.mean() < 3e-6 + (2 * reach + 1) / TOTAL / np.log(2)
    assert np.abs(np.log(table[p > 1e-3] / TOTAL) - log_p[p > 1e-3]).max() < 0.007


def test_a_symbol_takes_the_interval_of_its_weights():
    """A number below the total, drawn from the stack, is in the interval of one symbol."""
    rng = np.random.default_rng(0)
    weights = rng.multinomial(TOTAL - 9, rng.dirichlet(np.full(9, 0.05), 40)) + 1
    first = np.cumsum(weights, 1) - weights
    any_number = constriction.stream.model.Uniform(TOTAL)
    for row in range(40):
        for number in (first[row], first[row] + weights[row] - 1):
            for symbol in range(9):
                coder = random_stack(9)
                coder._coder.encode_reverse(
                    number[symbol : symbol + 1].astype(np.int32), any_number
                )
                assert coder.pop_table(weights[row : row + 1]).tolist() == [symbol]


def example(n_levels, n):
    """Return the constants of a chain, n latents z_0, and their positions."""
    found = lattice_of(np.array([5.0, -13.25]), n_levels)
    limit = round(1.1 * found.signal)
    z_0 = raw(n_levels, n).astype(np.int64) % (2 * limit) - limit
    return found, z_0, on_grid(found.to_levels * z_0 + 0.5 * (n_levels - 1))


def raw(key, n):
    """Return 32 random bits each, alike in all versions of numpy."""
    return (np.random.Philox(key=key).random_raw(n) >> np.uint64(32)).astype(np.uint32)


def tables_digest(n_levels, n):
    """Return a digest of the tables of n positions."""
    found, _, position = example(n_levels, n)
    nearest, reach = levels.nearest_of(position, n_levels), levels.reach_of(found.spacing)
    digest = hashlib.sha256()
    for part in levels.parts(n, reach):
        table = levels.table_of(position[part], nearest[part], found.spacing, n_levels, reach)
        digest.update(table.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


INTERVALS = {
    2: "c91824a719616a91",
    17: "fe96ce35bce34561",
    256: "6c136b884a661a7b",
    65_536: "5ecbff489db5421d",
}


@pytest.mark.parametrize("n_levels", INTERVALS)
def test_intervals_are_those_of_the_format(n_levels):
    """The words that a stack makes of given numbers: alike everywhere, and in later versions."""
    found, z_0, position = example(n_levels, 20_000)
    bits = Stack(raw(0, 80_000), sealed=True)
    x = levels.pop_levels(bits, position, found.spacing, n_levels)
    bits.draw(on_grid(found.signal * ((2 * x + 1) / n_levels - 1)), found.drawn_std[0])
    bits.push(z_0, on_grid(found.forward[1] * z_0), chain._STDS[z_0 % len(chain._STDS)])
    words = hashlib.sha256(bits.words().astype("<u4").tobytes())
    assert words.hexdigest()[:16] == INTERVALS[n_levels]


SIMD = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
"""Instructions above its baseline that numpy found here."""

SETTINGS = {
    "all at their least": {
        "NPY_DISABLE_CPU_FEATURES": " ".join(SIMD),
        "ATEN_CPU_CAPABILITY": "default",
        "DNNL_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",
    },
    "without AVX-512": {
        "NPY_DISABLE_CPU_FEATURES": " ".join(SIMD[1:]),
        "ATEN_CPU_CAPABILITY": "avx2",
        "DNNL_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
}
"""How another machine computes. What this one lacks is ignored."""

GOLDEN = Path(__file__).parent / "golden" / f"colour-{VERSION}.vdmz"
"""By a network whose weights are integers: no arithmetic makes other ones."""

MANY = 500_000
"""Tables that are compared. Of tables made of numpy's exp, one of 300,000 was another."""


@pytest.mark.parametrize("name", SETTINGS)
def test_a_decoder_under_other_arithmetic(name):
    here = Path(__file__)
    path = os.pathsep.join([str(here.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    done = subprocess.run(
        [sys.executable, str(here)],
        env=os.environ | SETTINGS[name] | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"tables": tables_digest(256, MANY), "images": 30}


def other_machine():
    """Decode as `test_a_decoder_under_other_arithmetic` asks."""
    container, back = read(GOLDEN.read_bytes(), CODERS["colour"]())
    assert container.damaged == []
    print(json.dumps({"tables": tables_digest(256, MANY), "images": len(back)}))


if __name__ == "__main__":
    other_machine()
