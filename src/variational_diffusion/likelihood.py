"""Likelihoods of data under a trained model, in bits per dimension, with error bars."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from variational_diffusion.errors import InputError
from variational_diffusion.model import VDM
from variational_diffusion.numerics import bits_per_dim
from variational_diffusion.objective import Bound


def evaluate(
    vdm: VDM,
    batches: Iterable[Tensor],
    *,
    steps: int | None = None,
    draws: int = 1,
    generator: torch.Generator | None = None,
) -> Iterator[Bound]:
    """Yield the bound of every example of every batch, averaged over draws, in nats.

    steps: T of the T-step bound, None for infinitely many steps.
    draws: estimates per example. The times of one example are spread evenly over [0, 1], and
        those of a batch are spread evenly between them, so more draws reduce the variance faster
        than their number.
    """
    if draws < 1:
        raise InputError(f"draws = {draws}: an estimate takes one draw or more")
    vdm.eval()
    device = next(vdm.parameters()).device
    for batch in batches:
        x = batch.to(device)
        times = stratified_times(len(x), draws, generator, like=vdm.schedule.gamma_0.detach())
        with torch.inference_mode():
            bounds = [vdm.vlb(x, steps=steps, times=t, generator=generator) for t in times]
            mean = Bound(
                prior=_mean(b.prior for b in bounds),
                reconstruction=_mean(b.reconstruction for b in bounds),
                diffusion=_mean(b.diffusion for b in bounds),
            )
        yield mean


def stratified_times(
    count: int, draws: int, generator: torch.Generator | None = None, like: Tensor | None = None
) -> Float[Tensor, "draws count"]:
    """Return count · draws low-discrepancy times, arranged so that each column is spread evenly.

    Every single time is uniform on [0, 1); type and device are those of `like`.
    """
    dtype, device = (like.dtype, like.device) if like is not None else (None, None)
    u = torch.rand((), generator=generator, dtype=dtype, device=device)
    order = torch.arange(count * draws, dtype=u.dtype, device=u.device).reshape(draws, count)
    return (u + order / (count * draws)) % 1


@dataclass(frozen=True)
class Summary:
    """A bound over a set of examples, in bits per dimension.

    standard_error: of `bits_per_dim`, from the spread between examples; it covers both the choice
    of the examples and the noise of the estimate.
    """

    examples: int
    bits_per_dim: float
    standard_error: float
    prior: float
    reconstruction: float
    diffusion: float


def summarize(bounds: Iterable[Bound], dimensions: int) -> Summary:
    """Summarise the bounds of batches of examples of d = `dimensions` entries each."""
    bounds = list(bounds)
    if not bounds:
        raise InputError("no examples: choose a split or a limit with one example or more")

    def bits(name: str) -> Tensor:
        nats = torch.cat([getattr(bound, name) for bound in bounds]).double()
        return bits_per_dim(nats, dimensions)

    total = bits("total")
    return Summary(
        examples=len(total),
        bits_per_dim=float(total.mean()),
        standard_error=float(total.std() / math.sqrt(len(total))) if len(total) > 1 else math.nan,
        prior=float(bits("prior").mean()),
        reconstruction=float(bits("reconstruction").mean()),
        diffusion=float(bits("diffusion").mean()),
    )


def summary_rows(summary: Summary) -> list[tuple[str, str]]:
    """Return the rows of a table: the bound with its standard error, then its terms."""
    return [
        ("bound", f"{summary.bits_per_dim:.4f} ± {summary.standard_error:.4f}"),
        ("  prior", f"{summary.prior:.4f}"),
        ("  reconstruction", f"{summary.reconstruction:.4f}"),
        ("  diffusion", f"{summary.diffusion:.4f}"),
        ("examples", str(summary.examples)),
    ]


ESTIMATORS = {
    "vlb": "the bound for infinitely many steps",
    "discrete": "the bound of the T-step model",
}


def _mean(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean(0)
