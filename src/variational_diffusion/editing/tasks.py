"""Changing examples with a model that was not trained for it.

Four tasks, each a generator over a grid of γ as samplers are, or over what it makes:

    inpaint             paint part of an example anew, so that it fits the rest
    posterior_samples   examples that agree with a measurement of them (`measurements`)
    variations          examples near a given one: noise up to some γ, and back
    interpolate         what lies between two examples, along the probability-flow ODE

The first three yield z after every step, and `to_data` makes data of the last. `encode` and
`decode` are the ODE's way from data to noise and back. What each method promises, and what it does
not, stands with it; docs/editing.md has measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.autograd.functional import jvp

from variational_diffusion import flow, process
from variational_diffusion.decoders import Discretized
from variational_diffusion.editing.operators import Measurement
from variational_diffusion.errors import InputError
from variational_diffusion.grids import Gammas
from variational_diffusion.likelihood.dequantisation import none, truncated_normal
from variational_diffusion.model import VDM
from variational_diffusion.modes import in_evaluation_mode
from variational_diffusion.numerics import expand, randn_like, sum_per_example
from variational_diffusion.sampling import Sampler, named


def to_data(model: VDM, z_0: Float[Tensor, "batch *shape"]) -> Shaped[Tensor, "batch *shape"]:
    """Return the data nearest to z_0/alpha_0: of discrete data, the nearest level."""
    return model.decoder.decode(z_0 / process.alpha(model.schedule.gamma_0.detach()))


def below(gammas: Gammas, gamma: float) -> Float[Tensor, " fewer"]:
    """Return a grid from `gamma` down to γ_0 with the values of another grid that lie below it."""
    high, low = float(gammas[0]), float(gammas[-1])
    if not low < gamma <= high:
        raise InputError(
            f"gamma = {gamma}: the model's noise has γ from {low:.2f} to {high:.2f}; give a level "
            "above the first, up to the second"
        )
    return torch.cat([gammas.new_tensor([gamma]), gammas[gammas < gamma]])


@in_evaluation_mode
@torch.no_grad()
def inpaint(
    model: VDM,
    x: Shaped[Tensor, "batch *shape"],
    mask: Bool[Tensor, ...],
    gammas: Gammas,
    *,
    repeats: int = 1,
    jump: int = 1,
    generator: torch.Generator | None = None,
) -> Iterator[Float[Tensor, "batch *shape"]]:
    """Paint examples anew where the mask is true, by replacement with resampling.

    After every reverse step what is known of z is replaced by a draw of q(z_s|x). The step does not
    know that, so what it painted fits the replaced part badly; going back to γ_t by q(z_t|z_s) and
    doing the step again, `repeats` times in all, lets the two agree. In the last z what is known is
    alpha_0 x without noise: `to_data` gives it back to the level.

    With many steps and repeats the painted part follows p(x_painted|x_known), as far as the model's
    p does. With few it is closer to p(x_painted), as if less of x were known.

    x: data in the decoder's domain. mask: of one example's shape. gammas: from γ_1 down to γ_0.
    repeats: times that each step is done. jump: steps that are done and undone together.
    Yields z for each value of the grid but the first, after the last of its repeats.

    Source: Lugmayr et al., "RePaint: Inpainting using Denoising Diffusion Probabilistic Models"
    (2022), algorithm 1.
    """
    if tuple(mask.shape) != model.shape:
        raise InputError(
            f"mask has shape {tuple(mask.shape)}: it takes that of the data, {model.shape}"
        )
    if repeats < 1 or jump < 1:
        raise InputError(f"repeats = {repeats} and jump = {jump}: both are 1 or more")
    known = model.encode(x)
    z = randn_like(known, generator)
    last = len(gammas) - 1
    for start in range(0, last, jump):
        block = gammas[start : start + jump + 1]
        for repeat in range(repeats):
            if repeat > 0:
                z = process.q_t_given_s(z, block[-1], block[0]).sample(generator)
            done = []
            for gamma_t, gamma_s in pairwise(block):
                painted = model.reverse(z, gamma_t, gamma_s).sample(generator)
                z = torch.where(mask, painted, process.q_t(known, gamma_s).sample(generator))
                done.append(z)
        if start + len(done) == last:
            done[-1] = torch.where(mask, z, process.q_t(known, gammas[-1]).mean)
        yield from done


@in_evaluation_mode
def posterior_samples(
    model: VDM,
    y: Float[Tensor, "batch *measured"],
    measurement: Measurement,
    gammas: Gammas,
    *,
    iterations: int = 1,
    generator: torch.Generator | None = None,
) -> Iterator[Float[Tensor, "batch *shape"]]:
    """Draw examples from p(x|y), one for each y, by diffusion posterior sampling.

    Ancestral steps with x̂ = E[x|z] moved to E[x|z, y]. Given z, x is taken to be normal with the
    mean x̂ and the covariance V = (sigma²/alpha) ∂x̂/∂z, which Tweedie's formula gives, and A to be
    linear around x̂, A'; then

        E[x|z, y] = x̂ + V A'ᵀ C⁻¹ (y − A(x̂)),    C = noise² I + A' V A'ᵀ.

    C⁻¹ is taken by conjugate gradients, each iteration a backward pass through the network. One
    iteration moves x̂ along −∇_z ‖y − A(x̂)‖², which is DPS, by the length that fits best where DPS
    has a number to be set.

    For data that are normal, of any covariance, an exact x̂ and linear A, the samples follow p(x|y)
    in the limit of many steps, once there are as many iterations as y has entries. Otherwise they
    do not: samples agree with y and look like the data, and their spread is not that of p(x|y).
    E[x|z, y] of discrete data is kept in (−1, 1), where it lies: the ∂x̂/∂z of a trained network is
    not symmetric, and without that more than one iteration diverges.

    y: one measurement for each example that is drawn. gammas: from γ_1 down to γ_0. Yields z for
    each value of the grid but the first.

    Source: Chung et al., "Diffusion Posterior Sampling for General Noisy Inverse Problems" (2023),
    algorithm 1; Rozet et al., "Learning Diffusion Priors from Observations by Expectation
    Maximization" (2024), section 4, for the covariance.
    """
    if iterations < 1:
        raise InputError(f"iterations = {iterations}: give 1 or more")
    like = gammas.new_empty(len(y), *model.shape)
    measured = measurement.function(like.zero_()[:1])
    if y.shape[1:] != measured.shape[1:]:
        raise InputError(
            f"y has shape {tuple(y.shape)}: the measurement of data of shape {model.shape} has "
            f"shape (batch, {', '.join(map(str, measured.shape[1:]))})"
        )
    z = randn_like(like, generator)
    for gamma_t, gamma_s in pairwise(gammas):
        x = _informed(model, z, gamma_t, y, measurement, iterations)
        z = process.q_s_given_t(z, x, gamma_s, gamma_t).sample(generator)
        yield z


def _informed(
    model: VDM,
    z: Tensor,
    gamma: Tensor,
    y: Tensor,
    measurement: Measurement,
    iterations: int,
) -> Tensor:
    """Return E[x|z, y] as at `posterior_samples`."""
    scale = torch.sigmoid(gamma) / process.alpha(gamma)  # sigma²/alpha
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        x = model.denoise(z, gamma).x
        predicted = measurement.function(x)

    def pulled_back(u: Tensor) -> Tensor:
        """V A'ᵀ u, with the transpose of V, which is symmetric where x̂ is exact."""
        (row,) = torch.autograd.grad(predicted, z, u, retain_graph=True)
        return scale * row

    def covariance(u: Tensor) -> Tensor:
        moved = jvp(measurement.function, x.detach(), pulled_back(u))[1]
        return measurement.noise**2 * u + moved

    weights = _conjugate_gradients(covariance, y - predicted.detach(), iterations)
    informed = x.detach() + pulled_back(weights)
    return informed.clamp(-1, 1) if isinstance(model.decoder, Discretized) else informed


