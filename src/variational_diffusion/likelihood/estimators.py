"""Estimators of −log p(x) for every example, in nats: three ways from one model.

    Infinite     the variational bound for infinitely many steps
    Chain        the bound of the model with T steps on a grid of γ
    Flow         the density along the probability-flow ODE, and a dequantisation
    Importance   the same with K draws, log 1/K Σ p/q: tighter, and tight for K → ∞

An estimator is called with a model, examples and a generator and returns an `Estimate`; its mean is
an upper bound on −log p(x) under its own model (T → ∞, T steps, or the ODE, which are not the same
distribution).

Source: Kingma, Salimans, Poole, Ho, "Variational Diffusion Models" (2021), eq. 11 to 17; Song et
al., "Score-Based Generative Modeling through Stochastic Differential Equations" (2021), section
4.3; Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders" (2016), eq. 8.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from variational_diffusion import flow
from variational_diffusion.conditions import Batch
from variational_diffusion.decoders import Discretized
from variational_diffusion.errors import InputError
from variational_diffusion.grids import Gammas, check_falling
from variational_diffusion.likelihood.dequantisation import DEQUANTISATIONS
from variational_diffusion.model import VDM
from variational_diffusion.objective import Bound
from variational_diffusion.processes import is_sharded


@dataclass(frozen=True)
class Estimate:
    """−log p(x) of a batch of examples, in nats, as terms that add up.

    terms: name → shape (batch,). evaluations: of the network, for every example. failures: examples
    for which an adaptive solver gave up (its fixed steps were taken).
    """

    terms: dict[str, Tensor]
    evaluations: int = 1
    failures: int = 0

    @property
    def total(self) -> Float[Tensor, " batch"]:
        """The estimate itself."""
        return torch.stack(list(self.terms.values())).sum(0)


@runtime_checkable
class Estimator(Protocol):
    """(model, examples, generator) → estimate, with the names of the estimate's terms."""

    terms: ClassVar[tuple[str, ...]]

    def __call__(self, vdm: VDM, x: Tensor, generator: torch.Generator | None = None) -> Estimate:
        """Estimate −log p(x)."""


TERMS = ("prior", "reconstruction", "diffusion")
"""Terms of the bound."""


@dataclass(frozen=True)
class Infinite:
    """The bound for infinitely many steps, with `draws` evaluations of the network an example.

    The times of one example are spread evenly over [0, 1], and those of a batch are spread evenly
    between them, in random order, so more draws reduce the variance faster than their number.
    """

    draws: int = 1
    terms: ClassVar[tuple[str, ...]] = TERMS

    def __post_init__(self) -> None:
        _at_least_one("draws", self.draws)

    def __call__(self, vdm: VDM, x: Tensor, generator: torch.Generator | None = None) -> Estimate:
        return _bound(vdm, x, self.draws, None, generator)


@dataclass(frozen=True)
class Chain:
    """The bound of the model with T steps, with the variance that `vdm.reverse` has.

    gammas: T + 1 values that fall from γ_1 to γ_0 of the model, see `grids`; anything else is an
        `InputError`.
    draws: steps sampled for each example, evenly spread; None: every step once, an exact sum.
    """

    gammas: Gammas
    draws: int | None = None
    terms: ClassVar[tuple[str, ...]] = TERMS

    def __post_init__(self) -> None:
        check_falling(self.gammas)
        if self.draws is not None:
            _at_least_one("draws", self.draws)

    def __call__(self, vdm: VDM, x: Tensor, generator: torch.Generator | None = None) -> Estimate:
        if self.draws is not None:
            return _bound(vdm, x, self.draws, self.gammas, generator)
        steps = len(self.gammas) - 1
        # the middle of every step: no rounding takes it into another one
        middles = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
        return _bound(vdm, x, steps, self.gammas, generator, middles)


