"""Training of the head that predicts the reverse variance, on a model that stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from variational_diffusion import process
from variational_diffusion.conditions import Batch
from variational_diffusion.grids import NoiseErrors, PredictedErrors
from variational_diffusion.model import VDM
from variational_diffusion.modes import in_evaluation_mode
from variational_diffusion.numerics import derived_seed, expand, randn_like
from variational_diffusion.objective import low_discrepancy_times

_LEARNING_RATE = 3e-3


@in_evaluation_mode
def fit_head(
    vdm: VDM,
    head: nn.Module,
    errors: NoiseErrors,
    batches: Iterable[Batch],
    *,
    steps: int,
    seed: int = 0,
) -> Iterator[float]:
    """Train a head of `PredictedErrors` on a model that stays as it is; yield its loss in nats.

    The loss is what reverse steps of all widths cost with it, an entry and unit of γ: widths are
    drawn between 1/400 and 1/4 of the range of γ, evenly in their logarithm. Narrow steps ask for
    the mean of the squared error and wide ones for its scale. A head that is trained on wide steps
    alone, by ½(log m + (ε − ε̂)²/m), is worse than none in narrow ones (experiments/LOG.md).
    Its minimum is m = E[(ε − ε̂)² | z].
    """
    gamma_0, gamma_1 = vdm.schedule.end_points.detach()
    generator = torch.Generator(gamma_0.device).manual_seed(derived_seed(seed, 2))
    optimizer = torch.optim.AdamW(head.parameters(), lr=_LEARNING_RATE, betas=(0.9, 0.99))
    predicted = PredictedErrors(errors, head)
    for step, batch in zip(range(steps), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * (1 - step / steps)
        with torch.no_grad():
            model, examples = vdm.given_in(batch)
            x = vdm.encode(examples)
            gamma = torch.lerp(gamma_0, gamma_1, low_discrepancy_times(len(x), generator, like=x))
            noise = randn_like(x, generator)
            q = process.q_t(x, gamma)
            z = q.mean + q.std * noise
            estimate = model.denoise(z, gamma).noise
            order = torch.randperm(len(x), generator=generator, device=x.device)
            width = (
                (gamma_1 - gamma_0)
                / 4
                * 100 ** -low_discrepancy_times(len(x), generator, like=x)[order]
            )
        assumed = predicted(z, gamma, estimate)
        cost = process.posterior_kl(gamma - width, gamma, (noise - estimate).square(), assumed)
        loss = (cost / expand(width, cost)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield float(loss.detach())
