"""Noise schedules: t in [0, 1] → γ(t) = −log SNR, increasing, and its rate γ'(t).

This is the only module that knows t; everything else is a function of γ.

Source: Kingma, Salimans, Poole, Ho, "Variational Diffusion Models" (2021), section 3.2 and
appendix H.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from variational_diffusion.errors import InputError

Time = Float[Tensor, " *batch"]

_LARGEST_STRETCH = 4.0  # each half of the range can grow or shrink by exp(4), about 55


class Schedule(nn.Module, ABC):
    """γ(t) = γ_0 + (γ_1 − γ_0) u(t), with u(0) = 0 and u(1) = 1 exactly.

    A schedule is its two end points and the shape u. The infinite-step bound depends on the end
    points alone (VDM eq. 18); the shape decides the variance of its estimate.

    gamma_min, gamma_max: end points; the initial ones, where they are learned.
    learn_end_points: whether γ_0 and γ_1 have gradients. Each is kept as the logarithm of its
        distance from the middle of the initial range, so they move independently and γ_0 < γ_1
        holds whatever an optimiser does. Neither can cross that middle.
    """

    def __init__(self, gamma_min: float, gamma_max: float, *, learn_end_points: bool) -> None:
        super().__init__()
        if not gamma_min < gamma_max:
            raise InputError(
                f"gamma_min = {gamma_min} and gamma_max = {gamma_max}: noise must grow with t, "
                "give gamma_min < gamma_max"
            )
        range_ = torch.tensor([gamma_min, gamma_max], dtype=torch.get_default_dtype())
        self.register_buffer("initial_end_points", range_, persistent=True)
        self.log_stretch = nn.Parameter(torch.zeros(2), requires_grad=learn_end_points)

    @property
    def end_points(self) -> Float[Tensor, " 2"]:
        """(γ_0, γ_1)."""
        initial: Tensor = self.get_buffer("initial_end_points")
        stretch = self.log_stretch.clamp(-_LARGEST_STRETCH, _LARGEST_STRETCH)
        # expm1 leaves the initial end points exactly as they were given.
        return initial + (initial - initial.mean()) * torch.expm1(stretch)

    @property
    def gamma_0(self) -> Float[Tensor, ""]:
        """γ(0): the cleanest level."""
        return self.end_points[0]

    @property
    def gamma_1(self) -> Float[Tensor, ""]:
        """γ(1): the noisiest level."""
        return self.end_points[1]

    def forward(self, t: Time) -> Time:
        """Return γ(t) for t in [0, 1], in the shape of t."""
        return self.gamma_and_rate(t)[0]

    def gamma_and_rate(self, t: Time) -> tuple[Time, Time]:
        """Return γ(t) and dγ/dt, both in the shape of t."""
        gamma_0, gamma_1 = self.end_points.unbind()
        u, rate = self.shape_and_rate(t)
        return torch.lerp(gamma_0, gamma_1, u), (gamma_1 - gamma_0) * rate

    @abstractmethod
    def shape_and_rate(self, t: Time) -> tuple[Time, Time]:
        """Return u(t), from u(0) = 0 to u(1) = 1, and du/dt > 0."""


class FixedLinear(Schedule):
    """γ is linear in t between two given levels; nothing is learned."""

    def __init__(self, gamma_min: float = -13.3, gamma_max: float = 5.0) -> None:
        super().__init__(gamma_min, gamma_max, learn_end_points=False)

    def shape_and_rate(self, t: Time) -> tuple[Time, Time]:
        return t, torch.ones_like(t)


class LearnedLinear(Schedule):
    """γ is linear in t; its two end points are learned (VDM section 3.2)."""

    def __init__(self, gamma_min: float = -13.3, gamma_max: float = 5.0) -> None:
        super().__init__(gamma_min, gamma_max, learn_end_points=True)

    def shape_and_rate(self, t: Time) -> tuple[Time, Time]:
        return t, torch.ones_like(t)


class Monotone(Schedule):
    """A monotone network for the shape, and end points learned or fixed (VDM appendix H).

    u(t) = (g(t) − g(0)) / (g(1) − g(0)), g(t) = l1(t) + l3(sigmoid(l2(l1(t)))), where the linear
    layers l1, l2, l3 have 1, `hidden` and 1 outputs and positive weights. Without the
    normalisation, which the published code leaves out, training moves the end points.

    The shape starts close to linear, with the bends of the hidden units spread evenly over t.

    hidden: number of hidden units, at least 2.
    """

    def __init__(
        self,
        gamma_min: float = -13.3,
        gamma_max: float = 5.0,
        *,
        hidden: int = 1024,
        learn_end_points: bool = True,
    ) -> None:
        super().__init__(gamma_min, gamma_max, learn_end_points=learn_end_points)
        if hidden < 2:
            raise InputError(f"hidden = {hidden}: a monotone schedule takes 2 units or more")
        steepness = 20.0  # a bend of one hidden unit spans about a fifth of the time axis
        self.raw_weight_1 = nn.Parameter(_inverse_softplus(torch.ones(1)))
        self.bias_1 = nn.Parameter(torch.zeros(1))
        self.raw_weight_2 = nn.Parameter(_inverse_softplus(torch.full((hidden,), steepness)))
        self.bias_2 = nn.Parameter(-steepness * torch.linspace(0, 1, hidden))
        self.raw_weight_3 = nn.Parameter(_inverse_softplus(torch.full((hidden,), 1 / hidden)))

    def shape_and_rate(self, t: Time) -> tuple[Time, Time]:
        g, rate = self._unnormalised(t)
        (g_0, g_1), _ = self._unnormalised(torch.tensor([0.0, 1.0], dtype=t.dtype, device=t.device))
        u = (g - g_0) / (g_1 - g_0)
        # Batches of other sizes add up in another order: keep the ends exact, and their gradients.
        exact = torch.where(t == 0, 0.0, torch.where(t == 1, 1.0, u))
        return u + (exact - u).detach(), rate / (g_1 - g_0)

    def _unnormalised(self, t: Time) -> tuple[Time, Time]:
        """Return g(t) up to a constant, which the normalisation takes out, and dg/dt."""
        weight_1, weight_2, weight_3 = map(
            softplus, (self.raw_weight_1.squeeze(), self.raw_weight_2, self.raw_weight_3)
        )
        l_1 = weight_1 * t + self.bias_1.squeeze()
        hidden = torch.sigmoid(weight_2 * l_1.unsqueeze(-1) + self.bias_2)
        rate = 1 + (hidden * (1 - hidden)) @ (weight_2 * weight_3)
        return l_1 + hidden @ weight_3, weight_1 * rate


def _inverse_softplus(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-x))


SCHEDULES: dict[str, type[Schedule]] = {
    "fixed-linear": FixedLinear,
    "learned-linear": LearnedLinear,
    "monotone": Monotone,
}
