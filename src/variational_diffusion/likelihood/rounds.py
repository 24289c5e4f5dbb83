"""Rounds of estimates of one split, shared by processes, until they are as precise as asked."""

from __future__ import annotations

from collections.abc import Callable

import torch

from variational_diffusion.data import Split
from variational_diffusion.data.loader import ordered_batches
from variational_diffusion.errors import InputError
from variational_diffusion.likelihood.estimators import ContinuousBound, Estimate, Estimator
from variational_diffusion.likelihood.summary import LEAST_DEGREES, Summary, summarize
from variational_diffusion.machine.distributed import ALONE, Place, sum_over_processes
from variational_diffusion.machine.signals import until
from variational_diffusion.model import VDM
from variational_diffusion.modes import in_evaluation_mode
from variational_diffusion.numerics import derived_seed

Round = list[Estimate]

_LEAST_ROUNDS = 2
"""The error of the draws is not known from fewer."""

Progress = Callable[[float, int, Callable[[], str]], None]
"""(share of the work that is done, examples so far, the figure so far as text)."""


LARGEST_SHARE = 0.25
"""Of the standard error: rounds go on until the error of the draws is at most this part of it."""

MOST_EVALUATIONS = 128
"""Of the network for an example: what rounds that go on by themselves cost at most."""


FEW_EXAMPLES = 30
"""With fewer, a kind of them with a share of a tenth is missing from one set in twenty or more."""


class Rounds:
    """What `evaluate_rounds` came to.

    rounds: estimates by round and batch. dimensions: d of the examples. stopped: whether it was
    stopped; the last round has then fewer batches than there are. spent: whether `MOST_EVALUATIONS`
    ended it before the error of the draws was known and small.
    """

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions
        self.rounds: list[Round] = []
        self.stopped = False
        self.spent = False

    @property
    def notes(self) -> list[str]:
        """What a reader of the figure has to know, one line each."""
        found, summary = [], self.summary
        n = summary.examples
        if self.spent:
            part = summary.draws_error / summary.standard_error
            found.append(
                f"the draws are still {part:.0%} of the standard error after "
                f"{summary.evaluations:g} network evaluations an example: give --rounds or "
                "--target-se for more"
            )
        if 1 < n < FEW_EXAMPLES:
            share = 1 - 0.05 ** (1 / n)
            found.append(
                f"the interval is too narrow for {n} examples if kinds of them are rare: one in "
                f"twenty such sets lacks a kind with a share of {share:.0%}"
            )
        return found

    @property
    def summary(self) -> Summary:
        """The figure with its errors, of the rounds that are complete."""
        complete = self.rounds[:-1] if self.stopped else self.rounds
        return summarize(*complete, dimensions=self.dimensions)


