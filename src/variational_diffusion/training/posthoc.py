"""Averages of the weights whose width is chosen after training.

A power-function average at step t gives the weights of step τ the share p(τ) ∝ τ^γ, 0 < τ ≤ t. Its
width is the standard deviation of p as a share of t, so that it means the same for a run of any
length. Training keeps the averages of two widths, `run.averages` stores them now and then, and the
p of any other width is close to a sum of the stored ones; the same sum of the stored weights is
then close to the average of that width.

Source: Karras, Aittala, Lehtinen, Hellsten, Aila, Laine, "Analyzing and Improving the Training
Dynamics of Diffusion Models" (2024), section 3 and appendix C.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from variational_diffusion.machine.distributed import local

WIDTHS = (0.05, 0.1)
"""Of the averages that training keeps."""

NARROWEST, WIDEST = 0.02, 0.25
"""Of the averages that can be made of them afterwards."""


class Profile(NamedTuple):
    """The shares p of an average. step: t, the last one it takes in. width: σ_rel."""

    step: float
    width: float


class PowerAverages:
    """Averages of a model's parameters over its steps, one for each of some widths.

    average ← β · average + (1 − β) · weights with β = (1 − 1/t)^(γ + 1) at update t. This is the
    integral of p times the weights where those of step i hold from i − 1 to i, without error.
    The parameters are listed once, as by `ema.ExponentialAverage`; buffers are not averaged.
    """

    def __init__(self, model: nn.Module, widths: Sequence[float] = WIDTHS) -> None:
        self.updates = 0
        self._powers = {width: exponent(width) + 1 for width in widths}
        self._names = [name for name, _ in model.named_parameters()]
        self._weights = [weight.detach() for weight in model.parameters()]
        self._averages = {width: [w.clone() for w in self._weights] for width in widths}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights that the model has now."""
        self.updates += 1
        for width, averages in self._averages.items():
            share = 1 - (1 - 1 / self.updates) ** self._powers[width]
            torch._foreach_lerp_(list(map(local, averages)), list(map(local, self._weights)), share)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages themselves, by "width.name of the parameter"."""
        return {
            f"{width}.{name}": average
            for width, averages in self._averages.items()
            for name, average in zip(self._names, averages, strict=True)
        }

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Take over what `state_dict` returned after so many updates."""
        self.updates = updates
        for key, average in self.state_dict().items():
            average.copy_(tensors[key])


def exponent(width: float) -> float:
    """Return the γ of a width in (0, 0.288]: (γ + 1)/((γ + 2)² (γ + 3)) = width²."""
    t = width**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def overlaps(a: Sequence[Profile], b: Sequence[Profile]) -> np.ndarray:
    """Return ∫ p_a(τ) p_b(τ) dτ for every pair, shape (len(a), len(b)), in closed form."""
    t_a, gamma_a = _columns(a)
    t_b, gamma_b = (column.T for column in _columns(b))
    first = np.minimum(t_a, t_b)
    powers = (first / t_a) ** gamma_a * (first / t_b) ** gamma_b
    factors = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return factors * powers / np.maximum(t_a, t_b)


def mixture(stored: Sequence[Profile], wanted: Profile) -> tuple[np.ndarray, float]:
    """Return coefficients with which the stored profiles add up to the wanted one, and the rest.

    They minimise ∫ (Σ c_i p_i − p)² among all that add up to one, so that weights which never
    change are kept as they are. The rest is the root of that minimum as a share of that of ∫ p².
    """
    n = len(stored)
    norm = overlaps([wanted], [wanted]).item()
    among = overlaps(stored, stored) / norm
    with_wanted = overlaps(stored, [wanted])[:, 0] / norm
    system = np.block([[among, np.ones((n, 1))], [np.ones((1, n)), np.zeros((1, 1))]])
    # by singular values, as a last snapshot soon after another makes two nearly equal columns
    coefficients = np.linalg.lstsq(system, np.append(with_wanted, 1.0))[0][:n]
    rest = 1 - 2 * coefficients @ with_wanted + coefficients @ among @ coefficients
    return coefficients, math.sqrt(max(0.0, rest))


def _columns(profiles: Sequence[Profile]) -> tuple[np.ndarray, np.ndarray]:
    steps = np.array([[profile.step] for profile in profiles], np.float64)
    return steps, np.array([[exponent(profile.width)] for profile in profiles])
