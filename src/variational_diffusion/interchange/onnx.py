"""The denoiser as an ONNX graph, for programs without torch.

    inputs   z (batch, *shape), gamma (batch,), and conditioning (batch, …) where there is one
    outputs  noise, x: the estimates of `VDM.denoise`, each of the shape of z

All are float32 and the batch may have any size. The file's metadata say the rest of what sampling
takes: gamma_0 and gamma_1, the model's shape, and its decoder and its condition as JSON. The
conditioning is what the condition's `encode` returns, one-hot rows for labels; zeros are none.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from variational_diffusion.errors import InputError, needs
from variational_diffusion.model import VDM
from variational_diffusion.modes import in_evaluation_mode
from variational_diffusion.storage.files import atomic

_BATCHES = 1, 5
_TOLERANCE = 1e-2


class Denoiser(nn.Module):
    """`VDM.denoise` as a module of its own."""

    def __init__(self, vdm: VDM) -> None:
        super().__init__()
        self.vdm = vdm

    def forward(
        self, z: Tensor, gamma: Tensor, conditioning: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the estimates of the noise and of the encoded data."""
        noise, x = self.vdm.denoise(z, gamma, conditioning)
        return noise, x


@in_evaluation_mode
def export_denoiser(vdm: VDM, path: Path, *, conditioning: Sequence[int] | None = None) -> float:
    """Write the denoiser of a float32 model on the CPU; return how far it is from torch's.

    path: a new file, NAME.onnx. conditioning: the shape of one, for a network that takes it without
        a condition of the model's, whose shape is known.

    The file is run by onnxruntime before it gets its name, on batches of other sizes than the one
    it was made from, with γ over the whole range. What is returned is the largest difference of an
    entry of ε̂, whose scale is one.

    Raises InputError where the packages for it are not installed, and when `path` exists.
    """
    session_of = _onnxruntime()
    if path.suffix != ".onnx":
        raise InputError(f"onnx = '{path}': give the name of a new .onnx file")
    if vdm.condition is not None:
        conditioning = vdm.condition.shape
    denoiser = Denoiser(vdm)
    generator = torch.Generator().manual_seed(0)
    inputs = _inputs(vdm, 2, conditioning, generator)
    batch = torch.export.Dim("batch")
    with atomic(path) as temporary:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                denoiser,
                tuple(inputs.values()),
                dynamo=True,
                verbose=False,
                input_names=list(inputs),
                output_names=["noise", "x"],
                dynamic_shapes={name: {0: batch} for name in inputs},
            )
        assert program is not None
        program.model.metadata_props.update(_metadata(vdm))
        program.save(temporary)
        session = session_of(temporary)
        difference = 0.0
        for size in _BATCHES:
            inputs = _inputs(vdm, size, conditioning, generator)
            theirs = session.run(["noise"], {name: x.numpy() for name, x in inputs.items()})[0]
            with torch.no_grad():
                ours, _ = denoiser(**inputs)
            difference = max(difference, float((ours - torch.from_numpy(theirs)).abs().max()))
        if not difference < _TOLERANCE:
            raise RuntimeError(f"onnxruntime differs from torch by {difference:.2g}")
    return difference


def _inputs(
    vdm: VDM, batch: int, conditioning: Sequence[int] | None, generator: torch.Generator
) -> dict[str, Tensor]:
    gamma_0, gamma_1 = vdm.schedule.end_points.detach()
    inputs = {
        "z": torch.randn(batch, *vdm.shape, generator=generator),
        "gamma": torch.lerp(gamma_0, gamma_1, torch.linspace(0, 1, batch)),
    }
    if conditioning is not None:
        inputs["conditioning"] = torch.randn(batch, *conditioning, generator=generator)
    return inputs


def _metadata(vdm: VDM) -> dict[str, str]:
    gamma_0, gamma_1 = vdm.schedule.end_points.tolist()
    config = vdm.config
    decoder, condition = (
        None if part is None else part.model_dump(mode="json")
        for part in ((None, None) if config is None else (config.decoder, config.condition))
    )
    return {
        "gamma_0": repr(gamma_0),
        "gamma_1": repr(gamma_1),
        "shape": json.dumps(vdm.shape),
        "decoder": json.dumps(decoder),
        "condition": json.dumps(condition),
    }


def _onnxruntime() -> Any:
    """Return a function that opens a file; name what is not installed."""
    with needs("onnx"):
        import onnx  # noqa: F401, PLC0415 (an extra; asked only whether it is there)
        import onnxruntime  # noqa: PLC0415 (as above)
        import onnxscript  # noqa: F401, PLC0415 (as above)
    return lambda path: onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what torch's exporter says of its own insides and of packages it does not need."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
