"""What follows from estimates of ε and x at every z and γ: reverse steps and the flow.

A sampler, an inpainter or the solver of the ODE needs nothing else of a model. What changes the
estimates wraps a `Denoiser` in another one, and everything works through it as with the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from variational_diffusion import process
from variational_diffusion.numerics import Normal, expand

AssumedErrors = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(z, γ, ε̂) → what is assumed of (ε − ε̂)², broadcasting over z."""


class Denoised(NamedTuple):
    """Estimates of the noise ε and of the encoded data x in z = alpha x + sigma ε."""

    noise: Tensor
    x: Tensor


class Denoiser(ABC):
    """A reverse process and a probability flow, from the estimates that `denoise` makes.

    reverse_errors: measured or predicted errors of ε̂ that widen the steps of `reverse`; None, the
        default: the paper's variance.
    """

    reverse_errors: AssumedErrors | None = None

    @abstractmethod
    def denoise(
        self,
        z: Float[Tensor, "batch *shape"],
        gamma: process.Gamma,
        conditioning: Tensor | None = None,
    ) -> Denoised:
        """Estimate the noise in z and the encoded data under it.

        gamma: shape (batch,) or ().
        """

    def reverse(
        self,
        z_t: Float[Tensor, "batch *shape"],
        gamma_t: process.Gamma,
        gamma_s: process.Gamma,
        conditioning: Tensor | None = None,
    ) -> Normal:
        """Return p(z_s|z_t) = q(z_s|z_t, x = x̂(z_t; γ_t)) (VDM section 3.3).

        With `reverse_errors`, its variance is the best for them instead: `process.widened`.
        """
        noise, x = self.denoise(z_t, gamma_t, conditioning)
        posterior = process.q_s_given_t(z_t, x, gamma_s, gamma_t)
        if self.reverse_errors is None:
            return posterior
        assumed = self.reverse_errors(z_t, gamma_t.expand(len(z_t)), noise)
        return process.widened(posterior, gamma_s, gamma_t, assumed)

    def drift(
        self,
        z: Float[Tensor, "batch *shape"],
        gamma: process.Gamma,
        conditioning: Tensor | None = None,
    ) -> Float[Tensor, "batch *shape"]:
        """Return dz/dγ of the probability-flow ODE, −½ sigma² z + ½ sigma ε̂(z; γ)."""
        noise = self.denoise(z, gamma, conditioning).noise
        sigma = expand(process.sigma(gamma.expand(z.shape[0])), z)
        return 0.5 * sigma * (noise - sigma * z)
