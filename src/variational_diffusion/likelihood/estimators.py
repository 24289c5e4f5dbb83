"""Estimators of −log p(x) for every example, in nats: three ways from one model.

    ContinuousBound      the variational bound for infinitely many steps
    DiscreteBound        the bound of the model with T steps on a grid of γ
    ODELikelihood        the density along the probability-flow ODE, and a dequantisation
    ImportanceWeighted   the same with K draws (`importance`): tighter, and tight for K → ∞

An estimator is called with a model, examples and a generator and returns an `Estimate`. Its mean
over the draws is an upper bound on −log p(x) under its own model (T → ∞, T steps, or the ODE, which
are not the same distribution), but for the density of real-valued data by `ODELikelihood`, whose
mean is −log p(x) itself. The ODE's are so up to the error of the solver.

Source: Kingma, Salimans, Poole, Ho, "Variational Diffusion Models" (2021), eq. 11 to 17; Song et
al., "Score-Based Generative Modeling through Stochastic Differential Equations" (2021), section
4.3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from variational_diffusion import flow
from variational_diffusion.conditions import Batch
from variational_diffusion.decoders import Discretized
from variational_diffusion.errors import InputError, one_of
from variational_diffusion.grids import (
    GRIDS,
    MEASURED,
    VARIANCES,
    Gammas,
    check_falling,
    step_grid,
)
from variational_diffusion.likelihood.dequantisation import DEQUANTISATIONS
from variational_diffusion.machine.distributed import is_sharded
from variational_diffusion.model import VDM
from variational_diffusion.modes import in_evaluation_mode
from variational_diffusion.objective import Bound


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
class ContinuousBound:
    """The bound for infinitely many steps (VDM eq. 17).

    The times of one example are spread evenly over [0, 1], and those of a batch are spread evenly
    between them, in random order, so more draws reduce the variance faster than their number.

    Args:
        draws: Evaluations of the network for each example, at least 1.

    Raises:
        InputError: For fewer.

    Examples:
        >>> vd.evaluate(run, estimator=vd.ContinuousBound(draws=4), limit=20, rounds=2).rounds
        2
    """

    draws: int = 2
    terms: ClassVar[tuple[str, ...]] = TERMS

    def __post_init__(self) -> None:
        at_least_one("draws", self.draws)

    def __call__(self, vdm: VDM, x: Tensor, generator: torch.Generator | None = None) -> Estimate:
        return _bound(vdm, x, self.draws, None, generator)


@dataclass(frozen=True)
class DiscreteBound:
    """The bound of the model with T steps (VDM eq. 14).

    Args:
        gammas: T + 1 values that fall from γ_1 to γ_0 of the model, see `grids`. The variance is
            then that of `vdm.reverse`.
        draws: Steps sampled for each example, evenly spread; None: every step once, an exact sum.
        steps: T, in place of `gammas`.
        grid: With `steps`, a name of `grids.GRIDS`.
        variance: With `steps`, a name of `grids.VARIANCES`. A variance or grid by measured errors
            needs the model of a run.

    Raises:
        InputError: For steps and gammas together or neither of them, for unknown names, and for a
            grid of another model.

    Examples:
        >>> vd.evaluate(run, estimator=vd.DiscreteBound(steps=10), limit=20, rounds=2).estimator
        'discrete'
    """

    gammas: Gammas | None = None
    draws: int | None = 2
    steps: int | None = None
    grid: str = "time"
    variance: str = "posterior"
    terms: ClassVar[tuple[str, ...]] = TERMS

    def __post_init__(self) -> None:
        if (self.gammas is None) == (self.steps is None):
            raise InputError(
                f"estimator = 'discrete', steps = {self.steps}: the bound of T steps takes the "
                "number of steps, or a grid in gammas; give --steps 50"
            )
        if self.gammas is not None:
            check_falling(self.gammas)
        if self.draws is not None:
            at_least_one("draws", self.draws)
        for name, known in (("grid", GRIDS), ("variance", VARIANCES)):
            one_of(name, getattr(self, name), known)

    def __call__(self, vdm: VDM, x: Tensor, generator: torch.Generator | None = None) -> Estimate:
        gammas = self.gammas if self.gammas is not None else self.own_grid(vdm)
        if self.draws is not None:
            return _bound(vdm, x, self.draws, gammas, generator)
        steps = len(gammas) - 1
        # the middle of every step: no rounding takes it into another one
        middles = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
        return _bound(vdm, x, steps, gammas, generator, middles)

    def own_grid(self, vdm: VDM) -> Gammas:
        """Return the grid of `steps` for a model whose errors are not known."""
        assert self.steps is not None
        if self.grid in (*MEASURED, "optimal") or self.variance != "posterior":
            raise InputError(
                f"grid = {self.grid!r}, variance = {self.variance!r}: these take measured errors "
                "of the model; give the run it is of, or gammas and vdm.widened(errors)"
            )
        return step_grid(self.grid, vdm.schedule, self.steps).detach()


LOOSEST = 1e-4
"""Tolerance of the ODE's solver. On exact models it is off by up to 0.007 bits/dim at 1e-3, 0.0006
at 1e-4 and 0.0002 at 1e-5 (benchmarks/exact_likelihoods.py)."""


@dataclass(frozen=True)
class ODELikelihood:
    """The density by the probability-flow ODE at one draw of the dequantisation.

    Args:
        dequantisation: A name of `DEQUANTISATIONS`; None: truncated-normal for discrete data, none
            for real-valued data.
        probes: Rademacher probes of the divergence; None: the exact one, d backward passes a step.
        tolerance: Of the adaptive solver, in (0, 1e-4].

    Raises:
        InputError: For an unknown dequantisation, fewer than one probe, and a looser tolerance.

    Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations"
    (2021), section 4.3.

    Examples:
        >>> r = vd.evaluate(run, estimator=vd.ODELikelihood(tolerance=1e-4), limit=2, rounds=1)
        >>> sorted(r.terms)
        ['dequantisation', 'ode']
    """

    dequantisation: str | None = None
    probes: int | None = 1
    tolerance: float = 1e-5
    terms: ClassVar[tuple[str, ...]] = ("ode", "dequantisation")

    def __post_init__(self) -> None:
        if self.probes is not None:
            at_least_one("probes", self.probes)
        if self.dequantisation is not None:
            one_of("dequantisation", self.dequantisation, DEQUANTISATIONS)
        if not 0 < self.tolerance <= LOOSEST:
            raise InputError(
                f"tolerance = {self.tolerance:g}: more than 0 and at most {LOOSEST:g}; a looser "
                "solver makes likelihoods look better or worse than they are"
            )

    @torch.no_grad()
    def __call__(self, vdm: VDM, x: Tensor, generator: torch.Generator | None = None) -> Estimate:
        divergence = self._divergence(vdm, x, generator)
        drawn = DEQUANTISATIONS[self.name(vdm)](vdm, x, generator)
        log_p, solution = self._log_prob(vdm, drawn.z_0, divergence)
        return Estimate(
            {"ode": -log_p.mean(0), "dequantisation": drawn.cost},
            solution.evaluations,
            len(x) if solution.gave_up else 0,
        )

    def log_weights(
        self, vdm: VDM, x: Tensor, draws: int, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "estimates draws batch"], int, int]:
        """Return log p(z_0) p(x|z_0)/q(z_0|x) for draws of z_0; evaluations and failures.

        Args:
            vdm: The model.
            x: Examples, shape (batch, *shape).
            draws: Number of draws of z_0. All draws of an example share its probes: the noise that
                is the same for all of them cancels in their weights.
            generator: Of the draws; None: torch's global one.

        Returns:
            The log weights, evaluations of the network and examples for which the solver gave up.
            There is one estimate for each probe, unbiased and independent given the draws of z_0;
            for the exact divergence there is one, without an error.
        """
        divergence = self._divergence(vdm, x, generator)
        weights, evaluations, failures = [], 0, 0
        for _ in range(draws):
            drawn = DEQUANTISATIONS[self.name(vdm)](vdm, x, generator)
            log_p, solution = self._log_prob(vdm, drawn.z_0, divergence)
            weights.append(log_p - drawn.cost)
            evaluations += solution.evaluations
            failures = max(failures, len(x) if solution.gave_up else 0)
        return torch.stack(weights, dim=1), evaluations, failures

    def name(self, vdm: VDM) -> str:
        """Return the name of the dequantisation for a model."""
        default = "truncated-normal" if isinstance(vdm.decoder, Discretized) else "none"
        return self.dequantisation or default

    def _divergence(
        self, vdm: VDM, x: Tensor, generator: torch.Generator | None
    ) -> flow.Divergence:
        if self.probes is None:
            return flow.ExactDivergence()
        return flow.Hutchinson(flow.rademacher(self.probes, vdm.encode(x), generator))

    def _log_prob(
        self, vdm: VDM, z_0: Tensor, divergence: flow.Divergence
    ) -> tuple[Tensor, flow.Solution]:
        gamma_0, gamma_1 = vdm.schedule.end_points.detach()
        return flow.log_prob(vdm, z_0, gamma_0, gamma_1, divergence, tolerance=self.tolerance)


@in_evaluation_mode
def evaluate(
    vdm: VDM,
    batches: Iterable[Batch],
    estimator: Estimator | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Iterator[Estimate]:
    """Yield the estimate of every batch; by default the bound for infinitely many steps.

    The model is in evaluation mode while it works, and the batches are moved to its device. Of a
    batch with conditions, it is the estimate of −log p(x|c).
    """
    estimator = estimator or ContinuousBound(1)
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


@in_evaluation_mode
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


def at_least_one(name: str, value: int) -> None:
    """Raise `InputError` for a count below one."""
    if value < 1:
        raise InputError(f"{name} = {value}: give one or more")
