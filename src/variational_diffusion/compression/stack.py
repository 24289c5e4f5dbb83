"""A stack of bits on which integers are coded with given distributions, exactly invertible.

`pop` draws values from a distribution by taking bits off the stack, and `push` with the same
distribution puts these bits back: the two are inverse to each other, bit for bit, in any order of
use that is last in, first out. This is constriction's ANS coder with quantised Gaussians that are
made for lattices: constriction gives every symbol of its domain at least 2^−24, so a wide domain
would cost bits and put outliers into draws. Offsets from the rounded mean are therefore divided by
a power of two until the standard deviation is 16 to 32, and the remainders are coded uniformly.

Source: Duda, "Asymmetric numeral systems" (2009); Bamler, "Understanding entropy coding with
asymmetric numeral systems" (2022), whose library this uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import constriction
import numpy as np

UNIT = 16
"""Least standard deviation of a Gaussian on the stack, in units of the lattice."""

_DRAWN = 6.0  # standard deviations that draws reach
_CODED = 256  # reach of coded offsets; those beyond are escaped
_DIGIT = 1 << 16
_PLACES = (0, 16, 32)  # bits of an escaped offset, by digits
_FEW_LEVELS = 32  # offsets up to which the levels have a table each
_CHUNK = 1 << 20  # entries of such tables made at once
_RESERVE = 4  # words that always stay, so that no draw comes from an empty stack

_models = constriction.stream.model


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

    def push_levels(self, x: np.ndarray, position: np.ndarray, spacing: float, levels: int) -> None:
        """Code levels with p(k) ∝ exp(−½ spacing² (position − k)²), k = 0 … levels − 1.

        x: int64, at most 6.1/spacing from the positions, as every x is whose position was drawn by
        `draw`. position: in units of levels.
        """
        nearest = np.rint(position).clip(0, levels - 1).astype(np.int64)
        offset, reach = x - nearest, _level_reach(spacing)
        if reach > _FEW_LEVELS:
            return self._push(offset, _Levels(position - nearest, spacing), reach, escapes=False)
        rows = list(_rows(position.size, 2 * reach + 1))
        for part in reversed(rows):
            table = _table(position.flat[part], nearest.flat[part], spacing, levels, reach)
            symbols = (offset.flat[part] + reach).astype(np.int32)
            self._coder.encode_reverse(symbols, _models.Categorical(perfect=False), table)
        return None

    def pop_levels(self, position: np.ndarray, spacing: float, levels: int) -> np.ndarray:
        """Return the levels that `push_levels` coded."""
        nearest = np.rint(position).clip(0, levels - 1).astype(np.int64)
        reach = _level_reach(spacing)
        if reach > _FEW_LEVELS:
            gaussian = _Levels(position - nearest, spacing)
            return nearest + self._pop(gaussian, reach, escapes=False)
        offset = np.empty(position.shape, np.int64)
        for part in _rows(position.size, 2 * reach + 1):
            table = _table(position.flat[part], nearest.flat[part], spacing, levels, reach)
            offset.flat[part] = self._take(_models.Categorical(perfect=False), table)
        return nearest + offset - reach

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
        high = self._take(model, gaussian.mean, gaussian.std)
        far = np.abs(high) >= reach
        if escapes and far.any():
            digits = (self._take(_models.Uniform(_DIGIT), int(far.sum())) for _ in _PLACES)
            excess = sum(digit << place for place, digit in zip(_PLACES, digits, strict=True))
            high[far] += np.sign(high[far]) * excess
        offset = high << gaussian.shift
        wide = gaussian.shift > 0
        if wide.any():
            sizes = (1 << gaussian.shift[wide]).astype(np.int32)
            offset[wide] += self._take(_models.Uniform(), sizes)
        return (gaussian.centre + offset).reshape(gaussian.shape)

    def _take(self, model: Any, *parameters: Any) -> np.ndarray:
        symbols = self._coder.decode(model, *parameters)
        if self._coder.num_words() < _RESERVE:
            raise ExhaustedError
        return symbols.astype(np.int64)


class _Gaussian:
    """Gaussians over offsets from the rounded means, in units of 2^shift, flat.

    In these units unit h holds the offsets h 2^shift … (h + 1) 2^shift − 1.
    """

    def __init__(self, mean: np.ndarray, std: np.ndarray | float) -> None:
        self.shape = mean.shape
        mean = mean.ravel()
        centre = np.rint(mean)
        self.centre = centre.astype(np.int64)
        std = np.broadcast_to(std, self.shape).ravel()
        self.shift = self._shift(std)
        scale = np.ldexp(1.0, -self.shift)
        self.mean = (mean - centre + 0.5) * scale - 0.5
        self.std = std * scale

    def _shift(self, std: np.ndarray) -> np.ndarray:
        _, exponent = np.frexp(std / UNIT)
        return (exponent.astype(np.int64) - 1).clip(0, 22)


class _Levels(_Gaussian):
    """Gaussians over whole levels, for noise much wider than a level."""

    def __init__(self, distance: np.ndarray, spacing: float) -> None:
        super().__init__(distance, 1 / spacing)

    def _shift(self, std: np.ndarray) -> np.ndarray:
        return np.zeros(std.shape, np.int64)


def _reach(std: float) -> int:
    return int(np.ceil(_DRAWN * float(_Gaussian(np.zeros(1), std).std[0])))


def _level_reach(spacing: float) -> int:
    return int(np.ceil((_DRAWN + 0.2) / spacing)) + 1


def _rows(size: int, columns: int) -> Iterator[slice]:
    step = max(1, _CHUNK // columns)
    return (slice(first, min(first + step, size)) for first in range(0, size, step))


def _table(
    position: np.ndarray, nearest: np.ndarray, spacing: float, levels: int, reach: int
) -> np.ndarray:
    """Return the probabilities of the offsets −reach … reach from the nearest level."""
    offsets = np.arange(-reach, reach + 1)
    level = nearest[:, None] + offsets
    distance = (position - nearest).clip(-reach, reach)[:, None]
    weight = np.exp(spacing**2 * (offsets * distance - 0.5 * offsets**2))
    weight = np.where((level >= 0) & (level < levels), weight, 0.0)
    return weight / weight.sum(1, keepdims=True)
