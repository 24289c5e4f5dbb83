"""Noise schedules: t in [0, 1] → γ(t) = −log SNR, increasing, and its rate γ'(t).

This is the only module that knows t; everything else is a function of γ.

Source: Kingma, Salimans, Poole, Ho, "Variational Diffusion Models" (2021), section 3.2 and
appendices H and I.2. How a schedule learns is in `objective`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import softplus

from variational_diffusion.config import LogNoise
from variational_diffusion.errors import InputError
from variational_diffusion.machine.distributed import sum_over_processes
from variational_diffusion.weightings import Weighting

Time = Float[Tensor, " *batch"]

_LARGEST_STRETCH = 4.0  # each half of the range can grow or shrink by exp(4), about 55
_AT_FLOOR = 0.25  # what γ_0 may be above its floor and count as there
_SMOOTHING = 1 / 100  # Adaptive: standard deviation of the kernel, as a share of the range of γ
_STEEPNESS = (10.0, 40.0, 160.0, 640.0)  # Monotone: of the hidden units in turn; 10 is a wide bend
_LEAST_RATE = 0.005  # Monotone: share of a straight line; γ increases strictly, in float32 too
_SHARE_IN_MEAN_LOSS = 0.02  # of the step that enters it

CALLS_PER_MEASUREMENT = 64
"""Steps of training to one measurement of the errors at the end points, by two passes."""


class Seen(NamedTuple):
    """What a backward pass of `objective.diffusion` shows a schedule.

    u, error, loss: of each example the shape's value, m = ½‖ε − ε̂‖² and the loss there, weighted if
    the training is; shape (batch,). at_ends: the mean of m at γ_0 and at γ_1, shape (2,), where it
    was measured.
    """

    u: Tensor
    error: Tensor
    loss: Tensor
    at_ends: Tensor | None


class Schedule(nn.Module, ABC):
    """γ(t) = γ_0 + (γ_1 − γ_0) u(t), with u(0) = 0 and u(1) = 1 exactly.

    A schedule is its two end points and the shape u. The infinite-step bound depends on the end
    points alone (VDM eq. 18); the shape decides the variance of its estimate. So the parameter
    `log_stretch` of the end points learns by the bound, and all others learn by the variance.

    Args:
        gamma_min: Cleanest level γ_0, the initial one where it is learned.
        gamma_max: Noisiest level γ_1, the initial one where it is learned.
        learn_end_points: Whether γ_0 and γ_1 have gradients. Each is kept as the logarithm of its
            distance from the middle of the initial range, so they move independently and γ_0 < γ_1
            holds whatever an optimiser does. Neither can cross that middle.
        floor: What a learned γ_0 does not fall below; None: it may fall freely. The bound of
            real-valued data with repeated values has no minimum (`data.reals`).

    Attributes:
        mean_loss: Running mean of the loss over the steps of training.
        end_errors: ½‖ε − ε̂‖² at γ_0 and γ_1, shape (2,).
        calls: Number of steps of training: a backward pass through `objective.diffusion` in
            training mode; those inside `one_step` are one together.

    Raises:
        InputError: For gamma_min ≥ gamma_max.
    """

    initial_end_points: Tensor
    largest_stretch: Tensor
    mean_loss: Tensor
    end_errors: Tensor
    calls: int

    def __init__(
        self,
        gamma_min: LogNoise,
        gamma_max: LogNoise,
        *,
        learn_end_points: bool,
        floor: float | None = None,
    ) -> None:
        super().__init__()
        if not gamma_min < gamma_max:
            raise InputError(
                f"gamma_min = {gamma_min} and gamma_max = {gamma_max}: noise must grow with t, "
                "give gamma_min < gamma_max"
            )
        range_ = torch.tensor([gamma_min, gamma_max], dtype=torch.get_default_dtype())
        self.register_buffer("initial_end_points", range_, persistent=True)
        self.log_stretch = nn.Parameter(torch.zeros(2), requires_grad=learn_end_points)
        self.register_buffer("mean_loss", torch.zeros(()))
        self.register_buffer("end_errors", torch.zeros(2))
        self.calls = 0
        self._seen: list[Seen] | None = None  # in the step that is being made
        self.floor = floor
        largest = _stretch_to(floor, gamma_min, gamma_max)
        limit = torch.tensor([largest, math.inf], dtype=torch.get_default_dtype())
        self.register_buffer("largest_stretch", limit, persistent=False)

    def get_extra_state(self) -> Tensor:
        """Return the number of steps, not a buffer: to look at one would wait for the GPU."""
        return torch.tensor(self.calls)

    def set_extra_state(self, state: Tensor) -> None:
        """Take what `get_extra_state` gave."""
        self.calls = int(state)

    @property
    def end_points(self) -> Float[Tensor, " 2"]:
        """(γ_0, γ_1)."""
        initial = self.initial_end_points
        stretch: Tensor = self.log_stretch
        if self.floor is not None:
            stretch = stretch.clamp(max=self.largest_stretch)
        stretch = _LARGEST_STRETCH * torch.tanh(stretch / _LARGEST_STRETCH)
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

    @torch.no_grad()
    def stay_above_floor(self) -> None:
        """Take γ_0 back to its floor where an optimiser went below it: after each of its steps.

        Without it γ_0 is at the floor all the same, and comes back late when the gradient turns.
        """
        if self.floor is not None:
            self.log_stretch.clamp_(max=self.largest_stretch)

    def forward(self, t: Time) -> Time:
        """Return γ(t) for t in [0, 1], in the shape of t."""
        return self.gamma_and_rate(t)[0]

    def gamma_and_rate(self, t: Time) -> tuple[Time, Time]:
        """Return γ(t) and dγ/dt, both in the shape of t."""
        return between(self.end_points, *self.shape_and_rate(t))

    @abstractmethod
    def shape_and_rate(self, t: Time) -> tuple[Time, Time]:
        """Return u(t), from u(0) = 0 to u(1) = 1, and du/dt > 0."""

    def weighted_shape_and_rate(self, t: Time, weighting: Weighting | None) -> tuple[Time, Time]:
        """Return u(t) and du/dt where the loss is weighted, which training may do.

        Args:
            t: Times in [0, 1].
            weighting: w(γ) of the loss; a schedule that does not keep the two apart has one shape
                for all.
        """
        return self.shape_and_rate(t)

    @property
    def measures_ends(self) -> bool:
        """Whether `objective.diffusion` measures the errors at the ends for their gradient.

        In training at one step in `CALLS_PER_MEASUREMENT`, elsewhere always; if they are learned.
        """
        due = not self.training or self.calls % CALLS_PER_MEASUREMENT == 0
        return self.log_stretch.requires_grad and due

    @contextmanager
    def one_step(self) -> Iterator[None]:
        """Let all backward passes inside be parts of one step.

        Each part is given the schedule as it was before, and what all of them saw enters at the
        end, as if it had come from one pass with all examples.
        """
        self._seen = []
        try:
            yield
            self.remember()
            self.calls += 1
        finally:
            self._seen = None

    def learn_from(self, seen: Seen) -> None:
        """Take note of a backward pass: at the end of `one_step`, or at once outside of it."""
        if self._seen is None:
            with self.one_step():
                self.learn_from(seen)
        else:
            self._seen.append(seen)

    @torch.no_grad()
    def remember(self) -> None:
        """Let what was seen in this step enter the memory, from all processes.

        `one_step` does it at its end. What is recorded as a CUDA graph calls it itself: it changes
        buffers in place and looks at no value.
        """
        if not self._seen:
            return
        u, error, loss = (
            torch.cat([getattr(seen, name) for seen in self._seen])
            for name in ("u", "error", "loss")
        )
        sums = [torch.full_like(loss[0], len(loss)), loss.sum()]
        ends = [len(seen.loss) * seen.at_ends for seen in self._seen if seen.at_ends is not None]
        if ends:
            sums += torch.stack(ends).sum(0).unbind()
        self._seen.clear()
        count, total, *at_ends = sum_over_processes(torch.stack(sums))
        share = torch.where(self.mean_loss == 0, 1.0, _SHARE_IN_MEAN_LOSS)
        _replace(self.mean_loss, self.mean_loss.lerp(total / count, share))
        if at_ends:
            _replace(self.end_errors, torch.stack(at_ends) / count)
        self.observe(u, error)

    def observe(self, u: Time, error: Time) -> None:
        """Take note of measured errors; `remember` calls it.

        Args:
            u: Where they were measured: values of the shape.
            error: m = ½‖ε − ε̂‖². Schedules that learn by gradients, or not at all, have no use for
                it.
        """


def _replace(buffer: Tensor, value: Tensor) -> None:
    """Write a value into a buffer where it is finite: one bad batch must not stay for ever."""
    buffer.copy_(torch.where(value.isfinite(), value, buffer))


def floor_note(gamma_0: float, floor: float | None) -> str | None:
    """Return what is to be said of a γ_0 that has come to its floor; None where it has not."""
    if floor is None or gamma_0 > floor + _AT_FLOOR:
        return None
    return (
        f"γ_0 has reached its floor of {floor:.4g}, which limits these bits: without it, "
        "they would fall for ever, as values that repeat have no density; see vdm data and "
        "docs/arrays.md"
    )


def _stretch_to(floor: float | None, gamma_min: float, gamma_max: float) -> float:
    """Return the `log_stretch` with which γ_0 is at the floor."""
    if floor is None:
        return math.inf
    if floor > gamma_min:
        raise InputError(
            f"gamma_min = {gamma_min} and floor = {floor}: γ_0 starts at the floor or above; give "
            f"--set schedule.gamma_min={floor}, or --set schedule.floor=null for none"
        )
    stretch = math.log1p((gamma_min - floor) / (0.5 * (gamma_max - gamma_min)))
    share = stretch / _LARGEST_STRETCH
    return _LARGEST_STRETCH * math.atanh(share) if share < 1 else math.inf


def between(end_points: Float[Tensor, " 2"], u: Time, rate: Time) -> tuple[Time, Time]:
    """Return γ = γ_0 + (γ_1 − γ_0) u, exact at both ends, and its rate."""
    gamma_0, gamma_1 = end_points.unbind()
    return torch.lerp(gamma_0, gamma_1, u), (gamma_1 - gamma_0) * rate


class FixedLinear(Schedule):
    """γ is linear in t between two given levels; nothing is learned.

    Args:
        gamma_min: Cleanest level γ_0.
        gamma_max: Noisiest level γ_1.

    Raises:
        InputError: For gamma_min ≥ gamma_max.

    Examples:
        >>> vd.FixedLinear(-10.0, 6.0)(torch.tensor([0.0, 0.5, 1.0]))
        tensor([-10.,  -2.,   6.])
    """

    def __init__(self, gamma_min: LogNoise = -13.3, gamma_max: LogNoise = 5.0) -> None:
        super().__init__(gamma_min, gamma_max, learn_end_points=False)

    def shape_and_rate(self, t: Time) -> tuple[Time, Time]:
        return t, torch.ones_like(t)


class Cosine(Schedule):
    """alpha = cos(π s/2), sigma = sin(π s/2), for s linear in t between two given levels.

    For comparison: γ = 2 log tan(π s/2), from Nichol and Dhariwal, "Improved Denoising Diffusion
    Probabilistic Models" (2021), eq. 17, without its offset and cut to [γ_0, γ_1].

    Args:
        gamma_min: Cleanest level γ_0.
        gamma_max: Noisiest level γ_1.

    Raises:
        InputError: For gamma_min ≥ gamma_max.

    Examples:
        >>> schedule = vd.Cosine(-8.0, 8.0)
        >>> abs(float(schedule(torch.tensor(0.5)))) < 1e-5  # as much noise as signal
        True
    """

    def __init__(self, gamma_min: LogNoise = -13.3, gamma_max: LogNoise = 5.0) -> None:
        super().__init__(gamma_min, gamma_max, learn_end_points=False)

    def shape_and_rate(self, t: Time) -> tuple[Time, Time]:
        gamma_0, gamma_1 = self.initial_end_points.unbind()
        angle_0, angle_1 = torch.atan(torch.exp(0.5 * self.initial_end_points)).unbind()
        angle = torch.lerp(angle_0, angle_1, t)
        u = (2 * torch.log(torch.tan(angle)) - gamma_0) / (gamma_1 - gamma_0)
        rate = 4 * (angle_1 - angle_0) / torch.sin(2 * angle) / (gamma_1 - gamma_0)
        return _exact_ends(t, u), rate


class LearnedLinear(Schedule):
    """γ is linear in t; its two end points are learned (VDM section 3.2).

    Args:
        gamma_min: Initial γ_0.
        gamma_max: Initial γ_1.
        floor: As in `Schedule`.

    Raises:
        InputError: For gamma_min ≥ gamma_max.

    Examples:
        >>> [name for name, p in vd.LearnedLinear().named_parameters() if p.requires_grad]
        ['log_stretch']
    """

    def __init__(
        self, gamma_min: LogNoise = -13.3, gamma_max: LogNoise = 5.0, *, floor: float | None = None
    ) -> None:
        super().__init__(gamma_min, gamma_max, learn_end_points=True, floor=floor)

    def shape_and_rate(self, t: Time) -> tuple[Time, Time]:
        return t, torch.ones_like(t)


class Monotone(Schedule):
    """A monotone network for the shape, and end points learned or fixed (VDM appendix H).

    u(t) = (g(t) − g(0)) / (g(1) − g(0)), g(t) = l1(t) + l3(sigmoid(l2(l1(t)))), where the linear
    layers l1, l2, l3 have 1, `hidden` and 1 outputs and positive weights. Without the
    normalisation, which the published code leaves out, training moves the end points. A small share
    of a straight line is added to g, so that no update can flatten γ(t).

    The shape starts close to linear, with the bends of the hidden units spread evenly over t, from
    wide ones to sharp ones: γ(t) has to turn sharply where the last of the noise comes in.

    Args:
        gamma_min: Initial γ_0.
        gamma_max: Initial γ_1.
        hidden: Number of hidden units, at least 2.
        learn_end_points: As in `Schedule`.
        floor: As in `Schedule`.

    Raises:
        InputError: For gamma_min ≥ gamma_max, and for fewer than 2 hidden units.

    Examples:
        >>> gamma = vd.Monotone(-10.0, 6.0)(torch.linspace(0, 1, 5)).detach()
        >>> float(gamma[0]), float(gamma[-1]), bool((gamma.diff() > 0).all())
        (-10.0, 6.0, True)
    """

    def __init__(
        self,
        gamma_min: LogNoise = -13.3,
        gamma_max: LogNoise = 5.0,
        *,
        hidden: Annotated[int, Field(ge=2, le=1_000_000)] = 1024,
        learn_end_points: bool = True,
        floor: float | None = None,
    ) -> None:
        super().__init__(gamma_min, gamma_max, learn_end_points=learn_end_points, floor=floor)
        if hidden < 2:
            raise InputError(f"hidden = {hidden}: a monotone schedule takes 2 units or more")
        steepness = torch.tensor(_STEEPNESS).repeat(hidden // len(_STEEPNESS) + 1)[:hidden]
        self.raw_weight_1 = nn.Parameter(_inverse_softplus(torch.ones(1)))
        self.bias_1 = nn.Parameter(torch.zeros(1))
        self.raw_weight_2 = nn.Parameter(_inverse_softplus(steepness))
        self.bias_2 = nn.Parameter(-steepness * torch.linspace(0, 1, hidden))
        self.raw_weight_3 = nn.Parameter(_inverse_softplus(torch.full((hidden,), 1 / hidden)))

    @torch.no_grad()
    def set_shape(
        self,
        slope: Float[Tensor, ""],
        steepness: Float[Tensor, " hidden"],
        offset: Float[Tensor, " hidden"],
        weight: Float[Tensor, " hidden"],
    ) -> None:
        """Let u follow g(t) = slope · t + Σ weight · sigmoid(steepness · t + offset).

        Args:
            slope: Of the straight line, ≥ 0.
            steepness: Of each hidden unit, ≥ 0, shape (hidden,).
            offset: Of each hidden unit, shape (hidden,).
            weight: Of each hidden unit, ≥ 0, shape (hidden,).

        Raises:
            InputError: Where g is flatter than a learned one can be.
        """
        least = _LEAST_RATE * weight.sum()
        if not slope > least:
            raise InputError(
                f"slope = {float(slope):.3g}: with these weights it has to be above "
                f"{float(least):.3g}, the share of a straight line that a monotone schedule keeps"
            )
        weight_1 = (slope - least) / (1 + _LEAST_RATE)
        smallest = torch.finfo(self.bias_2.dtype).tiny
        self.raw_weight_1.fill_(_inverse_softplus(weight_1))
        self.bias_1.zero_()
        self.raw_weight_2.copy_(_inverse_softplus((steepness / weight_1).clamp(min=smallest)))
        self.bias_2.copy_(offset)
        self.raw_weight_3.copy_(_inverse_softplus(weight.clamp(min=smallest)))

    def shape_and_rate(self, t: Time) -> tuple[Time, Time]:
        g, rate = self._unnormalised(t)
        (g_0, g_1), _ = self._unnormalised(torch.linspace(0, 1, 2, dtype=t.dtype, device=t.device))
        return _exact_ends(t, (g - g_0) / (g_1 - g_0)), rate / (g_1 - g_0)

    def _unnormalised(self, t: Time) -> tuple[Time, Time]:
        """Return g(t) up to a constant, which the normalisation takes out, and dg/dt."""
        weight_1, weight_2, weight_3 = map(
            softplus, (self.raw_weight_1.squeeze(), self.raw_weight_2, self.raw_weight_3)
        )
        hidden = torch.sigmoid(
            weight_2 * (weight_1 * t + self.bias_1.squeeze()).unsqueeze(-1) + self.bias_2
        )
        # sums and no matrix products, which mixed precision would round to bfloat16
        rate = weight_1 * (1 + (hidden * (1 - hidden) * (weight_2 * weight_3)).sum(-1))
        linear = _LEAST_RATE * (weight_1 + weight_3.sum()) + torch.finfo(t.dtype).tiny
        return (weight_1 + linear) * t + (hidden * weight_3).sum(-1), rate + linear


class Adaptive(Schedule):
    """The density of γ that is best for the errors seen so far; no gradient, no network.

    The variance of the bound's estimate is least where γ has the density p*(γ) ∝ √E[m²], m = ½‖ε −
    ε̂‖² (see `loss_profile`). [γ_0, γ_1] is divided into bins of one width, each with the running
    mean of m²; the means are smoothed over neighbouring bins, and γ(t) is the inverse of the
    cumulative distribution function of √E[m²] with a small uniform part: piecewise linear in t, and
    steeper where the errors are small.

    A loss that is weighted by w(γ) is estimated best by the density ∝ w √E[m²], which its times are
    drawn from. What is kept is the mean of m², so the shape itself stays that of the bound.

    Args:
        gamma_min: Initial γ_0.
        gamma_max: Initial γ_1.
        bins: Number of bins.
        memory: Number of measurements, over all bins, that the means go back to.
        uniform: Share of the uniform part, in (0, 1].
        learn_end_points: As in `Schedule`.
        floor: As in `Schedule`.

    Raises:
        InputError: For gamma_min ≥ gamma_max, and for counts and shares out of range.

    Examples:
        >>> schedule = vd.Adaptive(-10.0, 6.0)
        >>> gammas = schedule(torch.tensor([0.0, 0.5, 1.0])).detach()
        >>> torch.allclose(gammas, torch.tensor([-10.0, -2.0, 6.0]))
        True
    """

    count: Tensor
    moment: Tensor

    def __init__(
        self,
        gamma_min: LogNoise = -13.3,
        gamma_max: LogNoise = 5.0,
        *,
        bins: Annotated[int, Field(ge=1, le=1_000_000)] = 100,
        memory: Annotated[float, Field(ge=1)] = 3000.0,
        uniform: Annotated[float, Field(gt=0, le=1)] = 0.001,
        learn_end_points: bool = True,
        floor: float | None = None,
    ) -> None:
        super().__init__(gamma_min, gamma_max, learn_end_points=learn_end_points, floor=floor)
        if bins < 1 or memory < 1 or not 0 < uniform <= 1:
            raise InputError(
                f"bins = {bins}, memory = {memory}, uniform = {uniform}: an adaptive schedule "
                "takes bins and memory of 1 or more, and uniform in (0, 1]"
            )
        self.memory, self.uniform = memory, uniform
        self.register_buffer("count", torch.zeros(bins))  # of measurements, fading
        self.register_buffer("moment", torch.zeros(bins))  # sum of their m², fading

    @torch.no_grad()
    def observe(self, u: Time, error: Time) -> None:
        # the finite ones enter the means of their bins, from all processes
        bins = len(self.count)
        index = (u * bins).long().clamp(0, bins - 1)
        seen = torch.zeros(2, bins, dtype=error.dtype, device=error.device)
        square = error.square()
        usable = square.isfinite()
        measured = torch.where(usable, torch.stack([torch.ones_like(square), square]), 0.0)
        seen.index_add_(1, index, measured)
        number, total = sum_over_processes(seen)
        fading = torch.exp(-number.sum() / self.memory)
        self.count.mul_(fading).add_(number)
        self.moment.mul_(fading).add_(total)

    def shape_and_rate(self, t: Time) -> tuple[Time, Time]:
        return self.weighted_shape_and_rate(t, None)

    def weighted_shape_and_rate(self, t: Time, weighting: Weighting | None) -> tuple[Time, Time]:
        cumulative = torch.cat([t.new_zeros(1), self.density(weighting).to(t.dtype).cumsum(0)])
        cumulative = cumulative / cumulative[-1]
        bins = len(self.count)
        index = torch.searchsorted(cumulative[1:-1], t.detach(), right=True)
        start, mass = cumulative[index], cumulative.diff()[index]
        return (index + (t - start) / mass) / bins, 1 / (bins * mass)

    def density(self, weighting: Weighting | None = None) -> Float[Tensor, " bins"]:
        """Return the density of u in every bin, relative to the uniform one; its mean is 1.

        Args:
            weighting: The density is the best one for the loss weighted by it.
        """
        position = torch.arange(len(self.count), dtype=self.count.dtype, device=self.count.device)
        width = _SMOOTHING * len(self.count)
        kernel = torch.exp(-0.5 * ((position[:, None] - position) / width).square())
        count, moment = (kernel * self.count).sum(1), (kernel * self.moment).sum(1)
        # the mean over all bins, with next to no weight, where nothing was measured nearby
        root = ((moment + 1e-6 * moment.sum() / count.sum()) / (count + 1e-6)).sqrt()
        if weighting is not None:
            middles = (position + 0.5) / len(position)
            gamma_0, gamma_1 = self.end_points.detach().unbind()
            root = root * weighting(torch.lerp(gamma_0, gamma_1, middles))
        uniform = torch.ones_like(root)
        density = torch.lerp(root / root.mean(), uniform, self.uniform)
        return torch.where(density.isfinite().all(), density, uniform)  # nothing was seen yet


def _exact_ends(t: Time, u: Time) -> Time:
    """Return u, set to 0 where t = 0 and to 1 where t = 1; its gradients stay as they are.

    Batches of other sizes add up in another order, which must not show at the ends.
    """
    exact = torch.where(t == 0, 0.0, torch.where(t == 1, 1.0, u))
    return u + (exact - u).detach()


def _inverse_softplus(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-x))


SCHEDULES: dict[str, type[Schedule]] = {
    "fixed-linear": FixedLinear,
    "cosine": Cosine,
    "learned-linear": LearnedLinear,
    "monotone": Monotone,
    "adaptive": Adaptive,
}
