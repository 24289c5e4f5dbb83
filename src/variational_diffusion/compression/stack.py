"""A stack of bits on which integers are coded with given distributions, exactly invertible.

`pop` draws values from a distribution by taking bits off the stack, and `push` with the same
distribution puts these bits back: the two are inverse to each other, bit for bit, in any order of
use that is last in, first out. This is constriction's ANS coder with quantised Gaussians that are
made for lattices: constriction gives every symbol of its domain at least 2^−24, so a wide domain
would cost bits and put outliers into draws. Offsets from the rounded mean are therefore divided by
a power of two until the standard deviation is 16 to 32, and the remainders are coded uniformly.

Every mean and standard deviation that comes here has to be the same number, bit for bit, in encoder
and decoder (`exact`); every weight of a table is an integer. What constriction makes of them is
then the same, too: its Gaussians are sums, products and quotients in float64 and the erf of Rust's
libm, which consists of such operations and is compiled in; of tables with this total it rounds
nothing.

Source: Duda, "Asymmetric numeral systems" (2009); Bamler, "Understanding entropy coding with
asymmetric numeral systems" (2022), whose library this uses.
"""

from __future__ import annotations

from typing import Any

import constriction
import numpy as np

UNIT = 16
"""Least standard deviation of a Gaussian on the stack, in units of the lattice."""

DRAWN = 6.0
"""Standard deviations that draws reach."""

TOTAL = 1 << 24
"""Total of the weights of a table."""

_CODED = 256  # reach of coded offsets; those beyond are escaped
_DIGIT = 1 << 16
_PLACES = (0, 16, 32)  # bits of an escaped offset, by digits
_RESERVE = 4  # words that always stay, so that no draw comes from an empty stack

_models = constriction.stream.model

TABLE = _models.Categorical(perfect=False)
"""Tables: constriction makes intervals of them as it goes."""


class ExhaustedError(Exception):
    """There are too few bits on the stack for what is popped."""