@in_evaluation_mode
def evaluate_rounds(
    vdm: VDM,
    split: Split,
    estimator: Estimator | None = None,
    *,
    rounds: int | None = None,
    first: int = 0,
    target_error: float | None = None,
    batch_size: int = 250,
    seed: int = 0,
    place: Place = ALONE,
    together: bool = False,
    progress: Progress | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Rounds:
    """Evaluate a split round by round; by default the `ContinuousBound`.

    Batch b of round r has its own generator, seeded by (seed, r, b), so the figures do not depend
    on the number of processes. By default there are two rounds, which the error of the draws takes
    to be known, and then more until it is at most `LARGEST_SHARE` of the standard error, as long as
    no example has more than `MOST_EVALUATIONS` of the network.

    rounds: so many instead. target_error: go on until the error of the draws, in bits/dim, is at
    most this, whatever that takes. first: number of the first round, to go on after earlier ones.
    together: the network is sharded, so that every process has to evaluate as often as the others,
    for nothing if need be. progress: told of every batch of this process. stopped: asked between
    two batches; where it is true, what was estimated so far is the result.
    """
    check_rounds(rounds, target_error)
    estimator = estimator or ContinuousBound(1)
    device = vdm.schedule.gamma_0.device
    done = Rounds(vdm.dimensions)
    sizes = [min(batch_size, len(split) - i) for i in range(0, len(split), batch_size)]
    most = -(-len(sizes) // place.processes)
    while not done.stopped:
        number = first + len(done.rounds)
        own: dict[int, Estimate] = {}
        batches = zip(
            ordered_batches(split, batch_size, part=place),
            range(place.rank, len(sizes), place.processes),
            strict=True,
        )
        for batch, b in until(stopped, batches):
            generator = torch.Generator(device).manual_seed(derived_seed(seed, number, b))
            model, x = vdm.given_in(batch)
            own[b] = estimator(model, x, generator)
            if progress is not None:
                _show(progress, own, done, rounds, len(sizes) / place.processes)
        if together and len(own) < most:
            model, x = vdm.given_in(split.batch([0]))
            estimator(model, x)
        estimates = _gathered(own, sizes, estimator, place, device)
        done.rounds.append(estimates)
        done.stopped = len(estimates) < len(sizes)
        if done.stopped:
            break
        state = done.summary, len(done.rounds)
        if enough(*state, rounds, target_error):
            free = rounds is None and target_error is None
            done.spent = free and len(split) > 1 and not _precise(*state)
            break
    return done


def check_rounds(rounds: int | None, target_error: float | None) -> None:
    """Raise InputError for a number of rounds that cannot be, and for one and an error together."""
    if rounds is not None and target_error is not None:
        raise InputError(
            f"rounds = {rounds}, target_error = {target_error}: give one of them; the error says "
            "how many rounds there are"
        )
    if rounds is not None and rounds < 1:
        raise InputError(f"rounds = {rounds}: give one or more")


def _show(
    progress: Progress, own: dict[int, Estimate], done: Rounds, rounds: int | None, batches: float
) -> None:
    finished = len(done.rounds) + len(own) / batches
    examples = sum(len(e.total) for row in [*done.rounds, own.values()] for e in row)
    d = done.dimensions
    progress(
        min(1.0, finished / max(rounds or _LEAST_ROUNDS, len(done.rounds) + 1)),
        examples,
        lambda: f"{summarize(own.values(), dimensions=d).bits_per_dim:.3f} bits/dim",
    )


def enough(
    summary: Summary,
    finished: int,
    count: int | None = None,
    target: float | None = None,
) -> bool:
    """Return whether so many `finished` rounds suffice; the arguments are `evaluate_rounds`'s.

    summary: of these rounds: of one model, or of the differences between two.
    """
    if count is not None:
        return finished >= count
    if finished < _LEAST_ROUNDS:
        return False
    if target is not None:
        return _known(summary, finished) and summary.draws_error <= target
    return (
        _precise(summary, finished)
        or summary.evaluations * (finished + 1) / finished > MOST_EVALUATIONS
    )


def _known(summary: Summary, finished: int) -> bool:
    return summary.degrees >= LEAST_DEGREES or finished > LEAST_DEGREES


def _precise(summary: Summary, finished: int) -> bool:
    small = summary.draws_error <= LARGEST_SHARE * summary.standard_error
    return _known(summary, finished) and small


def _gathered(
    own: dict[int, Estimate],
    sizes: list[int],
    estimator: Estimator,
    place: Place,
    device: torch.device,
) -> Round:
    """Return the estimates of all processes in the order of the batches, up to a missing one."""
    if place.processes > 1:
        own = _from_all(own, sizes, estimator, device)
    ordered: Round = []
    for b in range(len(sizes)):
        if b not in own:
            break
        ordered.append(own[b])
    return ordered


def _from_all(
    own: dict[int, Estimate], sizes: list[int], estimator: Estimator, device: torch.device
) -> dict[int, Estimate]:
    """Return everybody's estimates: each fills its rows of a table of zeros, and they are added."""
    names = estimator.terms
    terms = torch.zeros(len(names), sum(sizes), dtype=torch.float64, device=device)
    counts = torch.zeros(3, len(sizes), dtype=torch.float64, device=device)
    parts = terms.split(sizes, dim=1)
    for b, estimate in own.items():
        parts[b].copy_(torch.stack([estimate.terms[name] for name in names]))
        counts[:, b] = counts.new_tensor([1, estimate.evaluations, estimate.failures])
    terms, counts = sum_over_processes(terms).cpu(), sum_over_processes(counts).cpu()
    return {
        b: Estimate(dict(zip(names, part, strict=True)), int(evaluations), int(failures))
        for b, (part, (there, evaluations, failures)) in enumerate(
            zip(terms.split(sizes, dim=1), counts.T.tolist(), strict=True)
        )
        if there
    }
