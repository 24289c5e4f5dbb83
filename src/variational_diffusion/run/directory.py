"""A run directory: configuration, weights, the state of training, metrics.

    config.json           what was asked for; see `config`
    model.safetensors     the weights as they are
    ema.safetensors       their average over training: what evaluates and samples best
    best.safetensors      the average when the validation was best
    state/00001200.safetensors    all of training after step 1200, in one file
    metrics.jsonl         one JSON object a line, each with a checksum
    evaluations.jsonl     what vdm evaluate measured of which weights; see `evaluations`
    averages/00001200.safetensors    two averages of step 1200; see `averages`
    ema-0.07.safetensors  an average of another width, made of them by `vdm ema`
    errors-ema.safetensors    measured errors of ε̂ for these weights, once a command needed them
    predictions-ema.safetensors  the same, sorted by what the head predicts
    variance-ema.safetensors  a head that predicts these errors, where one was trained
    kept/DIGEST.safetensors  what a compressed file needs of the model; see `compression`
    report/, report.html  what `vdm report` measured, and its page
    samples/
    training.lock         who trains here now; see `upkeep`

Every file is written under a temporary name and then renamed, so it is the old one or the new one
and never a part. Training goes on from a state alone: one file, one rename, one step. The last few
states are kept, and where the newest is damaged, the one before is taken. The state of a sharded
run is one file for each process, state/00001200-1-of-4.safetensors, of its rows of every sharded
tensor, and counts when all of them are there, of one save; any number of processes can go on with
it. Where no state is left, training goes on from the weights.

Every file knows when it is damaged: tensors and configuration have a digest, lines of metrics a
checksum. Every file of tensors knows its run, by the identity of the configuration, and what it is,
so that one that was copied from elsewhere is not taken for the run's own. Nothing is pickled.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from variational_diffusion.config import DataConfig, Fingerprint, RunConfig, TrainingConfig
from variational_diffusion.data import Dataset
from variational_diffusion.errors import DamagedFileError, InputError
from variational_diffusion.escaping import parsed_json, typed
from variational_diffusion.grids import NoiseErrors
from variational_diffusion.machine.distributed import (
    Place,
    gathered,
    here,
    is_share,
    local,
)
from variational_diffusion.machine.execution import Execution
from variational_diffusion.machine.progress import Listener
from variational_diffusion.model import VDM, build, check_claim
from variational_diffusion.networks import VarianceHead
from variational_diffusion.networks.own import Factory, imported
from variational_diffusion.run.states import (
    joined,
    load_into,
    progress_of,
    restore,
    take_progress,
    tensors_of,
)
from variational_diffusion.sampling import DEFAULT_STEPS
from variational_diffusion.storage import json_lines
from variational_diffusion.storage.files import atomic, expanded
from variational_diffusion.storage.tensors import read_shapes, read_tensors, write_tensors
from variational_diffusion.training import TrainingState

LOG = logging.getLogger(__name__)

_WEIGHT_FILES = {
    "ema": "ema.safetensors",
    "raw": "model.safetensors",
    "best": "best.safetensors",
}
_STATE = re.compile(r"(\d{8,})(?:-(\d+)-of-(\d+))?\.safetensors", re.ASCII)
_MADE_LATER = re.compile(r"ema-[\w.-]*\w", re.ASCII)


class Run:
    """A run directory that exists. Make one with `train`, open one with `Run.open`.

    Attributes:
        path: Of the directory.
        config: What the run is, as `config.json` says.
        network: What makes the network, of a run with one of one's own: its code is not in the
            directory.
        data: What the run was trained on, where it is in memory; otherwise `config.data` says how
            it is read.
        remarked: Whether it was said that the data have changed.

    Examples:
        >>> run = vd.Run.open("runs/digits")
        >>> run.config.model.shape, max(run.states())
        ((1, 8, 8), 60)
    """

    def __init__(
        self,
        path: Path,
        config: RunConfig,
        *,
        network: Factory | None = None,
        data: Dataset | None = None,
    ) -> None:
        self.path = path
        self.config = config
        self.network = network
        self.data = data
        self.remarked = False

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        network: str | Factory | None = None,
        data: str | Path | None = None,
    ) -> Run:
        """Open the run in a directory.

        Args:
            path: Of the directory.
            network: The class or function that makes the network, or its import path, of a run with
                a network of one's own. Nothing is imported that is not named here.
            data: Where the data that it was trained on are now, if they were moved; kept in the
                run.

        Returns:
            The run; nothing but its configuration is read.

        Raises:
            InputError: If there is no run, its configuration is damaged, or `data` are not the data
                of the run.

        Examples:
            >>> vd.Run.open("runs/digits")  # doctest: +ELLIPSIS
            Run('runs/digits': ... of 1×8×8, data digits)
        """
        path = expanded(path)
        own = imported(network) if isinstance(network, str) else network
        try:
            text = (path / "config.json").read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise InputError(
                f"run = '{path}': no run is there (no readable config.json); "
                f"train one with: vdm train DATA --run {typed(path)}"
            ) from error
        try:
            run = cls(path, RunConfig.from_json(text), network=own)
        except InputError as error:
            raise InputError(f"run = '{path}': {error}") from error
        if data is not None:
            from variational_diffusion.run.own_data import move_data  # noqa: PLC0415 (it opens runs)

            move_data(run, str(data))
        return run

    @classmethod
    def start(
        cls,
        path: str | Path,
        config: RunConfig,
        *,
        network: Factory | None = None,
        data: Dataset | None = None,
        changed_data: bool = False,
    ) -> Run:
        """Make a run directory, or open the one that is there if its configuration is the same.

        Args:
            path: Of the directory.
            config: What the run is. The budget may differ, and stays as it is there.
            network: As at `open`.
            data: What the run is trained on.
            changed_data: Whether a run goes on although its data have changed.

        Returns:
            The run.

        Raises:
            InputError: For a directory with a run of another configuration, which is never touched
                once a step of it was saved; the message says which settings differ. And where the
                data have changed.
        """
        path = expanded(path)
        try:
            (path / "state").mkdir(parents=True, exist_ok=True)
            (path / "samples").mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(
                f"run = '{path}': cannot be written ({error.strerror}); give another --run"
            ) from error
        if (path / "config.json").exists():
            run = cls.open(path, network=network)
            run.data = data
            differences = run.config.differences(config)
            change = run.config.change(config.fingerprint)
            begun = run.has_weights()
            if (
                begun
                and change
                and not changed_data
                and run.config.data.source == config.data.source
            ):
                raise InputError(
                    f"run = '{path}': its data '{config.data.source}' have changed since it was "
                    f"trained ({change}): bring them back as they were, or go on with them as they "
                    "are now with --changed-data, or train another --run"
                )
            if begun and differences:
                raise InputError(
                    f"run = '{path}' holds a run of another configuration "
                    f"({'; '.join(differences)}): give the same settings, or another --run"
                )
            if begun or not (differences or change):
                run.set_data(config.data, config.fingerprint)
                return run
        run = cls(path, config.begun(), network=network, data=data)
        run._write_config()
        return run

    def has_weights(self) -> bool:
        """Return whether anything of a step was saved, whole or damaged."""
        found = [*self.path.glob("*.safetensors"), *(self.path / "state").glob("*.safetensors")]
        return any(not path.name.startswith(".") for path in found)

    def set_budget(self, training: TrainingConfig) -> None:
        """Let the run go on with the budget of `training`; the leading process writes it down."""
        config = self.config.with_budget(training.steps, training.minutes)
        if config != self.config:
            self.config = config
            if here().leads:
                self._write_config()

    def set_data(self, data: DataConfig, fingerprint: Fingerprint | None) -> None:
        """Take note of where the data are now, and what; the leading process writes it down.

        Args:
            data: With the place where they are now.
            fingerprint: Of the data; None: as it was.
        """
        where = self.config.data.model_copy(update={"source": data.source})
        known = fingerprint or self.config.fingerprint
        config = self.config.model_copy(update={"data": where, "fingerprint": known})
        if config != self.config:
            self.config = config
            if here().leads:
                self._write_config()

    def _write_config(self) -> None:
        with atomic(self.path / "config.json", overwrite=True) as temporary:
            temporary.write_text(self.config.to_json(), encoding="utf-8")

    def build(self, *, seed: int = 0) -> VDM:
        """Return the model of the run with initial weights; `load` returns the trained one."""
        return build(self.config.model, seed=seed, network=self.network)

    def save(
        self,
        state: TrainingState,
        *,
        position: Mapping[str, Any] | None = None,
        keep: int = 2,
        place: Place | None = None,
        token: str = "",
    ) -> None:
        """Write the state of training and both sets of weights; drop old states.

        Args:
            state: Of training.
            position: In a stream of data, from `Batches.position`.
            keep: Number of states that stay, beside the one before the learning rate falls.
            place: Of this process in a run whose state is sharded, where every process calls this
                and writes what it holds; the weights are then left to `write_weights`.
            token: Of this save, the same in all processes and another at each save: parts of two
                saves do not make a state.
        """
        tensors = tensors_of(state)
        header = {**progress_of(state), "position": json.dumps(position or {}), "save": token}
        if place is None:
            self.write(self._state_path(state.step), "state", tensors, header)
            self.write_weights(state)
        else:
            own = {
                name: local(value)
                for name, value in tensors.items()
                if is_share(value) or place.leads
            }
            self.write(self._state_path(state.step, place), "state", own, header)
        if place is None or place.leads:
            self._forget_states({*self.states()[keep:]} - {state.before_tail})

    def forget_states_after(self, step: int) -> None:
        """Remove the states of later steps, which will be done again."""
        self._forget_states({later for later in self.states() if later > step})

    def _forget_states(self, steps: Iterable[int]) -> None:
        for step in steps:
            for path in (self.path / "state").glob(f"{step:08}*.safetensors"):
                match = _STATE.fullmatch(path.name)
                if match and int(match[1]) == step:
                    path.unlink(missing_ok=True)

    def write_weights(self, state: TrainingState) -> None:
        """Write the weights and their average, each as one file.

        Where they are sharded, every process calls this and the leading one writes.
        """
        for weights, module in (("raw", state.vdm), ("ema", state.average.module)):
            self._write_whole(weights, module, progress_of(state))

    def repair_weights(self, state: TrainingState) -> None:
        """Write the weights if a kill, or damage, left none or those of an earlier step.

        Args:
            state: The newest.
        """
        for weights in ("raw", "ema"):
            try:
                step = int(self.read(self.weights_path(weights), weights)[1]["step"])
            except (DamagedFileError, KeyError):
                step = -1
            if step < state.step:
                self.write_weights(state)
                return

    def write(
        self, path: Path, kind: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> None:
        """Write a file of tensors that says that it is of this run, and what it is.

        Args:
            path: The file; one that is there is replaced.
            kind: What it is, as `read` asks for it.
            tensors: By name.
            metadata: More text, by name.
        """
        own = {"run": self.config.identity} if self.config.identity else {}
        write_tensors(path, tensors, {**metadata, "kind": kind, **own})

    def read(self, path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return what `write` wrote.

        Args:
            path: The file.
            kind: What it was written as.

        Returns:
            The tensors, and the metadata.

        Raises:
            DamagedFileError: For a damaged file, for one of another run or of another kind.
        """
        tensors, metadata = read_tensors(path)
        if metadata.get("run", "") != self.config.identity:
            raise DamagedFileError(
                f"'{path}' belongs to another run than config.json beside it: restore the file "
                "from a copy of this run, or remove it"
            )
        if metadata.get("kind", kind) != kind:  # earlier versions did not say
            raise DamagedFileError(
                f"'{path}' holds '{metadata['kind']}' of this run where '{kind}' belongs: restore "
                "the file from a copy, or remove it"
            )
        return tensors, metadata

    def save_best(self, state: TrainingState, bits_per_dim: float) -> bool:
        """Write the average as the best if it is, as `write_weights` does.

        Args:
            state: Of training.
            bits_per_dim: Of its validation.

        Returns:
            Whether it is the best so far. One that is damaged is replaced, and named.
        """
        path = self.path / _WEIGHT_FILES["best"]
        try:
            if path.exists() and float(self.read(path, "best")[1]["bits_per_dim"]) <= bits_per_dim:
                return False
        except DamagedFileError as error:
            LOG.warning("%s; it is replaced", error)
        header = {**progress_of(state), "bits_per_dim": repr(bits_per_dim)}
        self._write_whole("best", state.average.module, header)
        return True

    def _write_whole(self, weights: str, module: VDM, header: Mapping[str, str]) -> None:
        tensors = gathered(module.state_dict())
        if here().leads:
            self.write(self.path / _WEIGHT_FILES[weights], weights, tensors, header)

    def states(self) -> list[int]:
        """Return the steps whose states are there with all their parts, the newest first."""
        whole = (step for step, parts in self._saved_parts().items() if _is_whole(parts))
        return sorted(whole, reverse=True)

    def forget_parts(self) -> None:
        """Remove the parts of states that were never whole, of saves that were killed."""
        whole = self.states()
        self._forget_states(self._saved_parts().keys() - whole)

    def _saved_parts(self) -> dict[int, set[Part]]:
        found: dict[int, set[Part]] = {}
        for path in (self.path / "state").glob("*.safetensors"):
            match = _STATE.fullmatch(path.name)
            if match:
                step, number, count = match.groups(default="1")
                found.setdefault(int(step), set()).add(Part(int(number), int(count)))
        return found

    def resume(
        self,
        device: torch.device | str = "cpu",
        *,
        distribute: Callable[[VDM], object] | None = None,
        step: int | None = None,
    ) -> Resumed | None:
        """Return the newest state of training that is not damaged; None if nothing was saved yet.

        Where there is no state at all, what is left are the weights: they go on with new
        optimizers.

        Args:
            device: To put the model on.
            distribute: Shards the weights of a model over the processes, in place.
            step: None newer than of this one.

        Returns:
            The state, and the position in a stream of data.

        Raises:
            InputError: When all states are damaged.
        """
        damaged: list[str] = []
        for saved in (saved for saved in self.states() if step is None or saved <= step):
            try:
                state, position = self._state(saved, device, distribute)
            except DamagedFileError as error:
                damaged.append(str(error))
            else:
                return Resumed(state, position, damaged)
        if damaged:
            raise InputError(f"run = '{self.path}': every state is damaged: {damaged[0]}")
        return self._from_weights(device, distribute)

    def _from_weights(
        self, device: torch.device | str, distribute: Callable[[VDM], object] | None
    ) -> Resumed | None:
        """Return a state of the weights alone; None where there are none either."""
        paths = {name: self.weights_path(name) for name in ("raw", "ema", "best")}
        found = {name: self.read(path, name) for name, path in paths.items() if path.exists()}
        if not found:
            return None
        name, (weights, metadata) = next(iter(found.items()))
        average, _ = found.get("ema", found[name])
        state = TrainingState.start(
            self.build().to(device), self.config.training, distribute=distribute
        )
        load_into(state.vdm, weights, paths[name])
        load_into(state.average.module, average, paths["ema"])
        take_progress(state, metadata)
        state.power_averages, state.before_tail = None, 0
        lost = (
            f"'{self.path}' has no state of training any more, only weights: without those of its "
            "optimizers, it goes on less smoothly"
        )
        return Resumed(state, {}, [lost])

    def _state(
        self, step: int, device: torch.device | str, distribute: Callable[[VDM], object] | None
    ) -> tuple[TrainingState, dict[str, Any]]:
        path = self._parts(step)[0]
        parts = [self.read(part, "state") for part in self._parts(step)]
        metadata = parts[0][1]
        saves = {(about.get("step"), about.get("save", "")) for _, about in parts}
        if saves != {(str(step), metadata.get("save", ""))}:
            raise DamagedFileError(
                f"'{path}' and its other parts are not of one save of step {step}"
            )
        state = TrainingState.start(
            self.build().to(device), self.config.training, distribute=distribute
        )
        try:
            restore(state, joined([tensors for tensors, _ in parts]), metadata, path)
            position = parsed_json(metadata["position"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DamagedFileError(f"'{path}' holds no state of training of this run") from error
        return state, position

    def _state_path(self, step: int, place: Place | None = None) -> Path:
        part = "" if place is None else f"-{place.rank + 1}-of-{place.processes}"
        return self.path / "state" / f"{step:08}{part}.safetensors"

    def _parts(self, step: int) -> list[Path]:
        """Return the files of a state, in the order of their parts."""
        files = {}
        for path in (self.path / "state").glob(f"{step:08}*.safetensors"):
            match = _STATE.fullmatch(path.name)
            if match:
                files[int(match[3] or 1), int(match[2] or 1)] = path
        count = min((count for count, _ in files), default=0)
        return [path for (of, _), path in sorted(files.items()) if of == count]

    def load(self, weights: str = "ema") -> VDM:
        """Return the trained model, on the CPU and in evaluation mode.

        Args:
            weights: "ema", "raw", or the name that `save_weights` was given.
        """
        path = self.weights_path(weights)
        if weights not in _WEIGHT_FILES and not path.exists():
            others = sorted(file.stem for file in self.path.glob("ema-*.safetensors"))
            raise InputError(
                f"weights = '{weights}': '{self.path}' has {', '.join(['ema', 'raw', *others])}; "
                f"make others with: vdm ema {typed(self.path)} --width 0.07"
            )
        if not path.exists():
            raise InputError(
                f"run = '{self.path}': no weights are saved yet ({path.name} is missing); "
                f"train it first: vdm train {typed(self.config.data.source, '--run', self.path)}"
            )
        check_claim(self.config.model, read_shapes(path), network=self.network)
        tensors, _ = self.read(path, weights if weights in _WEIGHT_FILES else "average")
        vdm = self.build()
        load_into(vdm, tensors, path)
        return vdm.eval().requires_grad_(False)

    def model(self, weights: str = "ema", **execution: Any) -> VDM:
        """Return the trained model, in evaluation mode, set up to compute.

        Args:
            weights: "ema", "raw", "best" or another name.
            **execution: As at `evaluate`: device, precision, compile, channels_last.

        Returns:
            The model, on the best device unless another is named.

        Raises:
            InputError: For weights that are not there.

        Examples:
            >>> run.model()  # doctest: +ELLIPSIS
            VDM(... of 1×8×8, Adaptive, Discretized, ... parameters)
        """
        return self.load(weights).prepare(Execution(**execution))

    def sample(
        self,
        n: int,
        *,
        steps: int = DEFAULT_STEPS,
        seed: int = 0,
        sampler: str | None = None,
        label: str | Sequence[str] | None = None,
        guidance: float = 1.0,
        weights: str = "ema",
        progress: bool | Listener = False,
        **options: Any,
    ) -> np.ndarray:
        """Draw samples; `vdm sample` draws the same.

        Args:
            n: Number of samples.
            steps: Of the sampler.
            seed: Of the draw; one seed gives the same samples.
            sampler: A name of `SAMPLERS`; None: "sde-dpmpp-2m" for images, "unipc" for vectors.
            label: Class of the samples, or several that take turns; None: drawn by their shares of
                the training data.
            guidance: Weight of the condition; 1 is the model's own.
            weights: As at `evaluate`.
            progress: As at `evaluate`.
            **options: grid, variance, eta, stop_early, clip, condition, conditions,
                guidance_interval, as the options of `vdm sample`; and those of `Execution`.

        Returns:
            Samples in the data's own domain, shape (n, *shape).

        Raises:
            InputError: For a sampler or a condition that this model does not have.

        Examples:
            >>> x = run.sample(4, steps=5, seed=1)
            >>> x.shape, bool((x >= 0).all() and (x < 17).all())
            ((4, 1, 8, 8), True)
            >>> bool((x == run.sample(4, steps=5, seed=1)).all())
            True
        """
        from variational_diffusion.run.samples import sample_run  # noqa: PLC0415 (it imports this)

        return sample_run(
            self,
            n,
            steps=steps,
            seed=seed,
            sampler=sampler,
            label=label,
            guidance=guidance,
            weights=weights,
            progress=progress,
            **options,
        ).values

    def __repr__(self) -> str:
        model = self.config.model
        shape = "×".join(map(str, model.shape))
        network, data = model.network.name, self.config.data.source
        return f"Run('{self.path}': {network} of {shape}, data {data})"

    def save_weights(self, name: str, vdm: VDM, metadata: Mapping[str, str]) -> Path:
        """Write weights under a name of one's own, for `load`.

        Args:
            name: Begins with "ema-".
            vdm: The model.
            metadata: Of the file.

        Returns:
            The file.

        Raises:
            InputError: For another name.
        """
        path = self.weights_path(name)
        if name in _WEIGHT_FILES:
            raise InputError(f"name = '{name}' is what training writes; give a name as ema-{name}")
        self.write(path, "average", vdm.state_dict(), metadata)
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
        """Write the measured errors of these weights, so that they need not be measured again.

        Args:
            errors: From `grids.measured_errors` or a command.
            weights: Their name.
        """
        self.write(
            self.errors_path(weights),
            "errors",
            {"gamma": errors.gamma, "error": errors.error},
            {"weights": self._weights_digest(weights)},
        )

    def errors_path(self, weights: str = "ema") -> Path:
        """Return the file of the measured errors of these weights, there or not."""
        return self.path / f"errors-{weights}.safetensors"

    def errors(self, weights: str = "ema") -> NoiseErrors | None:
        """Return the errors that `save_errors` wrote; None if the weights have changed since."""
        found = self._of_weights("errors", weights)
        return None if found is None else NoiseErrors(found[0]["gamma"], found[0]["error"])

    def save_head(self, head: VarianceHead, weights: str = "ema") -> None:
        """Write the head that predicts the errors of these weights; replaces an earlier one.

        Args:
            head: The trained head.
            weights: Their name.
        """
        (self.path / f"predictions-{weights}.safetensors").unlink(missing_ok=True)
        self.write(
            self.path / f"variance-{weights}.safetensors",
            "variance",
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
        load_into(head, tensors, self.path / f"variance-{weights}.safetensors")
        return head.eval().requires_grad_(False)

    def save_predictions(
        self, errors: NoiseErrors, predicted: NoiseErrors, weights: str = "ema"
    ) -> None:
        """Write the errors of these weights and the errors that their head predicts.

        Args:
            errors: Measured.
            predicted: By the head.
            weights: Their name.
        """
        self.write(
            self.path / f"predictions-{weights}.safetensors",
            "predictions",
            {"gamma": errors.gamma, "error": errors.error, "predicted": predicted.error},
            {"weights": self._weights_digest(weights)},
        )

    def predictions(self, weights: str = "ema") -> tuple[NoiseErrors, NoiseErrors] | None:
        """Return what `save_predictions` wrote; None if the weights have changed since."""
        found = self._of_weights("predictions", weights)
        if found is None:
            return None
        gamma, error, predicted = (found[0][name] for name in ("gamma", "error", "predicted"))
        return NoiseErrors(gamma, error), NoiseErrors(gamma, predicted)

    def _of_weights(
        self, name: str, weights: str
    ) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Return what was measured of these weights and written; None if they are others now."""
        path = self.path / f"{name}-{weights}.safetensors"
        if not path.exists():
            return None
        tensors, metadata = self.read(path, name)
        return (
            (tensors, metadata)
            if metadata.get("weights") == self._weights_digest(weights)
            else None
        )

    def _weights_digest(self, weights: str) -> str:
        return read_tensors(self.weights_path(weights))[1]["digest"]

    def log(self, **values: Any) -> None:
        """Append one line to `metrics.jsonl`."""
        json_lines.append(self.path / "metrics.jsonl", values)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the whole lines of `metrics.jsonl`; a remark names damaged ones."""
        return json_lines.read(self.path / "metrics.jsonl")

    def forget_metrics_after(self, step: int) -> None:
        """Drop the lines of steps that were not saved; set damaged ones aside."""
        json_lines.keep(self.path / "metrics.jsonl", lambda line: line.get("step", 0) <= step)


class Part(NamedTuple):
    """One of the files that a state consists of, counted from 1."""

    number: int
    of: int


class Resumed(NamedTuple):
    """What to go on with. position: in a stream of data. damaged: what ails newer states."""

    state: TrainingState
    position: dict[str, Any]
    damaged: list[str]


def _is_whole(parts: set[Part]) -> bool:
    return any({Part(k, n) for k in range(1, n + 1)} <= parts for n in {part.of for part in parts})
