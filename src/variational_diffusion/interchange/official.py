"""Checkpoints of the official VDM release, as models of this package.

The release (google-research/vdm) stores the state of training by flax (see `flax`): step, params,
ema_params and opt_state.

The network is `PaperUNet` parameter by parameter. The release's schedules are these:

    fixed             γ_min + (γ_max − γ_min) t                         FixedLinear
    learnable_scalar  b + |w| t                                         LearnedLinear
    learnable_nnet    g(t) = |k_1| t + b_1                              Monotone
                             + (1/n) Σ |k_3| 2 (sigmoid(2 |k_2| (t − ½) + b_2) − ½)

The last is γ itself, without a normalisation: its end points are g(0) and g(1), and between them it
is a `Monotone` with other names for its weights, so no class of its own is needed.

Source: Kingma, Salimans, Poole, Ho, "Variational Diffusion Models" (2021), and its code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from variational_diffusion.config import Component, ModelConfig
from variational_diffusion.errors import InputError
from variational_diffusion.interchange.flax import Arrays, array_of, arrays_of, read_tree
from variational_diffusion.model import VDM, build
from variational_diffusion.networks import PaperUNet
from variational_diffusion.schedules import Monotone

_GAMMAS = -13.3, 5.0
"""gamma_min and gamma_max of every configuration of the release; its files do not hold them."""


@dataclass(frozen=True)
class Official:
    """A checkpoint: the step it is of, the model, and the model with the averaged weights."""

    step: int
    raw: VDM
    average: VDM


def read_official(path: Path, size: tuple[int, int] = (32, 32)) -> Official:
    """Read a checkpoint of the release.

    size: height and width of the images, which the parameters do not say.
    Raises InputError when the file is no such checkpoint, and when msgpack is not installed.
    """
    tree = read_tree(path)
    params, average = tree.get("params"), tree.get("ema_params")
    if not isinstance(params, dict) or not isinstance(average, dict):
        raise InputError(
            f"'{path}' holds {', '.join(map(str, tree)) or 'nothing'}: a checkpoint of the "
            "official release has step, params, ema_params and opt_state"
        )
    try:
        return Official(
            _step(tree.get("step")),
            _model(arrays_of(params), size),
            _model(arrays_of(average), size),
        )
    except InputError as error:
        raise InputError(f"'{path}': {error}") from error


def _step(value: Any) -> int:
    """Return the number of steps, which is stored as a number or as an array of one."""
    if isinstance(value, int):
        return value
    array = array_of("step", value)
    if array.size != 1:
        raise InputError(f"step has the shape {array.shape}: it is one number")
    return int(array.item())


def _model(arrays: Arrays, size: tuple[int, int]) -> VDM:
    """Return the model in which every parameter has its place, and every place a parameter."""
    network = _below("score_model/", arrays)
    gamma = _below("gamma/", arrays)
    shape = (*_axes(network, "conv_out/bias", 1), *size)
    options = _options(network)
    schedule, form = _schedule(gamma)
    with torch.device("meta"):  # shapes only: the file does not decide how much memory is taken
        places = PaperUNet(shape, **options).state_dict()
    parameters = _placed(network, places)
    unknown = (
        arrays.keys()
        - {f"score_model/{name}" for name in network}
        - {f"gamma/{name}" for name in gamma}
    )
    if unknown:
        raise InputError(f"it has the unknown parameters {', '.join(sorted(unknown)[:5])}")
    vdm = build(
        ModelConfig(
            shape=shape,
            decoder=Component(name="discretized", options={"levels": 256}),
            schedule=schedule,
            network=Component(name="paper-unet", options=options),
            prediction="noise",
        )
    )
    vdm.network.load_state_dict(parameters)
    if form is not None:
        assert isinstance(vdm.schedule, Monotone)
        vdm.schedule.set_shape(*form)
    return vdm.eval().requires_grad_(False)


def _options(network: Arrays) -> dict[str, Any]:
    """Return the options of `PaperUNet`, as the shapes of the parameters tell them."""
    _, _, inputs, width = _axes(network, "conv_in/kernel", 4)
    (channels,) = _axes(network, "conv_out/bias", 1)
    if inputs != 5 * channels or not channels:
        raise InputError(
            f"its network has {inputs} inputs for {channels} channels: only those with Fourier "
            "features (n = 6, 7) can be loaded, which have five a channel"
        )
    if width % 32 or not width:
        raise InputError(f"its network has {width} channels, which 32 groups do not divide")
    gamma_min, gamma_max = _GAMMAS
    return {
        "gamma_min": gamma_min,
        "gamma_max": gamma_max,
        "width": width,
        "blocks": len({name.split("/")[0] for name in network if name.startswith("down.block_")}),
        "groups": 32,
    }


_BLOCK = {
    "norm_1": "GroupNorm_0",
    "conv_1": "conv1",
    "embed": "cond_proj",
    "norm_2": "GroupNorm_1",
    "conv_2": "conv2",
    "shortcut": "nin_shortcut",
}
_LAYERS = {
    "embedding.dense_0": "dense0",
    "embedding.dense_1": "dense1",
    "conv_in": "conv_in",
    "middle_attention.norm": "mid.attn_1/GroupNorm_0",
    "middle_attention.query_key_value": "mid.attn_1/{q,k,v}",
    "middle_attention.project": "mid.attn_1/proj_out",
    "norm_out": "GroupNorm_0",
    "conv_out": "conv_out",
}
_BLOCKS = {"down.": "down.block_", "up.": "up.block_", "middle_": "mid.block_"}
"""Names of this package → those of the release, for layers, and for what begins a block's name."""


