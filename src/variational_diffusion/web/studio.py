"""What `vdm serve` does with a model: functions from arrays to arrays, and generators of stages.

An image is an array of the model's shape of integers 0 … levels − 1. Nothing here knows of a page.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Integer, Shaped
from torch import Tensor

from variational_diffusion import editing, grids, process
from variational_diffusion.compression import number_of_tiles
from variational_diffusion.conditions import Labels
from variational_diffusion.errors import InputError
from variational_diffusion.images.pictures import is_image
from variational_diffusion.likelihood import bits_of_entries
from variational_diffusion.machine.execution import Execution
from variational_diffusion.model import VDM
from variational_diffusion.numerics import derived_seed, randn_like
from variational_diffusion.report import read_section
from variational_diffusion.run.compression import compress, decompress
from variational_diffusion.run.directory import Run
from variational_diffusion.run.editing import JUMP, REPEATS
from variational_diffusion.run.evaluation import evaluate
from variational_diffusion.run.examples import own_data
from variational_diffusion.run.samples import sampling_of
from variational_diffusion.run.trained import Trained

Image = Integer[np.ndarray, "channels height width"]

MOST_STEPS, MOST_SAMPLES = 250, 16
MOST_TILES = 256
"""Of an image that is compressed."""
_FRAMES = 24
_DRAWS, _ROUNDS = 64, 8
_TEST_EXAMPLES = 128


class Noised(NamedTuple):
    """An image on its way to noise: z_t/alpha_t and x̂ as images; γ, and SNR = exp(−γ)."""

    z: Image
    x: Image
    gamma: float
    snr: float


class Likelihood(NamedTuple):
    """Bits per dimension of an image, with the error of the draws.

    map: bits of each pixel, summed over its channels, shape (height, width).
    others: of test examples, shape (n,); none where they are not at hand.
    """

    bits_per_dim: float
    error: float
    map: np.ndarray
    others: np.ndarray

    @property
    def place(self) -> float:
        """The share of test examples with fewer bits; NaN without any."""
        return float((self.others < self.bits_per_dim).mean()) if len(self.others) else math.nan


class Compressed(NamedTuple):
    """An image as a .vdmz file, and how many bytes picture formats take for it.

    tiles: it was cut into. by_model: whether the model coded it, or most of it.
    """

    content: bytes
    tiles: int
    by_model: bool
    pictures: dict[str, int]


class Studio:
    """A model and what can be done with it. Raises InputError for what is no model of images.

    labels: names of its classes, none without conditions. free: whether it knows p(x), without a
    label.
    """

    def __init__(self, run: Run, weights: str, device: torch.device | str = "cpu") -> None:
        config = run.config.model
        if not is_image(config.shape) or run.config.data.levels is None:
            kind = "real-valued data" if is_image(config.shape) else f"shape {config.shape}"
            raise InputError(
                f"run = '{run.path}' is a model of {kind}: vdm serve shows images of integers; "
                "vdm sample and vdm evaluate take any run"
            )
        self.trained = Trained.open(run, weights, Execution(str(device)))
        self.shape, self.levels = config.shape, run.config.data.levels
        condition = self.vdm.condition
        self.labels = condition.names if isinstance(condition, Labels) else ()
        self.free = condition is None or run.config.training.condition_dropout > 0
        if not self.free and not self.labels:
            raise InputError(
                f"run = '{run.path}' was trained with condition_dropout = 0 on arrays as "
                "conditions: vdm serve shows models that can do without them"
            )

    @property
    def run(self) -> Run:
        return self.trained.run

    @property
    def vdm(self) -> VDM:
        """The model, without a label."""
        return self.trained.vdm

    def given(self, label: str | None = None, guidance: float = 1.0) -> VDM:
        """Return the model of p(x|label), or of p(x) for None."""
        if label is None:
            if not self.free:
                raise InputError("label = none: this model knows no images without one; choose one")
            return self.vdm
        if not isinstance(self.vdm.condition, Labels):
            raise InputError(f"label = '{label}': this model has no labels")
        if guidance != 1 and not self.free:
            raise InputError(f"guidance = {guidance}: this model was trained without dropping it")
        return self.vdm.given(self.vdm.condition.values([label]), guidance=guidance)

    def samples(
        self,
        count: int,
        steps: int,
        sampler: str,
        *,
        label: str | None = None,
        guidance: float = 1.0,
        seed: int = 0,
    ) -> Iterator[tuple[float, float, np.ndarray, np.ndarray]]:
        """Draw images; yield (share done, γ, z, x̂), the last with the samples in place of both.

        z and x̂ are images, shape (count, *shape). The samples are those of `Run.sample`.
        """
        _check("count", count, 1, MOST_SAMPLES)
        _check("steps", steps, 1, MOST_STEPS)
        given = replace(self.trained, vdm=self.given(label, guidance))
        model, carry, gammas, _ = sampling_of(given, sampler=sampler, steps=steps)
        generator = self._generator(seed, 0)
        with torch.no_grad():
            path = model.trajectory(count, gammas=gammas, sampler=carry, generator=generator)
            for step, (gamma, z) in enumerate(path):
                frame = step * _FRAMES // steps
                if step < steps and (step == 0 or frame > (step - 1) * _FRAMES // steps):
                    x = model.denoise(z, gamma).x
                    yield step / steps, float(gamma), self._shown(z), self._shown(x)
            drawn = model.decoder.sample(z, gamma, generator).cpu().numpy()
        yield 1.0, float(gamma), drawn, drawn

    @torch.no_grad()
    def forward(self, x: Image, t: float, *, label: str | None = None, seed: int = 0) -> Noised:
        """Put the noise of time t, from 0 to 1, on an image; estimate the image from that."""
        _check("t", t, 0, 1)
        model = self.given(label)
        encoded = model.encode(self._batch(x))
        gamma = model.schedule(torch.tensor([t], device=encoded.device))
        noise = randn_like(encoded, self._generator(seed))  # one for all t: only its share changes
        q = process.q_t(encoded, gamma)
        z = q.mean + q.std * noise
        estimate = model.denoise(z, gamma).x
        level = float(gamma)
        shown = self._shown(z / process.alpha(gamma).item())[0]
        return Noised(shown, self._shown(estimate)[0], level, math.exp(-level))

    def likelihood(self, x: Image, *, label: str | None = None, seed: int = 0) -> Likelihood:
        """Estimate the bound for infinitely many steps of an image, in bits per dimension."""
        model = self.given(label)
        found = evaluate(model, x[None], rounds=_ROUNDS, draws=_DRAWS // _ROUNDS, seed=seed)
        entries = bits_of_entries(
            model, self._batch(x), draws=_DRAWS, generator=self._generator(seed)
        )
        return Likelihood(
            found.bits_per_dim,
            float(found.table["error"][0]),
            entries[0].sum(0).cpu().numpy(),
            self.test_bits,
        )

    @cached_property
    def test_bits(self) -> np.ndarray:
        """Bits per dimension of test examples: those of the run's report, or measured once.

        Empty where there is no report and the data are gone.
        """
        kept = read_section(self.run, "likelihood", self.trained.weights)
        if kept is not None:
            return kept.arrays["bits_per_dim"].numpy()
        try:
            test = own_data(self.run).splits["test"].sample(_TEST_EXAMPLES)
        except InputError:
            return np.empty(0)
        return evaluate(self.vdm, test, rounds=1, draws=8).table["bits_per_dim"]

    def test_example(self, number: int) -> Image:
        """Return a test example; numbers go round."""
        test = own_data(self.run).splits["test"]
        return test.read(np.array([number % len(test)]))[0]

    def inpaint(
        self,
        x: Image,
        mask: Bool[np.ndarray, "height width"],
        steps: int,
        *,
        label: str | None = None,
        seed: int = 0,
    ) -> Iterator[tuple[float, Image]]:
        """Paint an image anew where the mask is true; yield (share done, image) on the way.

        The last is that of `run.editing.inpaint`.
        """
        _check("steps", steps, 1, MOST_STEPS)
        if not mask.any():
            raise InputError("mask = empty: paint over what is to be made anew")
        model = self.given(label)
        hole = torch.from_numpy(mask).to(self.vdm.device).expand(self.shape)
        gammas = grids.uniform_in_time(model.schedule, steps).detach()
        path = editing.inpaint(
            model,
            self._batch(x),
            hole,
            gammas,
            repeats=REPEATS,
            jump=JUMP,
            generator=self._generator(seed, 1, 0),
        )
        for done, z in enumerate(path, 1):
            if done == steps or done * _FRAMES // steps > (done - 1) * _FRAMES // steps:
                yield done / steps, editing.to_data(model, z)[0].cpu().numpy()

    def compress(self, x: Shaped[np.ndarray, "channels height width"]) -> Compressed:
        """Compress an image of any size, as `vdm compress` does, without a condition."""
        self.given()
        tiles = number_of_tiles(x.shape, self.shape)
        if tiles > MOST_TILES:
            height, width = self.shape[1:]
            raise InputError(
                f"The image is {tiles:,} tiles of {height}x{width}: up to {MOST_TILES} are "
                "compressed here, and any number by vdm compress"
            )
        with TemporaryDirectory() as folder:
            file = Path(folder) / "image.vdmz"
            found = compress(
                self.run, x[None], file, weights=self.trained.weights, device=str(self.vdm.device)
            )
            content = file.read_bytes()
        pictures = {
            name.removesuffix(", one by one"): round(bits * x.size / 8)
            for name, bits in found.classical.items()
            if name.endswith(", one by one")
        }
        return Compressed(content, tiles, found.by_model > 0, pictures)

    def decompress(self, content: bytes) -> Image:
        """Return the image that `compress` was given."""
        with TemporaryDirectory() as folder:
            file = Path(folder) / "image.vdmz"
            file.write_bytes(content)
            (image,) = decompress(self.run, file, device=str(self.vdm.device))
        return image

    def _generator(self, *seeds: int) -> torch.Generator:
        return torch.Generator(self.vdm.device).manual_seed(derived_seed(*seeds))

    def _batch(self, x: Image) -> Tensor:
        return torch.from_numpy(x.astype(np.int64))[None].to(self.vdm.device)

    def _shown(self, z: Tensor) -> np.ndarray:
        return self.vdm.decoder.decode(z).cpu().numpy()


def _check(name: str, value: float | int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InputError(f"{name} = {value}: give a number from {low} to {high}")
