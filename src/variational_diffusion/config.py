"""The configuration of a run: types, ranges, JSON in and out.

A run is data, a model and a way of training. Everything that decides the result stands here, and
nothing else does: threads, devices and intervals of saving do not change a run, so they are
arguments of the command. This module imports no torch, so that `vdm --help` is quick.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
import tomllib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    create_model,
    model_validator,
)

from variational_diffusion.errors import InputError, meant
from variational_diffusion.escaping import parsed_json

Section = TypeVar("Section", bound=BaseModel)

Count = Annotated[int, Field(ge=1, le=65_536)]
Blocks = Annotated[int, Field(ge=1, le=256)]
Size = Annotated[int, Field(ge=0, le=2**24)]
Levels = Annotated[int, Field(ge=2, le=65_536)]
Share = Annotated[float, Field(ge=0, lt=1)]
LogNoise = Annotated[float, Field(ge=-80, le=80)]
"""Annotations of the constructors of parts: what an option of a configuration may be."""

Flip = Literal["none", "horizontal", "vertical", "both"]

FORMAT = 2
"""Version of `config.json`; a file of a newer version is refused. Format 1 had no fingerprint of
the data, and split them by their order."""


DEFAULT_MINUTES = 10
"""The budget of a run for which none is given."""

_MARKS = ("format", "digest", "identity")
_LOCATION, _SCALE = "model.decoder.options.location", "model.decoder.options.scale"
_BUDGETS = ("steps", "minutes")
_NOT_COMPARED = {"identity", *(f"training.{unit}" for unit in _BUDGETS)}
_FLOOR = "model.schedule.options.floor"
_MEASURED = {
    "decoder": ("location", "scale"),
    "schedule": ("gamma_min", "floor"),
    "network": ("gamma_min",),
}
"""Options of the parts of a model that follow from the values of its data."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SplitRule(_Section):
    """What decides on which side of the splits an example stands.

    by: "content": a number in [0, 1) that follows from its content or its group, so that exact
        copies stand on one side, and more examples do not move others. "draws": the same for data
        that are mostly copies, draws of few values, where each copy has a number of its own.
        "order": a permutation of all examples, for data that never change.
    below: the number below which an example is of the test, and, if it is not, of the validation.
    """

    by: Literal["content", "draws", "order"]
    below: tuple[float, float] = (0.0, 0.0)


class Fingerprint(_Section):
    """What the data of a run were when it was trained.

    examples: how many; None of a stream. digest: of their content, in whatever order.
    """

    examples: int | None
    digest: str
    shape: tuple[int, ...]
    levels: int | None

    def change(self, now: Fingerprint) -> str:
        """Return in a few words what is different now, "" where nothing is."""
        if self == now:
            return ""
        if (self.shape, self.levels) != (now.shape, now.levels):
            return (
                f"shape {now.shape} and levels {now.levels}, then shape {self.shape} and levels "
                f"{self.levels}"
            )
        if self.examples == now.examples:
            return "as many examples, but not the same ones"
        return f"{now.examples:,} examples, then {self.examples:,}"


