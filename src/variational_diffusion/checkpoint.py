"""A run directory: configuration, weights, the state of training, metrics.

    config.json           what was asked for; see `config`
    model.safetensors     the weights as they are
    ema.safetensors       their average over training: what evaluates and samples best
    state/training.safetensors    weights, average, optimiser and step, in one file
    metrics.jsonl         one JSON object a line
    averages/00001200.safetensors    two averages of step 1200; see `snapshots`
    ema-0.07.safetensors  an average of another width, made of them by `vdm ema`
    errors-ema.safetensors    measured errors of ε̂ for these weights, once a command needed them
    variance-ema.safetensors  a head that predicts these errors, where one was trained
    samples/

Every file is written under a temporary name and then renamed, so it is the old one or the new one
and never a part. Training goes on from `state/training.safetensors` alone: one file, one rename,
one step. Tensor files carry a format version and a SHA-256 digest of their contents, which is
checked whenever one is read. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from variational_diffusion.config import RunConfig
from variational_diffusion.errors import InputError
from variational_diffusion.files import atomic
from variational_diffusion.grids import NoiseErrors
from variational_diffusion.model import VDM, build
from variational_diffusion.networks import VarianceHead
from variational_diffusion.training import TrainingState

FORMAT = "1"
"""Version of the tensor files."""

_WEIGHT_FILES = {"ema": "ema.safetensors", "raw": "model.safetensors"}
_MADE_LATER = re.compile(r"ema-[\w.-]*\w", re.ASCII)


class Run:
    """A run directory that exists. Make one with `Run.start`, open one with `Run.open`."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path = path
        self.config = config

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open the run in a directory; raise `InputError` if there is none."""
        path = Path(path)
        try:
            text = (path / "config.json").read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"run = '{path}': no run is there (no readable config.json); "
                f"train one with: vdm train DATA --run {path}"
            ) from error
        return cls(path, RunConfig.from_json(text))

    @classmethod
    def start(cls, path: str | Path, config: RunConfig) -> Run:
        """Make a run directory, or open the one that is there if its configuration is the same.

        A run of another configuration is never touched: `InputError` says which settings differ.
        """
        path = Path(path)
        if (path / "config.json").exists():
            run = cls.open(path)
            differences = run.config.differences(config)
            if differences:
                raise InputError(
                    f"run = '{path}' holds a run of another configuration "
                    f"({'; '.join(differences)}): give the same settings, or another --run"
                )
            return run
        try:
            (path / "state").mkdir(parents=True, exist_ok=True)
            (path / "samples").mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(
                f"run = '{path}': cannot be written ({error.strerror}); give another --run"
            ) from error
        with atomic(path / "config.json") as temporary:
            temporary.write_text(config.to_json(), encoding="utf-8")
        return cls(path, config)

    def save(self, state: TrainingState) -> None:
        """Write the state of training and both sets of weights."""
        weights = state.vdm.state_dict()
        average = state.average.module.state_dict()
        optimizers = {
            f"optimizer.{kind}.{index}.{name}": value
            for kind, optimizer in state.optimizers.items()
            for index, values in optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        progress = {"step": str(state.step), "seconds": repr(state.seconds)}
        everything = _prefixed("model", weights) | _prefixed("ema", average) | optimizers
        if state.power_averages is not None:
            everything |= _prefixed("power", state.power_averages.state_dict())
        write_tensors(self.path / "state" / "training.safetensors", everything, progress)
        write_tensors(self.path / _WEIGHT_FILES["raw"], weights, progress)
        write_tensors(self.path / _WEIGHT_FILES["ema"], average, progress)

    def resume(self, device: torch.device | str = "cpu") -> TrainingState | None:
        """Return the state of training as it was last saved, None if nothing was saved yet."""
        path = self.path / "state" / "training.safetensors"
        if not path.exists():
            return None
        tensors, metadata = read_tensors(path)
        state = TrainingState.start(build(self.config.model).to(device), self.config.training)
        _load(state.vdm, _without_prefix("model", tensors), path)
        _load(state.average.module, _without_prefix("ema", tensors), path)
        for kind, optimizer in state.optimizers.items():
            values: dict[int, dict[str, Tensor]] = {}
            for key, value in _without_prefix(f"optimizer.{kind}", tensors).items():
                index, name = key.split(".")
                values.setdefault(int(index), {})[name] = value
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": values, "param_groups": groups})
        state.step, state.seconds = int(metadata["step"]), float(metadata["seconds"])
        state.average.updates = state.step
        power_averages = _without_prefix("power", tensors)
        if not power_averages:
            state.power_averages = None
        if state.power_averages is not None:
            state.power_averages.load_state_dict(power_averages, updates=state.step)
        return state

    def load(self, weights: str = "ema") -> VDM:
        """Return the trained model, in evaluation mode.

        weights: "ema", "raw", or the name that `save_weights` was given.
        """
        path = self.weights_path(weights)
        if weights not in _WEIGHT_FILES and not path.exists():
            others = sorted(file.stem for file in self.path.glob("ema-*.safetensors"))
            raise InputError(
                f"weights = '{weights}': '{self.path}' has {', '.join(['ema', 'raw', *others])}; "
                f"make others with: vdm ema {self.path} --width 0.07"
            )
        if not path.exists():
            raise InputError(
                f"run = '{self.path}': no weights are saved yet ({path.name} is missing); "
                f"train it first: vdm train {self.config.data.source} --run {self.path}"
            )
        vdm = build(self.config.model)
        _load(vdm, read_tensors(path)[0], path)
        return vdm.eval().requires_grad_(False)

    def save_weights(self, name: str, vdm: VDM, metadata: Mapping[str, str]) -> Path:
        """Write weights under a name that begins with "ema-", for `load`; return the file."""
        path = self.weights_path(name)
        if name in _WEIGHT_FILES:
            raise InputError(f"out = '{name}' is what training writes; give a name as ema-{name}")
        write_tensors(path, vdm.state_dict(), metadata)
        return path

    def weights_path(self, weights: str) -> Path:
        """Return the file of weights, there or not; raise `InputError` for no name of any."""
        if weights not in _WEIGHT_FILES and not _MADE_LATER.fullmatch(weights):
            raise InputError(
                f"weights = '{weights}': 'ema' and 'raw' are, and names that begin with 'ema-', "
                "of letters, digits, points and hyphens"
            )
        return self.path / _WEIGHT_FILES.get(weights, f"{weights}.safetensors")

    def save_errors(self, errors: NoiseErrors, weights: str = "ema") -> None:
        """Write the measured errors of these weights, so that they need not be measured again."""
        write_tensors(
            self.path / f"errors-{weights}.safetensors",
            {"gamma": errors.gamma, "error": errors.error},
            {"weights": self._weights_digest(weights)},
        )

    def errors(self, weights: str = "ema") -> NoiseErrors | None:
        """Return the errors that `save_errors` wrote; None if the weights have changed since."""
        found = self._of_weights("errors", weights)
        return None if found is None else NoiseErrors(found[0]["gamma"], found[0]["error"])

    def save_head(self, head: VarianceHead, weights: str = "ema") -> None:
        """Write the head that predicts the errors of these weights; replaces an earlier one."""
        write_tensors(
            self.path / f"variance-{weights}.safetensors",
            head.state_dict(),
            {"weights": self._weights_digest(weights), "options": json.dumps(head.options)},
        )

    def head(self, weights: str = "ema") -> VarianceHead | None:
        """Return what `save_head` wrote; None if the weights have changed since."""
        found = self._of_weights("variance", weights)
        if found is None:
            return None
        tensors, metadata = found
        head = VarianceHead(self.config.model.shape, **json.loads(metadata["options"]))
        _load(head, tensors, self.path / f"variance-{weights}.safetensors")
        return head.eval().requires_grad_(False)

    def _of_weights(
        self, name: str, weights: str
    ) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Return what was measured of these weights and written; None if they are others now."""
        path = self.path / f"{name}-{weights}.safetensors"
        if not path.exists():
            return None
        tensors, metadata = read_tensors(path)
        return (
            (tensors, metadata)
            if metadata.get("weights") == self._weights_digest(weights)
            else None
        )

    def _weights_digest(self, weights: str) -> str:
        return read_tensors(self.weights_path(weights))[1]["digest"]

    def log(self, **values: Any) -> None:
        """Append one line to `metrics.jsonl`."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of `metrics.jsonl`; a last line cut short by a crash is left out."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1]]

    def forget_metrics_after(self, step: int) -> None:
        """Drop the lines of steps that were not saved and will be done again."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        with atomic(self.path / "metrics.jsonl", overwrite=True) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and a few strings to a safetensors file, with version and digest."""
    contents = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {**metadata, "format": FORMAT, "digest": _digest(contents)}
    with atomic(path, overwrite=True) as temporary:
        save_file(contents, temporary, metadata=header)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return what `write_tensors` wrote; raise `InputError` if the file is damaged or too new."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # a file of tensors is no mapping: it has keys() and cannot be iterated over
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"'{path}' is damaged or cut short ({error}): restore it from a copy, "
            "or train again in another --run"
        ) from error
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"'{path}' has format {metadata.get('format')}, this version reads {FORMAT}: "
            "update variational-diffusion"
        )
    if metadata.get("digest") != _digest(tensors):
        raise InputError(
            f"'{path}' is damaged (its contents do not match their digest): restore it from a "
            "copy, or train again in another --run"
        )
    return tensors, metadata


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _load(module: torch.nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(
            f"'{path}' does not fit the model of config.json beside it: "
            "the two belong to different runs, restore the pair"
        ) from error


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix += "."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
