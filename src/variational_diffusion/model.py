"""The model: a schedule, a network and a decoder, and what follows from the three.

Source: Kingma, Salimans, Poole, Ho, "Variational Diffusion Models" (2021); the velocity head is
Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models" (2022); the
probability-flow ODE is Song et al., "Score-Based Generative Modeling through Stochastic
Differential Equations" (2021), eq. 13, here with γ as its time.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from variational_diffusion import grids, hub, objective, process
from variational_diffusion.conditions import CONDITIONS, Arrays, Batch, Labels, parted
from variational_diffusion.conditions.guidance import EVERYWHERE, Guided
from variational_diffusion.config import Component, ModelConfig, check_options
from variational_diffusion.decoders import DECODERS, UNSEEN, Discretized, Gaussian
from variational_diffusion.errors import InputError, meant, one_of, whole
from variational_diffusion.machine.execution import Execution
from variational_diffusion.machine.memory import rows_at_once
from variational_diffusion.machine.tensors import as_tensor, check_rows
from variational_diffusion.machine.threads import paced
from variational_diffusion.modes import in_evaluation_mode
from variational_diffusion.networks import NETWORKS
from variational_diffusion.networks.own import Factory, is_path, made
from variational_diffusion.numerics import Normal, expand, randn_like
from variational_diffusion.objective import Bound, Draws
from variational_diffusion.sampling import (
    DEFAULT_STEPS,
    Clipped,
    Denoised,
    Sampler,
    default_for,
    estimate,
    named,
)
from variational_diffusion.schedules import SCHEDULES, Schedule
from variational_diffusion.storage.files import check_target
from variational_diffusion.storage.tensors import read_shapes, read_tensors
from variational_diffusion.weightings import Weighting


class VDM(nn.Module):
    """A variational diffusion model of arrays of one shape.

    Args:
        network: Any module called as network(z, gamma, conditioning=None), gamma of shape (batch,),
            with a result of the shape of z.
        schedule: γ(t), such as `Monotone()`.
        decoder: `Discretized` for integers, `Gaussian` for real values.
        shape: Of one example, without the batch.
        prediction: What the network estimates: "noise" ε, or "velocity" v = alpha ε − sigma x.
        condition: How values of a condition become the network's conditioning; None: it takes none.

    Attributes:
        autocast: Type that torch's autocast gives to the network's products, such as
            torch.bfloat16; None: the network runs in its own. Nothing outside the network is ever
            in a lower precision.
        reverse_errors: Errors of ε̂ that widen the steps of `reverse`; None: the paper's variance.
            Set by `widened`.
        config: What `build` made the model of, and `save_pretrained` stores; None for a model that
            was put together by hand.

    Raises:
        InputError: For another prediction.

    Source: Kingma, Salimans, Poole, Ho, "Variational Diffusion Models" (2021), section 3.

    Examples:
        >>> x = torch.randn(8, 2)
        >>> vdm = vd.VDM(vd.MLP((2,), width=16, blocks=1), vd.Monotone(), vd.Gaussian(), shape=(2,))
        >>> vdm.vlb(x).total.shape, vdm.sample(3, steps=4).shape
        (torch.Size([8]), torch.Size([3, 2]))
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        decoder: Discretized | Gaussian,
        shape: tuple[int, ...],
        prediction: str = "velocity",
        condition: Labels | Arrays | None = None,
    ) -> None:
        super().__init__()
        one_of("prediction", prediction, ("noise", "velocity"))
        self.network = network
        self.schedule = schedule
        self.decoder = decoder
        self.shape = tuple(shape)
        self.prediction = prediction
        self.condition = condition
        self.autocast: torch.dtype | None = None
        self.reverse_errors: grids.NoiseErrors | grids.PredictedErrors | None = None
        self.config: ModelConfig | None = None
        self._walked: tuple[int, float] | None = 0, 0.0  # steps from 1 down, the last level

    def __repr__(self) -> str:
        network, schedule, decoder = (
            type(part).__name__ for part in (self.network, self.schedule, self.decoder)
        )
        shape, count = "×".join(map(str, self.shape)), sum(p.numel() for p in self.parameters())
        return f"VDM({network} of {shape}, {schedule}, {decoder}, {count:,} parameters)"

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.schedule.initial_end_points.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the model's weights outside the network, and of z."""
        return self.schedule.initial_end_points.dtype

    @property
    def levels(self) -> int | None:
        """Number of values of integer data; None for real values."""
        return self.decoder.levels if isinstance(self.decoder, Discretized) else None

    @property
    def dimensions(self) -> int:
        """Number of entries d of one example, the d of bits per dimension."""
        return math.prod(self.shape)

    def vlb(
        self,
        x: Shaped[Tensor, "batch *shape"],
        *,
        steps: int | None = None,
        gammas: grids.Gammas | None = None,
        draws: Draws | None = None,
        weighting: Weighting | None = None,
        conditioning: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Bound:
        """Estimate the variational bound on −log p(x), unbiased, in nats per example.

        Args:
            x: Data in the decoder's domain, shape (batch, *self.shape).
            steps: T ≥ 1 for the bound of T steps, uniform in t; None: infinitely many steps (VDM
                eq. 17).
            gammas: The grid of T steps in place of `steps`, falling from γ_1 to γ_0 (VDM eq. 14).
            draws: Times and noise; None: those of `draw`.
            weighting: What the gradient of the diffusion loss is weighted by, as at
                `objective.diffusion`; the values stay those of the bound.
            conditioning: What the network is given, encoded; None: no condition. For p(x|c), call
                `given`.
            generator: Of the draws; None: torch's global one.

        Returns:
            The prior, reconstruction and diffusion terms of each example, and their sum `total`.

        Raises:
            InputError: For another shape, for values outside of the decoder's domain, and for a
                grid that does not go from γ_1 to γ_0.

        Examples:
            >>> vdm = run.model()
            >>> bound = vdm.vlb(torch.zeros(4, 1, 8, 8, dtype=torch.int64))
            >>> bool((bound.total == bound.prior + bound.reconstruction + bound.diffusion).all())
            True
        """
        like = self.schedule.initial_end_points
        x = as_tensor("x", x, like)
        check_rows("x", x, self.shape)
        if steps is not None:
            if gammas is not None:
                raise InputError(f"steps = {steps} and gammas: give one of them")
            gammas = grids.uniform_in_time(self.schedule, whole("steps", steps, 0))
        elif gammas is not None:
            gammas = as_tensor("gammas", gammas, like, numbers=True)
            grids.check_falling(gammas)
            grids.check_ends(gammas, self.schedule)
        encoded = self.encode(x)
        gamma_0, gamma_1 = self.schedule.end_points.unbind()
        if draws is None:
            draws = self.draw(len(x), generator)

        def predict_noise(z: Tensor, gamma: Tensor) -> Tensor:
            return self.denoise(z, gamma, conditioning).noise

        t, noise = draws.times, draws.noise
        if gammas is None:
            diffusion = objective.diffusion(
                predict_noise, self.schedule, encoded, t, noise, weighting
            )
        else:
            diffusion = objective.diffusion_discrete(
                predict_noise, gammas, encoded, t, noise, self.reverse_errors
            )
        q_0 = process.q_t(encoded, gamma_0)
        z_0 = q_0.mean + q_0.std * draws.noise_0
        return Bound(
            prior=objective.prior(encoded, gamma_1),
            reconstruction=-self.decoder.log_prob(x, z_0, gamma_0),
            diffusion=diffusion,
        )

    forward = vlb
    """What wrappers for several devices or processes call: `wrapped(x)` is `vdm.vlb(x)`."""

    def draw(
        self,
        count: int,
        generator: torch.Generator | None = None,
        times: Float[Tensor, " batch"] | None = None,
    ) -> Draws:
        """Draw what `vlb` needs for `count` examples.

        Args:
            count: Number of examples.
            generator: Of the draws; None: torch's global one.
            times: One t in [0, 1) for each example, each uniform on its own; None: low-discrepancy
                times over all of them (VDM appendix I.1).

        Returns:
            Times, and noise for z_t and for z_0.
        """
        like = self.schedule.initial_end_points
        count = whole("count", count)
        if times is None:
            times = objective.low_discrepancy_times(count, generator, like=like)
        noise = randn_like(like.new_empty(count, *self.shape), generator)
        return Draws(times, noise, noise_0=randn_like(noise, generator))

    def given(
        self,
        condition: Shaped[Tensor, "batch *value"] | None,
        *,
        guidance: float = 1.0,
        interval: tuple[float, float] = EVERYWHERE,
    ) -> VDM:
        """Return the model of p(x|c): this one with the condition filled in.

        Samplers, estimators and the ODE take it as any other model. It shares its parts with this
        one.

        Args:
            condition: Values of the condition, one for each row of the batches to come, or one for
                all; None: of p(x), which is this model.
            guidance: Weight w ≥ 0 of the condition (Ho and Salimans, "Classifier-Free Diffusion
                Guidance", 2022). With another weight than 1, samples and the ODE are of the guided
                process, which has no bound.
            interval: Lowest and highest γ at which `guidance` applies.

        Returns:
            The model given the condition.

        Raises:
            InputError: For an unconditional model, and for values that the condition does not have.
        """
        if condition is None:
            return self
        if self.condition is None:
            raise InputError(
                "condition: this model is unconditional; train one with --condition label"
            )
        encoded = self.encode_condition(condition.to(self.schedule.initial_end_points.device))
        if isinstance(self.network, Clipped):  # guidance goes beyond the range: clip after it
            guided = Guided(self.network.network, encoded, guidance, interval)
            return self._around(self.network.around(guided), None)
        return self._around(Guided(self.network, encoded, guidance, interval), None)

    def given_in(self, batch: Batch) -> tuple[VDM, Tensor]:
        """Return the model given the conditions of a batch, and its examples, on its device."""
        x, condition = parted(batch)
        return self.given(condition), x.to(self.schedule.initial_end_points.device)

    def encode(self, x: Shaped[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """Return data as the decoder encodes it, in the precision of the model."""
        return self.decoder.encode(x).to(self.schedule.initial_end_points.dtype)

    def encode_condition(
        self, condition: Shaped[Tensor, "batch *value"]
    ) -> Float[Tensor, "batch *encoded"]:
        """Return values of the condition as the network takes them, in its precision."""
        assert self.condition is not None
        return self.condition.encode(condition).to(self.schedule.initial_end_points.dtype)

    def denoise(
        self,
        z: Float[Tensor, "batch *shape"],
        gamma: process.Gamma,
        conditioning: Tensor | None = None,
    ) -> Denoised:
        """Estimate the noise in z and the encoded data under it.

        Args:
            z: Noisy data, shape (batch, *self.shape), float32 or float64.
            gamma: Noise level γ of each example, shape (batch,), or of all, shape (). Not a time t.
            conditioning: As at `vlb`.

        Returns:
            ε̂ as `.noise` and x̂ as `.x`, with z = alpha x̂ + sigma ε̂.

        Raises:
            InputError: For a z in half precision, and for a network whose output does not have the
                shape and the type of z.

        Examples:
            >>> z, gamma = torch.randn(4, 1, 8, 8), torch.tensor(1.0)
            >>> noise, x = run.model().denoise(z, gamma)
            >>> alpha, sigma = vd.process.alpha(gamma), vd.process.sigma(gamma)
            >>> torch.allclose(alpha * x + sigma * noise, z, atol=1e-5)
            True
        """
        like = self.schedule.initial_end_points
        z = as_tensor("z", z, like)
        if z.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"z has type {z.dtype}: the noise at γ_0 is finer than it resolves. Keep model and "
                "data in torch.float32 or float64; vdm.in_precision(torch.bfloat16) is faster"
            )
        check_rows("z", z, self.shape)
        z, gamma = z.to(like), self._level("gamma", gamma, z).expand(z.shape[0])
        with paced(z.shape, z.dtype, torch.is_grad_enabled()), self._products(z.device):
            output = self._estimated(z, gamma, conditioning)
        alpha, sigma = expand(process.alpha(gamma), z), expand(process.sigma(gamma), z)
        if self.prediction == "noise":
            return Denoised(noise=output, x=(z - sigma * output) / alpha)
        return Denoised(noise=alpha * output + sigma * z, x=alpha * z - sigma * output)

    def _estimated(self, z: Tensor, gamma: Tensor, conditioning: Tensor | None) -> Tensor:
        """Return the network's output; without gradients, of as many rows at once as fit."""

        def of(rows: slice) -> Tensor:
            given = None if conditioning is None else conditioning[rows]
            return estimate(self.network, z[rows], gamma[rows], given)

        if torch.is_grad_enabled() or self.training or torch.compiler.is_compiling():
            return estimate(self.network, z, gamma, conditioning)
        size = rows_at_once(self.network, z, of)
        if size >= len(z):
            return estimate(self.network, z, gamma, conditioning)
        return torch.cat([of(slice(i, i + size)) for i in range(0, len(z), size)])

    def _products(self, device: torch.device) -> AbstractContextManager[None]:
        """Return a context in which the network's products are in the model's precision."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(device.type, self.autocast)

    def reverse(
        self,
        z_t: Float[Tensor, "batch *shape"],
        gamma_t: process.Gamma,
        gamma_s: process.Gamma,
    ) -> Normal:
        """Return p(z_s|z_t) = q(z_s|z_t, x = x̂(z_t; γ_t)) (VDM section 3.3).

        Of a model by `widened`, its variance is the best for the errors of ε̂: `process.widened`.

        Args:
            z_t: Noisy data, shape (batch, *self.shape).
            gamma_t: Its noise level γ_t, shape (batch,) or (). Not a time t.
            gamma_s: The lower noise level γ_s ≤ γ_t of the result.

        Returns:
            A normal distribution: `.mean`, `.std`, `.sample(generator)`.

        Raises:
            InputError: As `denoise`.

        Warns:
            UserWarning: Once, where the levels look like times of this schedule.

        Examples:
            >>> vdm = run.model()
            >>> z, gamma_t = torch.randn(4, 1, 8, 8), vdm.schedule(torch.tensor(1.0))
            >>> gamma_s = vdm.schedule(torch.tensor(0.9))
            >>> vdm.reverse(z, gamma_t, gamma_s).sample().shape
            torch.Size([4, 1, 8, 8])
        """
        z_t = as_tensor("z_t", z_t, self.schedule.initial_end_points, numbers=True)
        check_rows("z_t", z_t, self.shape)
        gamma_t, gamma_s = (
            self._level("gamma_t", gamma_t, z_t),
            self._level("gamma_s", gamma_s, z_t),
        )
        self._warn_of_times(gamma_t, gamma_s)
        noise, x = self.denoise(z_t, gamma_t)
        posterior = process.q_s_given_t(z_t, x, gamma_s, gamma_t)
        if self.reverse_errors is None:
            return posterior
        assumed = self.reverse_errors(z_t, gamma_t.expand(len(z_t)), noise)
        return process.widened(posterior, gamma_s, gamma_t, assumed)

    def _warn_of_times(self, gamma_t: Tensor, gamma_s: Tensor) -> None:
        """Warn once of steps that walk from 1 to 0 and leave [0, 1] never: a loop over times.

        Chains of γ begin at γ_1 and so elsewhere. Values on a GPU are not looked at: it would wait.
        """
        if self._walked is None or gamma_t.is_cuda or gamma_s.is_cuda:
            return
        t, s = float(gamma_t.detach().max()), float(gamma_s.detach().min())
        steps, before = self._walked
        begun = steps > 0 or (t == 1 and before != 1)  # a chain may pass 1 on its way
        self._walked = (steps + 1 if begun and 0 <= s <= t <= 1 else 0), s
        if s > 1e-3 or self._walked[0] < 2:
            return
        gamma_0, gamma_1 = (float(end) for end in self.schedule.end_points)
        if gamma_0 < 0 and gamma_1 > 1:
            self._walked = None
            warnings.warn(
                f"reverse was called with levels from 1 to {s:g}, which look like times t: it "
                f"takes γ(t), from {gamma_1:.1f} to {gamma_0:.1f} here; give vdm.schedule(t)",
                stacklevel=3,
            )

    def drift(
        self,
        z: Float[Tensor, "batch *shape"],
        gamma: process.Gamma,
    ) -> Float[Tensor, "batch *shape"]:
        """Return dz/dγ of the probability-flow ODE, −½ sigma² z + ½ sigma ε̂(z; γ).

        Args:
            z: Noisy data, shape (batch, *self.shape).
            gamma: Noise level γ of each example, shape (batch,), or of all, shape ().

        Returns:
            The derivative along γ, in the shape of z.

        Raises:
            InputError: As `denoise`.

        Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential
        Equations" (2021), eq. 13, with γ as its time.
        """
        z = as_tensor("z", z, self.schedule.initial_end_points, numbers=True)
        gamma = self._level("gamma", gamma, z)
        noise = self.denoise(z, gamma).noise
        sigma = expand(process.sigma(gamma.expand(len(z))), z)
        return 0.5 * sigma * (noise - sigma * z)

    def widened(self, errors: grids.NoiseErrors | grids.PredictedErrors | None) -> VDM:
        """Return this model with the reverse variance that is best for errors of ε̂.

        It shares its parts with this one.

        Args:
            errors: Measured or predicted; None: the paper's variance.

        Source: Bao et al., "Analytic-DPM" (2022), theorem 1, in γ.
        """
        model = self._around(self.network, self.condition)
        model.reverse_errors = errors
        return model

    def in_precision(self, dtype: torch.dtype | None) -> VDM:
        """Return this model with the network's products in a type; None: that of its weights.

        It shares its parts with this one.
        """
        model = self._around(self.network, self.condition)
        model.autocast = dtype
        return model

    def prepare(self, execution: Execution) -> VDM:
        """Set this model up in place, as torch's `to` does, and return it.

        The values of its parameters stay.
        """
        device = execution.target()
        self.to(device)
        self.autocast = execution.autocast(device)
        if execution.channels_last:
            # torch documents this call and leaves it out of its annotations
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if execution.compile != "off":
            self.network.compile(dynamic=False)
        return self

    def clipped(self, quantile: float = 0.0) -> VDM:
        """Return this model with x̂ kept in the range of its levels; it shares its parts.

        Args:
            quantile: As in `sampling.Clipped`: 0 cuts x̂ off.

        Raises:
            InputError: For a model of real values.
        """
        if not isinstance(self.decoder, Discretized):
            raise InputError("clip: real-valued data have no range; only x̂ of levels is clipped")
        limit = 1 - 1 / self.decoder.levels
        network = Clipped(self.network, self.prediction, limit, quantile)
        return self._around(network, self.condition)

    def _around(self, network: nn.Module, condition: Labels | Arrays | None) -> VDM:
        """Return a model of the same parts with a network around this one's."""
        parts = network, self.schedule, self.decoder, self.shape, self.prediction, condition
        model = VDM(*parts)
        model.autocast, model.reverse_errors = self.autocast, self.reverse_errors
        if network is self.network:
            model.config = self.config
        model.training = network.training = self.training  # and of the shared parts, their own
        return model

    def sampling_grid(self, steps: int) -> grids.Gammas:
        """Return a grid for few steps: even in γ, and the last from where `stop_early` says."""
        return grids.step_grid("gamma", self.schedule, steps, stop=self.stop_early(steps))

    def stop_early(self, steps: int) -> float | None:
        """Return the γ from which the last of a few steps is taken, or None for an even grid.

        Of images it is where the noise is `decoders.UNSEEN` of the range of the data. Where a level
        is wider than that, every level is seen, and x̂ decides between them later. The steps of
        other data go all the way.
        """
        if not isinstance(self.decoder, Discretized) or len(self.shape) != 3 or steps < 2:
            return None
        gamma = self.decoder.gamma_at(UNSEEN)
        gamma_0, gamma_1 = self.schedule.end_points.tolist()
        fine = self.decoder.levels * UNSEEN >= 1
        return gamma if fine and gamma_0 < gamma < gamma_1 else None

    @in_evaluation_mode
    def trajectory(
        self,
        n: int,
        *,
        steps: int | None = None,
        gammas: grids.Gammas | None = None,
        sampler: str | Sampler | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[tuple[Tensor, Float[Tensor, "n *shape"]]]:
        """Yield (γ, z) for n samples: first the prior's draw at γ_1, then after every step.

        Args:
            n: Number of samples.
            steps: Of the grid that `sampling_grid` returns; None: `DEFAULT_STEPS`.
            gammas: Another grid, from γ_1 down to γ_0. `uniform_in_time(vdm.schedule, 1000)` with
                the sampler "ancestral" is the paper's.
            sampler: A name in `SAMPLERS`, or a function called as its entries are; None:
                "sde-dpmpp-2m" for images, "unipc" for vectors.
            generator: Of the draws; None: torch's global one.

        Yields:
            The noise level and z, shape (n, *self.shape).

        Raises:
            InputError: For steps and gammas together, and for a grid that does not fall.

        Examples:
            >>> path = list(run.model().trajectory(2, steps=4))
            >>> len(path), bool(path[0][0] > path[-1][0])
            (5, True)
        """
        if steps is not None and gammas is not None:
            raise InputError(f"steps = {steps} and gammas = {gammas}: give one of them")
        sampler = default_for(self.shape) if sampler is None else sampler
        carry = sampler if callable(sampler) else named(sampler)
        n = whole("n", n)
        if gammas is None:
            steps = DEFAULT_STEPS if steps is None else whole("steps", steps, 0)
            gammas = self.sampling_grid(steps)
        gammas = as_tensor("gammas", gammas, self.schedule.initial_end_points, numbers=True)
        grids.check_falling(gammas)
        shape = (n, *self.shape)
        z = torch.randn(shape, generator=generator, dtype=gammas.dtype, device=gammas.device)
        yield gammas[0], z
        path = carry(self, z, gammas, generator=generator)
        yield from zip(gammas[1:], path, strict=True)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        steps: int | None = None,
        gammas: grids.Gammas | None = None,
        sampler: str | Sampler | None = None,
        generator: torch.Generator | None = None,
    ) -> Shaped[Tensor, "n *shape"]:
        """Draw n examples x ~ p(x), in the decoder's domain.

        Args:
            n: As at `trajectory`.
            steps: As at `trajectory`.
            gammas: As at `trajectory`.
            sampler: As at `trajectory`.
            generator: Of the draws; None: torch's global one.

        Returns:
            Samples by a draw from p(x|z_0), shape (n, *self.shape).

        Raises:
            InputError: As `trajectory`, and where a z is not finite, as with weights that are not.

        Examples:
            >>> x = run.model().sample(4, steps=5, generator=torch.Generator().manual_seed(0))
            >>> x.shape, x.dtype, bool((x >= 0).all() and (x < 17).all())
            (torch.Size([4, 1, 8, 8]), torch.int64, True)
        """
        path = self.trajectory(
            n,
            steps=steps,
            gammas=gammas,
            sampler=sampler,
            generator=generator,
        )
        *_, (gamma_0, z_0) = path
        return self.decoder.sample(z_0, gamma_0, generator)

    def save_pretrained(
        self, save_directory: str | Path, *, model_card_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        """Write the model as a folder that `from_pretrained` reads (see `hub`).

        Args:
            save_directory: New or empty.
            model_card_kwargs: Arguments of `hub.card`: what was measured, how it was trained.

        Raises:
            InputError: For a folder with files in it, and for a model that `build` did not make.
        """
        folder = check_target(save_directory, "save_directory", folder=True)
        config = self._known_config()
        parameters = sum(parameter.numel() for parameter in self.parameters())
        card = hub.card(config, parameters, **(model_card_kwargs or {}))
        hub.write_folder(folder, config, self.state_dict(), card)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        model_card_kwargs: Mapping[str, Any] | None = None,
        private: bool | None = None,
        token: str | None = None,
        **commit: Any,
    ) -> str:
        """Upload to a repository of the hub what `save_pretrained` writes, as one commit.

        Args:
            repo_id: OWNER/NAME; the repository is made if there is none.
            model_card_kwargs: As at `save_pretrained`.
            private: Whether a new repository is private; None: as its owner has it.
            token: Of the hub; None: that of `hf auth login`.
            **commit: Arguments of `huggingface_hub.HfApi.upload_folder`, such as revision,
                commit_message and create_pr.

        Returns:
            The address of the commit.

        Raises:
            InputError: For a model that `build` did not make.
        """
        with TemporaryDirectory() as parent:
            folder = Path(parent) / "model"
            self.save_pretrained(folder, model_card_kwargs=model_card_kwargs)
            return hub.upload(folder, repo_id, private=private, token=token, **commit)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        network: Factory | None = None,
        **options: Any,
    ) -> VDM:
        """Return a model from a folder or from a repository of the hub, in evaluation mode.

        Args:
            pretrained_model_name_or_path: The folder, or "owner/name".
            network: The class or function that makes a network of one's own, whose code is not in
                the folder.
            **options: Those of `huggingface_hub.hf_hub_download`, such as revision and token.

        Returns:
            The model, on the CPU.

        Raises:
            InputError: When there is no such model, and when its files are damaged.
        """
        folder = hub.fetch(str(pretrained_model_name_or_path), **options)
        config = hub.read_config(folder)
        check_claim(config, read_shapes(folder / hub.WEIGHTS), network=network)
        tensors, _ = read_tensors(folder / hub.WEIGHTS)
        vdm = build(config, network=network)
        try:
            vdm.load_state_dict(tensors)
        except RuntimeError as error:
            raise InputError(
                f"'{folder}': {hub.WEIGHTS} does not fit {hub.CONFIG}: the two belong to "
                "different models, restore the pair"
            ) from error
        return vdm.eval().requires_grad_(False)

    def _known_config(self) -> ModelConfig:
        if self.config is None:
            raise InputError(
                "config = None: this model was put together by hand and cannot be stored; set "
                "vdm.config to the ModelConfig that describes it, or make it by build(config)"
            )
        return self.config

    def _level(self, name: str, gamma: Any, z: Tensor) -> Tensor:
        """Return a noise level of all rows of z, shape (), or one for each, shape (batch,)."""
        level = as_tensor(name, gamma, self.schedule.initial_end_points, numbers=True)
        if level.ndim and level.shape != z.shape[:1]:
            raise InputError(
                f"{name} has shape {tuple(level.shape)}: give one level, or one for each of "
                f"{z.shape[0]} examples"
            )
        return level


def build(config: ModelConfig, *, seed: int = 0, network: Factory | None = None) -> VDM:
    """Build the model that a configuration describes, on the CPU, with initial weights.

    torch's initialisers draw from the global generator; its state is put back afterwards.

    Args:
        config: Such as `RunConfig.model`.
        seed: Of the initial weights.
        network: The class or function that makes a network of one's own.

    Returns:
        The model, in training mode.

    Raises:
        InputError: For an unknown name or option of a part, with those that are known.

    Examples:
        >>> a, b = vd.build(run.config.model, seed=1), vd.build(run.config.model, seed=1)
        >>> all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
        True
    """
    table = networks(config.network.name, network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vdm = VDM(
            network=_construct("network", table, config.network, config.shape),
            schedule=_construct("schedule", SCHEDULES, config.schedule),
            decoder=_construct("decoder", DECODERS, config.decoder),
            shape=config.shape,
            prediction=config.prediction,
            condition=None
            if config.condition is None
            else _construct("condition", CONDITIONS, config.condition),
        )
    vdm.config = complete(config, network)
    return vdm


def check_claim(
    config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], *, network: Factory | None = None
) -> None:
    """Compare what a configuration claims with what a file holds, before memory is taken for it.

    The network is built on a device without memory. One of one's own is not: nothing is known of
    its code.

    shapes: of the tensors in the file, by their names in `VDM.state_dict()`.
    Raises InputError with both numbers of parameters where the two do not fit.
    """
    if network is not None:
        return
    table = networks(config.network.name, network)
    held = {name: shape for name, shape in shapes.items() if name.startswith("network.")}
    try:
        with torch.device("meta"):
            claimed = _construct("network", table, config.network, config.shape)
    except (
        RuntimeError,
        OverflowError,
        TypeError,
    ) as error:  # more entries than there are addresses
        raise InputError(f"network = {config.network.options}: too large to be built") from error
    needs = {f"network.{name}": tuple(p.shape) for name, p in claimed.state_dict().items()}
    if needs != held:
        count = [sum(map(math.prod, found.values())) for found in (needs, held)]
        raise InputError(
            f"the configuration describes a network of {count[0]:,} parameters and the weights "
            f"have {count[1]:,}: the two belong to different models, restore the pair"
        )


def networks(name: str, network: Factory | None) -> Mapping[str, Any]:
    """Return the table that a network is made from: `NETWORKS`, or one with one's own alone.

    Raises InputError where the two do not belong together.
    """
    if network is None and is_path(name):
        raise InputError(
            f"network = '{name}' is of one's own, and its code is not stored with the weights: "
            f"give the class again, as network=… in Python and as --network {name} to a command"
        )
    if network is not None and not is_path(name):
        raise InputError(f"network = '{name}' comes with this package: leave out network")
    return NETWORKS if network is None else {name: network}


def complete(config: ModelConfig, network: Factory | None = None) -> ModelConfig:
    """Return the configuration with every default of the parts' constructors written out.

    A stored configuration then builds the same model when a later version changes a default.
    """
    table = networks(config.network.name, network)

    def with_defaults(kind: str, table: Mapping[str, Any], component: Component) -> Component:
        parameters = [*inspect.signature(_constructor(kind, table, component)).parameters.values()]
        if is_path(component.name):  # whatever it calls the shape, and defaults of any type
            parameters = [p for p in parameters[1:] if _is_plain(p.default)]
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        return Component(name=component.name, options=defaults | component.options)

    return config.model_copy(
        update={
            "network": with_defaults("network", table, config.network),
            "schedule": with_defaults("schedule", SCHEDULES, config.schedule),
            "decoder": with_defaults("decoder", DECODERS, config.decoder),
        }
    )


def _is_plain(value: object) -> bool:
    """Return whether a default can be written into a file of JSON."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _construct(kind: str, table: Mapping[str, Any], component: Component, *first: Any) -> Any:
    constructor = _constructor(kind, table, component)
    if is_path(component.name):
        return made(constructor, component.name, *first, **component.options)
    return constructor(*first, **component.options)


def _constructor(kind: str, table: Mapping[str, Any], component: Component) -> Any:
    """Return the entry of a table; name an unknown name or option, and what is known."""
    one_of(kind, component.name, table)
    constructor = table[component.name]
    parameters = inspect.signature(constructor).parameters
    known = [name for name in parameters if name != "shape"]
    for option in component.options:
        if option not in known and not is_path(component.name):
            raise InputError(
                f"{kind}.{option}: {component.name} has the options {', '.join(known)}"
                f"{meant(option, known)}"
            )
    check_options(kind, None if is_path(component.name) else constructor, component.options)
    return constructor