@dataclass(frozen=True)
class Flow:
    """The density by the probability-flow ODE at one draw of the dequantisation.

    dequantisation: a name of `DEQUANTISATIONS`; None: truncated-normal for discrete data, none for
        real-valued data.
    probes: Rademacher probes of the divergence; None: the exact one, d backward passes a step.
    tolerance: of the adaptive solver.
    """

    dequantisation: str | None = None
    probes: int | None = 1
    tolerance: float = 1e-5
    terms: ClassVar[tuple[str, ...]] = ("ode", "dequantisation")

    def __post_init__(self) -> None:
        if self.probes is not None:
            _at_least_one("probes", self.probes)
        if self.dequantisation is not None and self.dequantisation not in DEQUANTISATIONS:
            raise InputError(
                f"dequantisation = {self.dequantisation!r}: known are {', '.join(DEQUANTISATIONS)}"
            )

    @torch.no_grad()
    def __call__(self, vdm: VDM, x: Tensor, generator: torch.Generator | None = None) -> Estimate:
        divergence = self._divergence(vdm, x, generator)
        drawn = DEQUANTISATIONS[self._name(vdm)](vdm, x, generator)
        log_p, solution = self._log_prob(vdm, drawn.z_0, divergence)
        return Estimate(
            {"ode": -log_p, "dequantisation": drawn.cost},
            solution.evaluations,
            0 if solution.adaptive else len(x),
        )

    def log_weights(
        self, vdm: VDM, x: Tensor, draws: int, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "draws batch"], int, int]:
        """Return log p(z_0) p(x|z_0)/q(z_0|x) for draws of z_0; evaluations and failures.

        All draws of an example share its probes: the noise of the divergence is then nearly the
        same for all of them and cancels in their weights, where independent noise of variance s²
        would raise log Σ exp by s²/2 and make the likelihood look better than it is.
        """
        divergence = self._divergence(vdm, x, generator)
        weights, evaluations, failures = [], 0, 0
        for _ in range(draws):
            drawn = DEQUANTISATIONS[self._name(vdm)](vdm, x, generator)
            log_p, solution = self._log_prob(vdm, drawn.z_0, divergence)
            weights.append(log_p - drawn.cost)
            evaluations += solution.evaluations
            failures = max(failures, 0 if solution.adaptive else len(x))
        return torch.stack(weights), evaluations, failures

    def _name(self, vdm: VDM) -> str:
        default = "truncated-normal" if isinstance(vdm.decoder, Discretized) else "none"
        return self.dequantisation or default

    def _divergence(
        self, vdm: VDM, x: Tensor, generator: torch.Generator | None
    ) -> flow.Divergence:
        if self.probes is None:
            return flow.exact_divergence
        return flow.hutchinson(flow.rademacher(self.probes, vdm.encode(x), generator))

    def _log_prob(
        self, vdm: VDM, z_0: Tensor, divergence: flow.Divergence
    ) -> tuple[Tensor, flow.Solution]:
        gamma_0, gamma_1 = vdm.schedule.end_points.detach()
        return flow.log_prob(vdm, z_0, gamma_0, gamma_1, divergence, tolerance=self.tolerance)


@dataclass(frozen=True)
class Importance:
    """−log 1/K Σ p(z_0) p(x|z_0)/q(z_0|x) over K = `samples` draws of `flow`'s dequantisation."""

    samples: int = 8
    flow: Flow = field(default_factory=Flow)
    terms: ClassVar[tuple[str, ...]] = ("importance",)

    def __post_init__(self) -> None:
        _at_least_one("samples", self.samples)

    @torch.no_grad()
    def __call__(self, vdm: VDM, x: Tensor, generator: torch.Generator | None = None) -> Estimate:
        if self.flow.dequantisation == "none" or (
            self.flow.dequantisation is None and not isinstance(vdm.decoder, Discretized)
        ):
            raise InputError(
                "estimator = 'importance', dequantisation = 'none': there is nothing to draw; "
                "take 'variational'"
            )
        weights, evaluations, failures = self.flow.log_weights(vdm, x, self.samples, generator)
        bound = math.log(self.samples) - weights.logsumexp(0)
        return Estimate({"importance": bound}, evaluations, failures)


def evaluate(
    vdm: VDM,
    batches: Iterable[Batch],
    estimator: Estimator | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Iterator[Estimate]:
    """Yield the estimate of every batch; by default the bound for infinitely many steps.

    The model is put into evaluation mode and the batches are moved to its device. Of a batch with
    conditions, it is the estimate of −log p(x|c).
    """
    estimator = estimator or Infinite()
    vdm.eval()
    for batch in batches:
        model, x = vdm.given_in(batch)
        yield estimator(model, x, generator)


def stratified_times(
    count: int, draws: int, generator: torch.Generator | None = None, like: Tensor | None = None
) -> Float[Tensor, "draws count"]:
    """Return count · draws low-discrepancy times, arranged so that each column is spread evenly.

    Every single time is uniform on [0, 1). Which example has which column is drawn at random: like
    examples that stand together in the data do not get like times. Type and device are those of
    `like`.
    """
    dtype, device = (like.dtype, like.device) if like is not None else (None, None)
    u = torch.rand((), generator=generator, dtype=dtype, device=device)
    column = torch.randperm(count, generator=generator, device=device)
    order = column + count * torch.arange(draws, device=device)[:, None]
    return (u + order.to(u.dtype) / (count * draws)) % 1


ESTIMATORS = {
    "vlb": "the bound for infinitely many steps",
    "discrete": "the bound of the model with --steps steps",
    "ode": "the probability-flow ODE",
    "importance": "the ODE with --samples weighted draws",
}


def _bound(
    vdm: VDM,
    x: Tensor,
    draws: int,
    gammas: Tensor | None,
    generator: torch.Generator | None,
    times: Tensor | None = None,
) -> Estimate:
    """Estimate the bound at stratified times, or at these, shape (draws,), for every example."""
    like = vdm.schedule.gamma_0
    # sharded weights are gathered into memory that training uses again
    with torch.no_grad(), torch.inference_mode(not is_sharded(vdm)):
        if times is None:
            each = stratified_times(len(x), draws, generator, like=like)
        else:
            each = times.to(like)[:, None].expand(draws, len(x))
        bounds = [vdm.vlb(x, gammas=gammas, draws=vdm.draw(len(x), generator, t)) for t in each]
        return Estimate({name: _mean(bounds, name) for name in TERMS}, draws)


def _mean(bounds: list[Bound], name: str) -> Tensor:
    return torch.stack([getattr(bound, name) for bound in bounds]).mean(0)


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} = {value}: give one or more")
