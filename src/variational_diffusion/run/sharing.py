"""The model of a run for others: a folder, the hub, ONNX; and the official one as a run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from variational_diffusion.config import DataConfig, RunConfig, TrainingConfig
from variational_diffusion.errors import InputError
from variational_diffusion.escaping import typed
from variational_diffusion.interchange.official import read_official
from variational_diffusion.machine.execution import Execution
from variational_diffusion.model import build
from variational_diffusion.run import evaluations
from variational_diffusion.run.directory import Run
from variational_diffusion.storage.files import check_target, expanded
from variational_diffusion.training import TrainingState

LOG = logging.getLogger(__name__)

_OFFICIAL = {
    "batch_size": 128,
    "optimizer": "adamw",
    "learning_rate": 2e-4,
    "weight_decay": 0.01,
    "decay_from": 1.0,
    "ema_decay": 0.9999,
    "posthoc_ema": False,
}
"""How the official release was trained."""


def export_pretrained(run: Run, folder: str | Path, *, weights: str = "ema") -> Path:
    """Write the model of a run as a folder for `VDM.from_pretrained`, with a model card.

    The card has what `vdm evaluate` measured of these weights.

    Args:
        run: The run.
        folder: New or empty.
        weights: "ema", "raw", or another name.

    Returns:
        The folder.

    Raises:
        InputError: For a folder with files in it.
    """
    folder = check_target(folder, "hub", folder=True)
    entries = _card_entries(run, weights)
    run.load(weights).save_pretrained(str(folder), model_card_kwargs=entries)
    if not entries["evaluations"]:
        LOG.info(
            "the card says that nothing was measured: vdm evaluate %s, then export again",
            typed(run.path),
        )
    return folder


def export_onnx(
    run: Run, file: str | Path, *, weights: str = "ema", threads: int | None = None
) -> float:
    """Write the denoiser of a run as an ONNX file, compared with torch through onnxruntime.

    Args:
        run: The run.
        file: New; its name ends in .onnx.
        weights: "ema", "raw", or another name.
        threads: CPU threads.

    Returns:
        The largest difference of an entry of ε̂ to torch's.

    Raises:
        InputError: For a file that exists, and where the packages for it are missing.
    """
    from variational_diffusion.interchange.onnx import export_denoiser  # noqa: PLC0415 (an extra)

    file = check_target(file, "onnx", (".onnx",))
    with Execution("cpu", threads).begun():
        return export_denoiser(run.load(weights), file)


def push(run: Run, repository: str, *, weights: str = "ema", private: bool = False) -> str:
    """Upload the model of a run to the Hugging Face hub: what `export_pretrained` writes.

    Args:
        run: The run.
        repository: OWNER/NAME.
        weights: "ema", "raw", or another name.
        private: Whether a new repository is private.

    Returns:
        The address of the commit.

    Raises:
        InputError: Where the hub does not take it, with its reason.
    """
    from huggingface_hub.errors import (  # noqa: PLC0415 (half a second)
        HFValidationError,
        HTTPError,
        LocalTokenNotFoundError,
    )

    try:
        return run.load(weights).push_to_hub(
            repository,
            private=private or None,
            commit_message="Upload a variational diffusion model",
            model_card_kwargs=_card_entries(run, weights),
        )
    except (HTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"repository = '{repository}': the hub does not take it ({reason}): give OWNER/NAME of "
            "a repository of yours, and log in with: hf auth login"
        ) from error


def import_official(
    file: str | Path,
    run: str | Path,
    *,
    data: str = "hf:uoft-cs/cifar10",
    size: tuple[int, int] = (32, 32),
) -> Run:
    """Make a run of a checkpoint of the official VDM release (flax, checkpoints-N.flax).

    The network is that of the preset "paper", with the same numbers to the precision of float32.

    Args:
        file: The checkpoint.
        run: A new directory.
        data: What it was trained on, for `evaluate`.
        size: Height and width of the images.

    Returns:
        The run.

    Raises:
        InputError: For a file that is no such checkpoint, and for a directory with files in it.
    """
    folder = check_target(run, "run", folder=True)
    found = read_official(expanded(file), size)
    model = found.average.config
    assert model is not None
    config = RunConfig(
        data=DataConfig(source=data, levels=256),
        model=model,
        training=TrainingConfig(steps=max(1, found.step), **_OFFICIAL),
    )
    state = TrainingState.start(build(model), config.training)
    state.vdm.load_state_dict(found.raw.state_dict())
    state.average.module.load_state_dict(found.average.state_dict())
    state.step = state.average.updates = found.step
    made = Run.start(folder, config)
    made.save(state)
    return made


def _card_entries(run: Run, weights: str) -> dict[str, Any]:
    """Return what the model card says of a run, as arguments of `hub.card`."""
    training = run.config.training
    budget = f"{training.steps:,} steps" if training.steps else f"{training.minutes:g} minutes"
    return {
        "evaluations": evaluations.of_weights(run, weights),
        "facts": {
            "trained": f"{budget} in batches of {training.batch_size}, weights: {weights}",
        },
    }
