"""Models of diffusers as networks here, and models of this package in pipelines of diffusers.

`DiffusersNetwork` makes a UNet2DModel, UNet2DConditionModel or DiTTransformer2DModel the network of
a VDM. `Denoiser` is a trained VDM as what a pipeline calls its unet, `GammaScheduler` is its
scheduler, and `pipeline` the two together as diffusers' DDPMPipeline.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from variational_diffusion import grids, process
from variational_diffusion.config import Component, ModelConfig
from variational_diffusion.decoders import DECODERS, Discretized
from variational_diffusion.errors import InputError, needs
from variational_diffusion.model import VDM
from variational_diffusion.networks.layers import inputs_per_channel, with_features
from variational_diffusion.schedules import SCHEDULES

with needs("diffusers"):
    from diffusers import ConfigMixin, DDPMPipeline, ModelMixin, SchedulerMixin
    from diffusers.configuration_utils import register_to_config
    from diffusers.models.embeddings import LabelEmbedding
    from diffusers.models.unets.unet_2d import UNet2DOutput
    from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput

_TIMES = 1000.0  # their embeddings are made for times of 0 to 1000


class DiffusersNetwork(nn.Module):
    """A model of diffusers as network(z, gamma, conditioning).

    γ becomes the timestep 1000 (γ − gamma_min)/(gamma_max − gamma_min), a real number. Of an output
    with more channels than z, such as the learned variance of a DiT, the first are taken.

    model: its inputs are the channels of z, or four for each where `levels` are given.
    conditioning: the model's argument that the conditioning of `VDM` goes to, such as
        "class_labels" (integers, shape (batch,)) or "encoder_hidden_states". Without a conditioning
        a DiT gets the class that stands for none.
    levels: of discrete data, whose lattice is then an input as of the networks of this package
        (`networks.layers.with_features`); None: z alone.

    Labels are not dropped at random in training, as they are in diffusers: which examples have none
    is for the caller to say.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        gamma_min: float = -13.3,
        gamma_max: float = 5.0,
        conditioning: str = "class_labels",
        levels: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.gamma_min, self.gamma_max = gamma_min, gamma_max
        self.conditioning = conditioning
        self.levels = levels
        self.no_class: int | None = None
        for module in model.modules():
            if isinstance(module, LabelEmbedding):
                module.dropout_prob = 0.0
                self.no_class = module.num_classes

    def forward(
        self,
        z: Float[Tensor, "batch c h w"],
        gamma: Float[Tensor, " batch"],
        conditioning: Tensor | None = None,
    ) -> Float[Tensor, "batch c h w"]:
        times = _TIMES * (gamma - self.gamma_min) / (self.gamma_max - self.gamma_min)
        if conditioning is None and self.no_class is not None:
            conditioning = torch.full((len(z),), self.no_class, device=z.device)
        given = {} if conditioning is None else {self.conditioning: conditioning}
        inputs = with_features(z, gamma, self.levels)
        (output,) = self.model(inputs, timestep=times, return_dict=False, **given)
        return output[:, : z.shape[1]]

    @staticmethod
    def in_channels(channels: int, levels: int | None) -> int:
        """Return the inputs that a model needs for z of so many channels."""
        return channels * inputs_per_channel(levels)


class Denoiser(ModelMixin, ConfigMixin):
    """A trained VDM as the unet of a pipeline; it gives x̂, the prediction type "sample".

    It is saved as what `VDM.from_pretrained` reads, and loaded so, in the model's own precision.
    """

    # diffusers declares it as None, and reads a name from it
    config_name = "config.json"  # type: ignore[assignment]

    def __init__(self, vdm: VDM) -> None:
        super().__init__()
        channels, height, width = _image_config(vdm).shape
        self.vdm = vdm
        self.register_to_config(in_channels=channels, sample_size=(height, width))

    def save_pretrained(self, save_directory: str, **_: Any) -> None:
        """Write the model as `VDM.save_pretrained` does."""
        self.vdm.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, **_: Any) -> Denoiser:
        """Read what `save_pretrained` wrote."""
        return cls(VDM.from_pretrained(pretrained_model_name_or_path))

    def forward(
        self, sample: Tensor, timestep: Tensor, return_dict: bool = True
    ) -> UNet2DOutput | tuple[Tensor]:
        """Return x̂(z; γ). sample: z. timestep: γ, shape () or (batch,)."""
        x = self.vdm.denoise(sample, timestep.to(sample)).x
        return UNet2DOutput(sample=x) if return_dict else (x,)