class DataConfig(_Section):
    """What is read, and how it is split.

    source: a name of `DATASETS`; the path of a folder of images, of IDX files, of `.parquet` or of
        `.tar` files, or of an `.npy`, `.npz`, `.parquet` or `.tar` file; or `hf:NAME[:CONFIG]`, a
        data set of the Hugging Face hub or a folder laid out like one.
    levels: number of values of integer data, 2 to 65,536; None: found out from the data, and floats
        are real values. Floats that lie on so many levels are read as integers.
    value_range: lowest and highest value that real-valued data may take; None: any finite one. With
        levels, the values of the lowest and of the highest level, of integers too; None: 0 and
        levels - 1.
    array: the array to read from an `.npz` file that holds several.
    column: the column of parquet files, or the extension of the members of tar files, that holds
        the examples, with a dot before it where dots belong to the names; None: the only one that
        can.
    resize: (height, width) that images are cropped around the centre and resampled to.
    channels: "auto" reads grey images as one channel and all others as three, with transparency
        put on white.
    skip_damaged: leave out examples that are damaged, empty or not readable, instead of stopping at
        the first.
    frames: of image files with several pictures (pages of a TIFF, frames of an animation), read the
        "first", or "each" as an example.
    max_pixels: pixels that an image may have as it is stored, so that none takes all memory.
    skip_sizes: leave out images of another size than most have instead of stopping at the first.
    validation, test: shares of the examples, drawn by `split_seed`; a source that has a test set
        of its own keeps it, and `test` has no effect; likewise for the validation.
    group: pattern of the names of examples that stay on one side of the splits, as of frames of a
        film: a regular expression, of which the first group in parentheses or all that it finds
        counts, or a glob, of which the first star does; see `data.keys`.
    splits: what decides on the side of an example; None: found out from the data.
    flip: directions in which training images are mirrored at random.
    crop: (height, width) cut out of every image: anywhere in training, else in the middle.
    streaming: read parquet, tar and hub data in the order of their shards, without a copy on the
        disk and without knowing how many examples there are; see `data.stream`.
    shuffle_buffer: number of examples that are shuffled together in streaming.
    lanes: parts that the shards are dealt to in streaming; a batch has as many of each.
    hold_out: number of examples of streamed data that are set aside for a split it does not have.
    condition: what is learned beside the examples, to condition on: "label", or one of "label:",
        "vector:" and "image:" with the name of a column or array, or a name of `DEGRADATIONS`,
        which is computed from the example.
    """

    source: str
    levels: Levels | None = None
    value_range: tuple[float, float] | None = None
    array: str | None = None
    column: str | None = None
    resize: tuple[int, int] | None = None
    channels: Literal["auto", "grey", "rgb", "rgba"] = "auto"
    skip_damaged: bool = False
    skip_sizes: bool = False
    frames: Literal["first", "each"] = "first"
    max_pixels: int = Field(89_478_485, ge=1)
    validation: float = Field(0.1, gt=0, lt=1)
    test: float = Field(0.1, gt=0, lt=1)
    split_seed: int = Field(0, ge=0)
    group: str | None = Field(None, min_length=1)
    splits: SplitRule | None = None
    flip: Flip = "none"
    crop: tuple[PositiveInt, PositiveInt] | None = None
    streaming: bool = False
    shuffle_buffer: int = Field(1000, ge=1)
    lanes: int = Field(1, ge=1)
    hold_out: int = Field(1000, ge=1)
    condition: str | None = None


class Component(_Section):
    """An entry of a table (`NETWORKS`, `SCHEDULES`, `DECODERS`) and its constructor's arguments."""

    name: str
    options: dict[str, Any] = {}


class ModelConfig(_Section):
    """A variational diffusion model: shape of one example, without the batch, and its parts.

    condition: None for a model that takes none.
    """

    shape: tuple[int, ...] = Field(min_length=1)
    decoder: Component
    schedule: Component
    network: Component
    prediction: Literal["noise", "velocity"] = "velocity"
    condition: Component | None = None


class TrainingConfig(_Section):
    """How long and how the model is trained.

    Attributes:
        steps: The budget in steps. Exactly one of steps and minutes is given. The learning rate
            follows the share of the budget that is spent: a linear rise over `warmup_steps`,
            constant, then from the share `decay_from` on a straight line to zero.
        minutes: The budget in minutes of training, saving and validating left out.
        batch_size: Examples of a step.
        optimizer: Of the network's matrices and convolution kernels, "muon" or "adamw". All other
            parameters learn by AdamW.
        matrix_learning_rate: Muon's; its momentum is 0.95.
        learning_rate: AdamW's.
        betas: AdamW's.
        weight_decay: Of the matrices. Vectors (biases, gains) and the schedule are not decayed.
        schedule_learning_rate: For the shape of the noise schedule, which learns by the variance.
        end_point_learning_rate: For its end points, which learn by the bound; each is a logarithm
            of the distance from the middle of the initial range.
        weighting: A name of `WEIGHTINGS`, what the diffusion loss is weighted by at every γ;
            "bound": not at all. What is reported is always the bound.
        range_price: Bits per dimension that a unit of γ at either end has to save. By the bound
            alone γ_1 has no optimum: more noise always brings z_1 closer to N(0, I), by less and
            less.
        warmup_steps: Steps over which the learning rate rises.
        decay_from: Share of the budget from which it falls, in [0, 1].
        clip_norm: Largest norm of the network's gradient; None: not limited.
        ema_decay: Decay of the weight average after its warm-up.
        posthoc_ema: Keep two more averages and store them now and then, so that `vdm ema` can make
            one of any width; takes memory for two copies of the weights, and disk space for up to
            thirty.
        condition_dropout: Share of the examples whose condition is left out in training, drawn anew
            in every step: what guidance and likelihoods without the condition need.
        seed: Of the initial weights, the order of the data, the times and the noise.

    Raises:
        ValidationError: For a value out of range, and for both budgets or none.
    """

    steps: int | None = Field(None, ge=1)
    minutes: float | None = Field(None, gt=0)
    batch_size: int = Field(32, ge=1)
    optimizer: Literal["muon", "adamw"] = "muon"
    matrix_learning_rate: float = Field(0.015, gt=0)
    learning_rate: float = Field(4e-3, gt=0)
    betas: tuple[Share, Share] = (0.9, 0.99)
    weight_decay: float = Field(0.01, ge=0)
    schedule_learning_rate: float = Field(1e-2, ge=0)
    end_point_learning_rate: float = Field(3e-3, ge=0)
    weighting: str = "bound"
    range_price: float = Field(2e-4, ge=0)
    warmup_steps: int = Field(100, ge=0)
    decay_from: float = Field(0.0, ge=0, le=1)
    clip_norm: float | None = Field(None, gt=0)
    ema_decay: float = Field(0.9999, ge=0, lt=1)
    posthoc_ema: bool = True
    condition_dropout: float = Field(0.1, ge=0, lt=1)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _one_budget(self) -> TrainingConfig:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError(
                f"steps = {self.steps} and minutes = {self.minutes}: give one of them as the budget"
            )
        return self