def _conjugate_gradients(
    matrix: Callable[[Tensor], Tensor], right: Tensor, iterations: int
) -> Tensor:
    """Solve matrix(u) = right for every example; stop where the matrix is not positive."""
    least = torch.finfo(right.dtype).tiny
    u = torch.zeros_like(right)
    residual = direction = right
    square = sum_per_example(residual.square())
    for _ in range(iterations):
        image = matrix(direction)
        curvature = sum_per_example(direction * image)
        step = torch.where(curvature > 0, square / curvature.clamp(min=least), 0.0)
        u = u + expand(step, u) * direction
        residual = residual - expand(step, u) * image
        before, square = square, sum_per_example(residual.square())
        direction = residual + expand(square / before.clamp(min=least), u) * direction
    return u


@in_evaluation_mode
@torch.no_grad()
def variations(
    model: VDM,
    x: Shaped[Tensor, "batch *shape"],
    gammas: Gammas,
    *,
    sampler: str | Sampler = "ancestral",
    generator: torch.Generator | None = None,
) -> Iterator[Float[Tensor, "batch *shape"]]:
    """Put noise on examples up to the level gammas[0], and sample back from there.

    The result follows the model's p(x|z_γ) for z_γ ~ q(z_γ|x): it keeps what z_γ still shows of x.

    gammas: from the level of the noise, see `below`, down to γ_0. sampler: a name in `SAMPLERS`,
    or what is called like its entries. Yields z for each value of the grid but the first.

    Source: Meng et al., "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential
    Equations" (2022), algorithm 1.
    """
    carry = named(sampler) if isinstance(sampler, str) else sampler
    z = process.q_t(model.encode(x), gammas[0]).sample(generator)
    yield from carry(model, z, gammas, generator=generator)


