"""Decoders: data as real numbers, and p(x|z_0).

A decoder is where the domain of the data ends. `encode` takes data to real numbers of the scale
of one, and p(x|z_0), the last step of the generative model, brings them back.

Source: Kingma, Salimans, Poole, Ho, "Variational Diffusion Models" (2021), section 3.5 and
appendix B.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Integer, Shaped
from torch import Tensor, nn

from variational_diffusion import lattice, process
from variational_diffusion.config import Levels
from variational_diffusion.errors import InputError
from variational_diffusion.machine.cuda_graphs import is_recording
from variational_diffusion.numerics import Normal, expand, sum_per_example
from variational_diffusion.units import Standardised, Values

UNSEEN = 3 / 256
"""Noise of images that one x̂ takes away as well as many steps do, as a share of the range of the
data: what is finer than that, an eye hardly sees (docs/sampling.md)."""


class Discretized(nn.Module):
    """Integers 0 … levels − 1, as the centres of `levels` equal bins of (−1, 1).

    Level k is the real number f(k) = 2 (k + ½)/levels − 1, and p(x_i = k | z_0) ∝ exp(−½ e^{−γ_0}
    (z_0i/alpha_0 − f(k))²), a softmax over all levels that is computed exactly and without a tensor
    of levels (VDM section 3.3).

    Args:
        levels: 2 to 65,536.

    Raises:
        InputError: For another number of levels.

    Examples:
        >>> decoder = vd.Discretized(levels=4)
        >>> decoder.encode(torch.tensor([[0, 1, 2, 3]]))
        tensor([[-0.7500, -0.2500,  0.2500,  0.7500]])
        >>> decoder.decode(torch.tensor([[-0.7, 0.3]]))
        tensor([[0, 2]])
    """

    dtype = torch.int64
    """Of the data that `decode` and `sample` return."""

    def __init__(self, levels: Levels = 256) -> None:
        super().__init__()
        if not 2 <= levels <= 65_536:
            raise InputError(f"levels = {levels}: discrete data have 2 to 65536 levels")
        self.levels = levels

    def encode(self, x: Shaped[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """Return f(x) in (−1, 1); raise `InputError` for anything but integers in range.

        The range is not looked at while a CUDA graph is being recorded.
        """
        if x.is_floating_point() or x.is_complex():
            raise InputError(
                f"x has type {x.dtype}: Discretized takes integers 0 to {self.levels - 1}; "
                "convert the data, or use the decoder Gaussian for real values"
            )
        looked_at = x.numel() > 0 and not is_recording(x)
        low, high = (int(x.min()), int(x.max())) if looked_at else (0, 0)
        if low < 0 or high >= self.levels:
            raise InputError(
                f"x lies in [{low}, {high}]: with levels = {self.levels} it must lie in "
                f"[0, {self.levels - 1}]; give the number of levels of the data"
            )
        return (2 * x.to(torch.get_default_dtype()) + 1) / self.levels - 1

    def decode(self, x: Float[Tensor, "batch *shape"]) -> Integer[Tensor, "batch *shape"]:
        """Return the level whose centre is nearest: the inverse of `encode`.

        Raises InputError for what is not finite, which has no nearest level.
        """
        _check_finite(x)
        return lattice.nearest_level(self._position(x), self.levels).long()

    def log_prob(
        self,
        x: Integer[Tensor, "batch *shape"],
        z_0: Float[Tensor, "batch *shape"],
        gamma_0: process.Gamma,
    ) -> Float[Tensor, " batch"]:
        """Return log p(x|z_0) in nats per example, shape (batch,).

        Args:
            x: Integers from 0 to levels − 1.
            z_0: Encoded data with the noise of γ_0.
            gamma_0: Of the model: `vdm.schedule.gamma_0`.
        """
        return sum_per_example(self.log_prob_entries(x, z_0, gamma_0))

    def log_prob_entries(
        self,
        x: Integer[Tensor, "batch *shape"],
        z_0: Float[Tensor, "batch *shape"],
        gamma_0: process.Gamma,
    ) -> Float[Tensor, "batch *shape"]:
        """Return log p(x_i|z_0) of every entry, in nats; the arguments are those of `log_prob`."""
        position, spacing = self._position_and_spacing(z_0, gamma_0)
        nearest = lattice.nearest_level(position, self.levels).detach()
        offset = x - nearest
        exponent = offset * (position - nearest) - 0.5 * offset.square()
        log_sum = lattice.log_lattice_sum(position, spacing, self.levels)
        return spacing.square() * exponent - log_sum

    def sample(
        self,
        z_0: Float[Tensor, "batch *shape"],
        gamma_0: process.Gamma,
        generator: torch.Generator | None = None,
    ) -> Integer[Tensor, "batch *shape"]:
        """Draw x ~ p(x|z_0); raise `InputError` for a z_0 that is not finite.

        The arguments are those of `log_prob`; generator: None is torch's global one.
        """
        _check_finite(z_0)
        position, spacing = self._position_and_spacing(z_0, gamma_0)
        return lattice.sample_level(position, spacing, self.levels, generator).long()

    def spacing(self, gamma_0: process.Gamma) -> Tensor:
        """Return the distance of two levels in standard deviations of the noise at γ_0."""
        return (2 / self.levels) * torch.exp(-0.5 * gamma_0)

    def noise_at(self, gamma: float) -> float:
        """Return the standard deviation of the noise in z/alpha at γ, over the range of the data.

        The range is that of the bins, so that 1/levels is the width of one.
        """
        return 0.5 * math.exp(0.5 * gamma)

    def gamma_at(self, share: float) -> float:
        """Return the γ where the noise is this share of the range: the inverse of `noise_at`."""
        return 2 * math.log(2 * share)

    def _position(self, x: Tensor) -> Tensor:
        """Return real numbers in units of levels, where f(k) is k."""
        return 0.5 * self.levels * x + 0.5 * (self.levels - 1)

    def _position_and_spacing(self, z_0: Tensor, gamma_0: Tensor) -> tuple[Tensor, Tensor]:
        gamma_0 = expand(gamma_0, z_0)
        spacing = self.spacing(gamma_0).expand(z_0.shape)
        return self._position(z_0 / process.alpha(gamma_0)), spacing


class Gaussian(Standardised):
    """Real-valued data, standardised by a location and a scale.

    x is encoded as u = (x − location)/scale, and p(u|z_0) = N(z_0/alpha_0, e^{γ_0}): what z_0 says
    of u when nothing else is known. Likelihoods are densities of x, so they include the −log scale
    of the encoding and can exceed one.

    Location and scale are taken off and put back in float64 (`units`): give data in float64 where
    their offset is large compared with their spread. Samples and decoded data are float64.

    Args:
        location: One number, or one for every entry of the first axis of an example: channels of an
            image, entries of a vector.
        scale: > 0, as `location`.

    Raises:
        InputError: For a scale that is not above 0.

    Examples:
        >>> decoder = vd.Gaussian(location=[1.0, 10.0], scale=[1.0, 5.0])
        >>> u = decoder.encode(torch.tensor([[2.0, 20.0]]))
        >>> u.tolist(), decoder.decode(u).tolist()
        ([[1.0, 2.0]], [[2.0, 20.0]])
    """

    dtype = torch.float64
    """Of the data that `decode` and `sample` return."""

    def __init__(self, location: Values = 0.0, scale: Values = 1.0) -> None:
        super().__init__(location, scale)

    def encode(self, x: Shaped[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """Return (x − location)/scale, in float64; raise `InputError` for integers."""
        if not x.is_floating_point():
            raise InputError(
                f"x has type {x.dtype}: Gaussian takes real numbers; "
                "convert the data, or use the decoder Discretized for integers"
            )
        return self.standardise(x)

    def decode(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """Return location + scale · x, in float64: the inverse of `encode`."""
        return self.restore(x)

    def log_prob(
        self,
        x: Float[Tensor, "batch *shape"],
        z_0: Float[Tensor, "batch *shape"],
        gamma_0: process.Gamma,
    ) -> Float[Tensor, " batch"]:
        """Return log p(x|z_0), a density of x, in nats per example, shape (batch,).

        Args:
            x: Real numbers.
            z_0: Encoded data with the noise of γ_0.
            gamma_0: Of the model: `vdm.schedule.gamma_0`.
        """
        return sum_per_example(self.log_prob_entries(x, z_0, gamma_0))

    def log_prob_entries(
        self,
        x: Float[Tensor, "batch *shape"],
        z_0: Float[Tensor, "batch *shape"],
        gamma_0: process.Gamma,
    ) -> Float[Tensor, "batch *shape"]:
        """Return log p(x_i|z_0) of every entry, in nats; the arguments are those of `log_prob`."""
        of_encoded = self._p_encoded(z_0, gamma_0).log_prob(self.encode(x))
        return (of_encoded - self.log_scales(x)).to(z_0.dtype)

    def log_scale(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        """Return Σ log scale: log p(x) is log p(u) less this, for encoded data u."""
        return sum_per_example(self.log_scales(x).expand(x.shape))

    def sample(
        self,
        z_0: Float[Tensor, "batch *shape"],
        gamma_0: process.Gamma,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch *shape"]:
        """Draw x ~ p(x|z_0), in float64; raise `InputError` for a z_0 that is not finite.

        The arguments are those of `log_prob`; generator: None is torch's global one.
        """
        _check_finite(z_0)
        return self.decode(self._p_encoded(z_0, gamma_0).sample(generator))

    def _p_encoded(self, z_0: Tensor, gamma_0: Tensor) -> Normal:
        gamma_0 = expand(gamma_0, z_0)
        return Normal(z_0 / process.alpha(gamma_0), torch.exp(0.5 * gamma_0))


def _check_finite(z: Tensor) -> None:
    """Raise `InputError` for a z with values that are not finite, which no data belong to.

    They are not looked at while a CUDA graph is being recorded.
    """
    if is_recording(z) or bool(z.isfinite().all()):
        return
    wrong = len(z) - int(z.isfinite().reshape(len(z), -1).all(1).sum())
    raise InputError(
        f"z is not finite in {wrong} of {len(z)} examples: the network's estimates are not. Check "
        "that its weights are finite; with guidance, give a smaller weight"
    )


DECODERS: dict[str, type[Discretized] | type[Gaussian]] = {
    "discretized": Discretized,
    "gaussian": Gaussian,
}