class RunConfig(_Section):
    """All settings that decide what a run comes to; stored as `config.json`.

    Attributes:
        data: What the model is trained on, and how it is read.
        model: Network, schedule and decoder.
        training: How, and how long.
        fingerprint: What the data were; None in runs of earlier versions.
        identity: Digest of the settings that the run was begun with, which every file of tensors of
            the run carries; empty before a run is begun, and in runs of before there was one.

    Examples:
        >>> config = vd.RunConfig.from_json(run.config.to_json())
        >>> config == run.config, config.budget["steps"] == config.training.steps
        (True, True)
    """

    data: DataConfig
    model: ModelConfig
    training: TrainingConfig
    identity: str = ""
    fingerprint: Fingerprint | None = None

    def begun(self) -> RunConfig:
        """Return this configuration with the identity of a run that is begun with it."""
        values = self.model_dump(mode="json", exclude={"identity": True, "training": {*_BUDGETS}})
        return self.model_copy(update={"identity": digest_of_json(values)[:16]})

    def to_json(self) -> str:
        """Return the configuration as indented JSON, with its format version and digest."""
        values = self.model_dump(mode="json", exclude=None if self.identity else {"identity"})
        marks = {"format": FORMAT, "digest": digest_of_json(values)}
        return json.dumps({**marks, **values}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RunConfig:
        """Read what `to_json` wrote; raise `InputError` that names the field if it is not that."""
        try:
            values = parsed_json(text)
        except ValueError as error:
            raise InputError(f"config.json is not JSON: {error}") from error
        version = values.pop("format", None) if isinstance(values, dict) else None
        if version not in (1, FORMAT):
            raise InputError(f"config.json: format must be {FORMAT}; update variational-diffusion")
        if values.pop("digest", None) != digest_of_json(values):
            raise InputError(
                "config.json does not match its digest: it is damaged or was changed by hand; "
                "restore it, or train with other settings in another --run"
            )
        if version == 1 and isinstance(values.get("data"), dict):
            values["data"].setdefault("splits", {"by": "order"})
        return validated(cls, values)

    @classmethod
    def from_file(cls, path: str | Path) -> RunConfig:
        """Read a configuration that a person wrote: TOML, or JSON where the name ends in .json.

        The sections and fields are those of `config.json`; what has a default may be left out.
        Raises InputError that names the file, and the field with what is allowed.
        """
        path = Path(os.path.expanduser(path))
        try:
            text = path.read_text(encoding="utf-8")
            values = parsed_json(text) if path.suffix == ".json" else tomllib.loads(text)
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"config = '{path}' cannot be read ({error}): give a file of TOML, or of JSON "
                "under a name that ends in .json"
            ) from error
        if isinstance(values, dict):
            values = {k: v for k, v in values.items() if k not in _MARKS}
            training = values.setdefault("training", {})
            if isinstance(training, dict) and not training.get("steps", training.get("minutes")):
                values["training"] = {**training, "minutes": DEFAULT_MINUTES}
        try:
            return validated(cls, values)
        except InputError as error:
            raise InputError(f"config = '{path}': {error}") from error

    @property
    def budget(self) -> dict[str, int | float]:
        """The budget by the name of its unit, steps or minutes."""
        values = {"steps": self.training.steps, "minutes": self.training.minutes}
        return {name: value for name, value in values.items() if value is not None}

    def with_budget(self, steps: int | None, minutes: float | None) -> RunConfig:
        """Return this configuration with another budget, its own where both are None.

        Args:
            steps: The budget in steps.
            minutes: The budget in minutes.

        Returns:
            The configuration.

        Raises:
            InputError: For both, and for a budget that is not above zero.
        """
        if steps is None and minutes is None:
            return self
        values = self.training.model_dump() | {"steps": steps, "minutes": minutes}
        return self.model_copy(update={"training": validated(TrainingConfig, values)})

    def change(self, now: Fingerprint | None) -> str:
        """Return how data differ from those of the run, "" where they do not or it is not known."""
        then = self.fingerprint
        return "" if then is None or now is None else then.change(now)

    def measured_as(self, other: RunConfig) -> RunConfig:
        """Return this configuration with what `other` measured of its data for the model."""
        ours, theirs = self.model.model_dump(), other.model.model_dump()
        for part, names in _MEASURED.items():
            measured = theirs[part]["options"]
            ours[part]["options"] |= {name: measured[name] for name in names if name in measured}
        return self.model_copy(update={"model": validated(ModelConfig, ours)})

    def differences(self, other: RunConfig) -> list[str]:
        """Return a line "section.field: ours, theirs" for every setting that is not the same.

        The budget is not part of what a run is, and what the data are is compared by
        `run.own_data`. Location and scale are measured, so they are the
        same up to rounding, and a run of an earlier version that has no floor of γ_0 goes on
        without one. The same data may be at another place.
        """
        ours, theirs = _leaves(self.model_dump(mode="json")), _leaves(other.model_dump(mode="json"))
        if _FLOOR not in ours:
            theirs.pop(_FLOOR, None)
        scale = ours.get(_SCALE)
        known = {name for name in ours.keys() | theirs.keys() if name.startswith("fingerprint")}
        if self.fingerprint is not None and self.fingerprint == other.fingerprint:
            known.add("data.source")
        same = known | {name for name in (_LOCATION, _SCALE) if _close(ours, theirs, name, scale)}
        return [
            f"{name}: {ours.get(name)!r} here, {theirs.get(name)!r} asked"
            for name in sorted((ours.keys() | theirs.keys()) - same - _NOT_COMPARED)
            if ours.get(name) != theirs.get(name)
        ]