def encode(
    model: VDM,
    x: Shaped[Tensor, "batch *shape"],
    *,
    tolerance: float = 1e-5,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch *shape"]:
    """Return the z_1 that the probability-flow ODE takes x to; `decode` takes it back.

    Of discrete data a point in the bin of x is drawn first, as z_0 has noise in it everywhere where
    the model knows it; real-valued data go as they are. tolerance: of the ODE's solver.
    """
    with torch.no_grad():
        dequantise = truncated_normal if isinstance(model.decoder, Discretized) else none
        z_0 = dequantise(model, x, generator).z_0
    gamma_0, gamma_1 = model.schedule.end_points.detach()
    return flow.solve(model, z_0, gamma_0, gamma_1, tolerance=tolerance).z


def decode(
    model: VDM,
    z_1: Float[Tensor, "batch *shape"],
    *,
    tolerance: float = 1e-5,
) -> Shaped[Tensor, "batch *shape"]:
    """Return the data that the probability-flow ODE takes z_1 to, in the decoder's domain."""
    gamma_0, gamma_1 = model.schedule.end_points.detach()
    solution = flow.solve(model, z_1, gamma_1, gamma_0, tolerance=tolerance)
    return to_data(model, solution.z)


def interpolate(
    model: VDM,
    first: Shaped[Tensor, "batch *shape"],
    second: Shaped[Tensor, "batch *shape"],
    shares: Iterable[float],
    *,
    tolerance: float = 1e-5,
    generator: torch.Generator | None = None,
) -> Iterator[Shaped[Tensor, "batch *shape"]]:
    """Yield data between pairs of examples, for each share from 0, the first, to 1, the second.

    Both are encoded, and a point of the great circle between the two z_1 is decoded: draws of
    N(0, I) have nearly one length, which a straight line between them would leave.

    Source: Song, Meng, Ermon, "Denoising Diffusion Implicit Models" (2021), appendix D.5.
    """
    start, end = (
        encode(model, x, tolerance=tolerance, generator=generator) for x in (first, second)
    )
    for share in shares:
        z = spherical(start, end, share)
        yield decode(model, z, tolerance=tolerance)


def spherical(
    first: Float[Tensor, "batch *shape"], second: Float[Tensor, "batch *shape"], share: float
) -> Float[Tensor, "batch *shape"]:
    """Return sin((1 − s) θ)/sin θ · first + sin(s θ)/sin θ · second, θ the angle between the two.

    For two points on one line through the origin, the straight line between them.
    """
    a, b = first.flatten(1), second.flatten(1)
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    angle = torch.arccos(cosine.clamp(-1, 1))
    sine = torch.sin(angle)
    straight = sine < 1e-6
    sine = torch.where(straight, 1.0, sine)
    weights = [
        torch.where(straight, part, torch.sin(part * angle) / sine) for part in (1 - share, share)
    ]
    return expand(weights[0], first) * first + expand(weights[1], first) * second
