"""Trackers, which draw the figures of a run while it goes on: TensorBoard, wandb, trackio, ….

`metrics.jsonl` is what counts; a tracker is told the same lines. The trackers are accelerate's, by
its names for them. TensorBoard and others that write files write them into `tracking/` of the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from variational_diffusion.errors import InputError, one_of

PROJECT = "variational-diffusion"
"""Under which services that collect the runs of many directories file them."""


class Tracking:
    """Some trackers of one run, none of them to begin with; they end with the `with` block.

    Only the process that leads may name any. Raises InputError for a name that accelerate does not
    know, and for a tracker whose package is not installed.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        for name in names:
            _check(name)
        self.names = tuple(dict.fromkeys(names))
        self._trackers: list[Any] = []

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, *_: object) -> None:
        for tracker in self._trackers:
            tracker.finish()

    def start(self, run: Path, config: Mapping[str, Any], step: int) -> None:
        """Begin with a run directory, its configuration, and the step that it goes on from."""
        if not self.names:
            return
        from accelerate import PartialState  # noqa: PLC0415 (a second)

        PartialState()  # accelerate's trackers log through it
        for name in self.names:
            tracker = _made(name, run, step)
            tracker.start()
            if not tracker.requires_logging_directory:  # config.json lies beside the files
                tracker.store_init_configuration(_flat(config))
            self._trackers.append(tracker)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Tell the figures of a step; nested ones are called as in "validation/bits_per_dim"."""
        numbers = {name: value for name, value in _flat(values).items() if _is_number(value)}
        numbers.pop("step", None)
        for tracker in self._trackers:
            tracker.log(numbers, step=step)

    def image(self, step: int, name: str, picture: Image.Image) -> None:
        """Show a picture, where the tracker takes any."""
        if not self._trackers:
            return
        accelerates = _accelerates()
        pixels = np.asarray(picture.convert("RGB"))[None]
        for tracker in self._trackers:
            if isinstance(tracker, accelerates.TensorBoardTracker):
                tracker.log_images({name: pixels}, step=step, dataformats="NHWC")
            elif isinstance(tracker, accelerates.WandBTracker):
                tracker.log_images({name: list(pixels)}, step=step)
            elif isinstance(tracker, accelerates.AimTracker):
                tracker.log_images({name: picture}, step=step)


def _accelerates() -> ModuleType:
    from accelerate import tracking  # noqa: PLC0415 (a second)

    return tracking


def _check(name: str) -> None:
    accelerates = _accelerates()
    one_of("track", name, sorted(accelerates.LOGGER_TYPE_TO_CLASS))
    if name not in map(str, accelerates.get_available_trackers()):
        package = f"'{PROJECT}[tracking]'" if name == "tensorboard" else name.replace("_", "-")
        raise InputError(f"track = '{name}': not installed; type: pip install {package}")


def _made(name: str, run: Path, step: int) -> Any:
    accelerates = _accelerates()
    if name == "tensorboard":  # what was drawn of steps that will be done again is to go
        return accelerates.TensorBoardTracker("tracking", run, purge_step=step + 1)
    kind = accelerates.LOGGER_TYPE_TO_CLASS[name]
    if kind.requires_logging_directory:
        return kind(PROJECT, str(run / "tracking"))
    named = {"name": run.name} if name in ("wandb", "trackio") else {}
    return kind(PROJECT, **named)


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dicts and lists, by their path."""
    if not isinstance(values, dict | list):
        return {prefix: values}
    pairs = values.items() if isinstance(values, dict) else enumerate(values)
    leaves: dict[str, Any] = {}
    for name, value in pairs:
        leaves |= _flat(value, f"{prefix}/{name}" if prefix else str(name))
    return leaves


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