_PLAINLY = {"sequence_str": "input should be a list, as in [32, 48]"}
"""What pydantic says in its own words, by the type of its error."""


def validated(section: type[Section], values: Mapping[str, Any], prefix: str = "") -> Section:
    """Return `section(**values)`; raise `InputError` that names the field and what is allowed.

    prefix: of the names of the fields, as in "network.".
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        message = _PLAINLY.get(first["type"], first["msg"].removeprefix("Value error, "))
        if first["loc"]:
            name = prefix + ".".join(str(part) for part in first["loc"])
            message = f"{name} = {first['input']!r}: {message.lower()}"
            if first["type"] == "extra_forbidden":
                known = list(_section_at(section, first["loc"][:-1]).model_fields)
                guess = meant(first["loc"][-1], known)
                message = f"{name}: no such field; known are {', '.join(known)}{guess}"
        raise InputError(message) from error


def check_options(
    kind: str, constructor: Callable[..., Any] | None, options: Mapping[str, Any]
) -> None:
    """Raise `InputError` for an option that a part's constructor is not annotated to take.

    Types are strict: text that reads like a number is none, and neither is true.

    kind: "network", "schedule", …, as the error names the option. constructor: of an entry of a
        table; what it takes beside "shape" are the options. None: of a network of one's own, which
        checks them itself.
    """
    for name, value in options.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(
                f"{kind}.{name} = {value!r}: input should be finite numbers, text, or lists of them"
            ) from error
    if constructor is not None:
        validated(_options_of(constructor), options, f"{kind}.")


@cache
def _options_of(constructor: Callable[..., Any]) -> type[BaseModel]:
    fields: dict[str, Any] = {
        name: (
            Any if parameter.annotation is parameter.empty else parameter.annotation,
            ... if parameter.default is parameter.empty else None,
        )
        for name, parameter in inspect.signature(constructor, eval_str=True).parameters.items()
        if name != "shape"
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }
    strict = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    return create_model("Options", __config__=strict, **fields)


def _section_at(section: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    """Return the section inside of a section that has a place in the values."""
    for name in location:
        annotation = section.model_fields[str(name)].annotation
        kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
        section = next(kind for kind in kinds if issubclass(kind, BaseModel))
    return section


def _close(ours: dict[str, Any], theirs: dict[str, Any], name: str, scale: Any) -> bool:
    """Return whether two lists of numbers differ by rounding alone, by float32's at most."""
    lists: list[Any] = [ours.get(name), theirs.get(name), scale]
    if not all(isinstance(one, list) for one in lists) or len({len(one) for one in lists}) > 1:
        return False
    return all(
        math.isclose(a, b, rel_tol=1e-7, abs_tol=1e-6 * s) for a, b, s in zip(*lists, strict=True)
    )


def digest_of_json(values: Mapping[str, Any]) -> str:
    """Return a SHA-256 digest of what JSON can hold, whatever the order and the spaces."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            leaves |= _leaves(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = value
    return leaves