class GammaScheduler(SchedulerMixin, ConfigMixin):
    """Ancestral sampling of a VDM: timesteps are γ, from γ_1 on, and a step draws p(z_s|z_t).

    The last step goes on to p(x|z_0) and returns x as it is encoded, in (−1, 1).

    schedule, decoder: name and options of a `Component`; schedule also has "state", what it has
        learned, as lists of numbers.
    """

    # as in `Denoiser`
    config_name = "scheduler_config.json"  # type: ignore[assignment]
    order = 1

    @register_to_config
    def __init__(self, schedule: dict[str, Any], decoder: dict[str, Any]) -> None:
        self.schedule = SCHEDULES[schedule["name"]](**schedule["options"])
        own = self.schedule.state_dict()
        state = {k: torch.tensor(v, dtype=own[k].dtype) for k, v in schedule["state"].items()}
        self.schedule.load_state_dict(state)
        self.schedule.requires_grad_(False)
        self.decoder = DECODERS[decoder["name"]](**decoder["options"])
        self.gammas = torch.empty(0)
        self.timesteps = torch.empty(0)
        self.init_noise_sigma = 1.0

    @classmethod
    def of(cls, vdm: VDM) -> GammaScheduler:
        """Return the scheduler of a model."""
        config = _image_config(vdm)
        state = {name: value.tolist() for name, value in vdm.schedule.state_dict().items()}
        return cls({**_plain(config.schedule), "state": state}, _plain(config.decoder))

    def set_timesteps(
        self, num_inference_steps: int, device: torch.device | str | None = None
    ) -> None:
        """Lay so many steps, uniform in t."""
        self.gammas = grids.uniform_in_time(self.schedule, num_inference_steps).to(device)
        self.timesteps = self.gammas[:-1]

    def scale_model_input(self, sample: Tensor, timestep: Tensor | None = None) -> Tensor:
        """Return the sample as it is."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[Tensor]:
        """Draw z_s ~ p(z_s|z_t).

        model_output: x̂. timestep: γ_t, one of `timesteps`. sample: z_t.
        """
        (place,) = (self.timesteps == timestep.to(self.timesteps)).nonzero()[0].tolist()
        gamma_t, gamma_s = self.gammas[place : place + 2].to(sample)
        z = process.q_s_given_t(sample, model_output, gamma_s, gamma_t).sample(generator)
        if place + 1 == len(self.timesteps):
            z = self.decoder.encode(self.decoder.sample(z, gamma_s, generator)).to(z)
        if not return_dict:
            return (z,)
        return DDPMSchedulerOutput(prev_sample=z, pred_original_sample=model_output)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return z_t = alpha x + sigma ε at γ = `timesteps`."""
        q = process.q_t(original_samples, timesteps)
        return q.mean + q.std * noise

    def __len__(self) -> int:
        return len(self.timesteps)


def pipeline(vdm: VDM) -> DDPMPipeline:
    """Return diffusers' DDPMPipeline with a model of images and its own scheduler.

    With one generator it makes the images of `VDM.sample` bit for bit; its arguments, saving and
    loading are those of diffusers.

    Raises InputError unless the model is of discrete images of one or three channels.
    """
    return DDPMPipeline(unet=Denoiser(vdm), scheduler=GammaScheduler.of(vdm))


def _image_config(vdm: VDM) -> ModelConfig:
    if vdm.config is None:
        raise InputError("config = None: take a model that build, a run or from_pretrained made")
    is_image = len(vdm.shape) == 3 and vdm.shape[0] in (1, 3)
    if not (is_image and isinstance(vdm.decoder, Discretized)):
        raise InputError(
            f"shape = {vdm.shape}, decoder = {vdm.config.decoder.name!r}: pipelines of diffusers "
            "make discrete images of one or three channels"
        )
    return vdm.config


def _plain(component: Component) -> dict[str, Any]:
    return component.model_dump(mode="json")