class Stack:
    """Bits, last in, first out.

    words: what is on it, uint32. sealed: whether they are any words (a mark is put on top), or what
    `words` of another stack gave, which ends in a word that is not zero.
    """

    def __init__(self, words: np.ndarray, *, sealed: bool) -> None:
        coder = constriction.stream.stack.AnsCoder
        self._coder: Any = coder(words.astype(np.uint32), seal=sealed)

    def copy(self) -> Stack:
        """Return a stack with the same bits."""
        other = object.__new__(Stack)
        other._coder = self._coder.clone()
        return other

    @property
    def bits(self) -> int:
        """Number of bits on the stack."""
        return int(self._coder.num_bits())

    def words(self, *, sealed: bool = False) -> np.ndarray:
        """Return what is on the stack; `sealed` takes the mark off that was put there first.

        Raises ValueError where there is no such mark.
        """
        try:
            return self._coder.get_compressed(unseal=sealed)
        except AssertionError as error:
            raise ValueError("its stack does not end where it began") from error

    def draw(self, mean: np.ndarray, std: float) -> np.ndarray:
        """Pop integers from a Gaussian of these means, cut off at ±6 std. std: ≥ `UNIT`."""
        return self._pop(_Gaussian(mean, std), _reach(std), escapes=False)

    def undraw(self, values: np.ndarray, mean: np.ndarray, std: float) -> None:
        """Put back the bits that `draw` took for these values."""
        self._push(values, _Gaussian(mean, std), _reach(std), escapes=False)

    def push(self, values: np.ndarray, mean: np.ndarray, std: np.ndarray) -> None:
        """Code any integers with Gaussians: far ones are dear, none is impossible.

        values: int64, within 2^47 of the mean. std: ≥ about `UNIT`.
        """
        self._push(values, _Gaussian(mean, std), _CODED, escapes=True)

    def pop(self, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
        """Return the integers that `push` coded with these means and standard deviations."""
        return self._pop(_Gaussian(mean, std), _CODED, escapes=True)

    def push_near(self, values: np.ndarray, mean: np.ndarray, std: float, reach: int) -> None:
        """Code integers that are at most `reach` from the rounded mean, with Gaussians of any std.

        std: ≥ 1, or the reach wastes bits.
        """
        self._push(values, _Gaussian(mean, std, fine=True), reach, escapes=False)

    def pop_near(self, mean: np.ndarray, std: float, reach: int) -> np.ndarray:
        """Return the integers that `push_near` coded."""
        return self._pop(_Gaussian(mean, std, fine=True), reach, escapes=False)

    def push_table(self, symbols: np.ndarray, weights: np.ndarray) -> None:
        """Code symbols, shape (n,), that have a table each.

        weights: integers of shape (n, symbols), each 1 or more, that sum to `TOTAL` in each row.
        """
        free = (weights - 1).astype(np.float64)  # constriction adds 1 to each and multiplies by 1
        self._coder.encode_reverse(symbols.astype(np.int32), TABLE, free)

    def pop_table(self, weights: np.ndarray) -> np.ndarray:
        """Return the symbols that `push_table` coded: int64."""
        return self.take(TABLE, (weights - 1).astype(np.float64))

    def take(self, model: Any, *parameters: Any) -> np.ndarray:
        """Pop integers from distributions of constriction: int64."""
        symbols = self._coder.decode(model, *parameters)
        if self._coder.num_words() < _RESERVE:
            raise ExhaustedError
        return symbols.astype(np.int64)

    def _push(self, values: np.ndarray, gaussian: _Gaussian, reach: int, escapes: bool) -> None:
        offset = values.ravel() - gaussian.centre
        high = offset >> gaussian.shift
        wide = gaussian.shift > 0
        if wide.any():
            shift = gaussian.shift[wide]
            low = (offset[wide] & ((1 << shift) - 1)).astype(np.int32)
            self._coder.encode_reverse(low, _models.Uniform(), (1 << shift).astype(np.int32))
        symbols = high.clip(-reach, reach)
        far = np.abs(high) >= reach
        if escapes and far.any():
            excess = np.abs(high[far]) - reach
            for place in reversed(_PLACES):
                digit = (excess >> place) & (_DIGIT - 1)
                self._coder.encode_reverse(digit.astype(np.int32), _models.Uniform(_DIGIT))
        self._coder.encode_reverse(
            symbols.astype(np.int32),
            _models.QuantizedGaussian(-reach, reach),
            gaussian.mean,
            gaussian.std,
        )

    def _pop(self, gaussian: _Gaussian, reach: int, escapes: bool) -> np.ndarray:
        model = _models.QuantizedGaussian(-reach, reach)
        high = self.take(model, gaussian.mean, gaussian.std)
        far = np.abs(high) >= reach
        if escapes and far.any():
            digits = (self.take(_models.Uniform(_DIGIT), int(far.sum())) for _ in _PLACES)
            excess = sum(digit << place for place, digit in zip(_PLACES, digits, strict=True))
            high[far] += np.sign(high[far]) * excess
        offset = high << gaussian.shift
        wide = gaussian.shift > 0
        if wide.any():
            sizes = (1 << gaussian.shift[wide]).astype(np.int32)
            offset[wide] += self.take(_models.Uniform(), sizes)
        return (gaussian.centre + offset).reshape(gaussian.shape)


class _Gaussian:
    """Gaussians over offsets from the rounded means, in units of 2^shift, flat.

    In these units unit h holds the offsets h 2^shift … (h + 1) 2^shift − 1. fine: never shift.
    """

    def __init__(self, mean: np.ndarray, std: np.ndarray | float, *, fine: bool = False) -> None:
        self.shape = mean.shape
        mean = mean.ravel()
        centre = np.rint(mean)
        self.centre = centre.astype(np.int64)
        std = np.broadcast_to(std, self.shape).ravel()
        _, exponent = np.frexp(std / UNIT)
        self.shift = (exponent.astype(np.int64) - 1).clip(0, 0 if fine else 22)
        scale = np.ldexp(1.0, -self.shift)
        self.mean = (mean - centre + 0.5) * scale - 0.5
        self.std = std * scale


def _reach(std: float) -> int:
    return int(np.ceil(DRAWN * float(_Gaussian(np.zeros(1), std).std[0])))