def _release_name(layer: str) -> str:
    if layer in _LAYERS:
        return _LAYERS[layer]
    block, part = layer.rsplit(".", 1)
    start = next(start for start in _BLOCKS if block.startswith(start))
    return f"{_BLOCKS[start]}{block.removeprefix(start)}/{_BLOCK[part]}"


def _placed(network: Arrays, places: Mapping[str, Tensor]) -> Arrays:
    """Return the state of `PaperUNet`: kernels have their input axis before their output axis."""
    left = dict(network)
    state: Arrays = {}
    for place, like in places.items():
        layer, leaf = place.rsplit(".", 1)
        kind = "bias" if leaf == "bias" else "kernel" if like.ndim > 1 else "scale"
        name = f"{_release_name(layer)}/{kind}"
        names = [name.replace("{q,k,v}", part) for part in "qkv"] if "{" in name else [name]
        missing = [each for each in names if each not in left]
        if missing:
            raise InputError(f"score_model/{missing[0]} is missing")
        parts = [_outputs_first(left.pop(each)) for each in names]
        expected = (like.shape[0] // len(parts), *like.shape[1:])
        for part in parts:  # a dense layer's kernel fits a convolution of one pixel
            if part.numel() != math.prod(expected) or part.shape != expected[: part.ndim]:
                raise InputError(
                    f"score_model/{name} has the shape {tuple(part.shape)}, outputs first, where "
                    f"the network has {expected}"
                )
        state[place] = torch.cat(parts).reshape(like.shape)
    if left:
        raise InputError(
            f"score_model/{min(left)} has no place in the network of the paper: networks with "
            "attention after every block, and others, cannot be loaded"
        )
    return state


def _outputs_first(kernel: Tensor) -> Tensor:
    """Return (out, in, height, width) of (height, width, in, out), and (out, in) of (in, out)."""
    if kernel.ndim == 4:
        return kernel.permute(3, 2, 0, 1)
    return kernel.T if kernel.ndim == 2 else kernel


def _schedule(gamma: Arrays) -> tuple[Component, tuple[Tensor, ...] | None]:
    """Return the schedule's configuration; of a monotone one, its arguments of `set_shape` too."""
    if not gamma:
        return _component("fixed-linear", *_GAMMAS), None
    shapes = {name: tuple(value.shape) for name, value in gamma.items()}
    if shapes == {"w": (1,), "b": (1,)}:
        b, w = gamma["b"].item(), gamma["w"].item()
        return _component("learned-linear", b, b + abs(w)), None
    n = shapes.get("l2/bias", (0,))[0]
    layers = {"l1/kernel": (1, 1), "l1/bias": (1,), "l2/kernel": (1, n), "l2/bias": (n,)}
    if n < 2 or shapes != {**layers, "l3/kernel": (n, 1)}:
        raise InputError(f"gamma has parameters that are not of the release: {shapes}")
    k_1, b_1, k_2, b_2, k_3 = (gamma[name].double().flatten() for name in (*layers, "l3/kernel"))
    slope, steepness, offset = k_1.abs().squeeze(), 2 * k_2.abs(), b_2 - k_2.abs()
    weight = 2 * k_3.abs() / n
    start, end = (
        float(b_1 + slope * t + (weight * (torch.sigmoid(steepness * t + offset) - 0.5)).sum())
        for t in (0, 1)
    )
    return _component("monotone", start, end, hidden=n), (slope, steepness, offset, weight)


def _component(name: str, gamma_min: float, gamma_max: float, **options: Any) -> Component:
    return Component(name=name, options={"gamma_min": gamma_min, "gamma_max": gamma_max, **options})


def _below(prefix: str, arrays: Arrays) -> Arrays:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def _axes(arrays: Arrays, name: str, count: int) -> tuple[int, ...]:
    if name not in arrays or arrays[name].ndim != count:
        raise InputError(f"score_model/{name} is missing: it is no network of the release")
    return tuple(arrays[name].shape)
