"""Data sets: three splits, and a stream where the training examples are not numbered."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from variational_diffusion.config import DataConfig, Fingerprint, SplitRule
from variational_diffusion.data.augment import Augmentation
from variational_diffusion.data.beside import (
    DEGRADATIONS,
    KINDS,
    asked,
    conditions_of,
    labels_of,
    names_of,
)
from variational_diffusion.data.decoding import Decoded
from variational_diffusion.data.reals import RealValues, real_values
from variational_diffusion.data.source import Joined, Split
from variational_diffusion.data.splits import Parts, splits_of
from variational_diffusion.data.stored import Held, Shards, Store, Stored
from variational_diffusion.data.stream import Stream
from variational_diffusion.data.survey import survey
from variational_diffusion.errors import InputError

SPLITS = ("train", "validation", "test")

_SPREAD = 16
"""Shards that the examples which are set aside come from: more are fairer, and slower to open."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits without a common example, and what was noticed on opening.

    Attributes:
        source: A name of `DATASETS`, `hf:NAME`, or an absolute path: opens the same data again from
            anywhere.
        splits: "train", "validation" and "test", none of them empty; each has its name.
        notes: Remarks of one line each, such as "12 damaged examples skipped".
        stream: The training examples of streamed data. Their split "train" is then a sample of
            them, for what looks at the training data but does not train.
        labels: Names of the classes, of data that are conditioned on labels: value k of a condition
            is the k-th.
        config: How the data were read; None: as `source` says, with the defaults.
        rule: What decided on the splits; None of a stream.
        content: The keys of the examples, uint64, by the name of their split; see `data.keys`.
    """

    source: str
    splits: dict[str, Split]
    notes: tuple[str, ...] = ()
    stream: Stream | None = None
    labels: tuple[str, ...] | None = None
    config: DataConfig | None = None
    rule: SplitRule | None = None
    content: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        source: str,
        parts: Parts,
        notes: Iterable[str] = (),
        labels: tuple[str, ...] | None = None,
    ) -> Dataset:
        """Return a data set of what `splits_of` made.

        Args:
            source: What it was opened as.
            parts: The splits, and what decided on them.
            notes: Lines about what was read.
            labels: Names of the classes, for a condition of labels.

        Returns:
            The data set.
        """
        return cls(
            source,
            parts.splits,
            tuple(notes),
            labels=labels,
            rule=parts.rule,
            content=parts.content,
        )

    def __post_init__(self) -> None:
        assert tuple(self.splits) == SPLITS
        named = {name: replace(split, name=name) for name, split in self.splits.items()}
        object.__setattr__(self, "splits", named)

    def __repr__(self) -> str:
        parts = ", ".join(f"{len(split):,} {name}" for name, split in self.splits.items())
        return f"Dataset('{self.source}': {parts} examples of {self.splits['train'].kind})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.splits["train"].shape

    @property
    def levels(self) -> int | None:
        """Number of values of integer data; None for real values."""
        return self.splits["train"].levels

    @cached_property
    def fingerprint(self) -> Fingerprint | None:
        """By what the data are known again; of a stream, by the examples that it begins with."""
        if not self.content:
            return None
        keys = np.sort(np.concatenate(list(self.content.values()))).astype("<u8")
        return Fingerprint(
            examples=len(keys) if self.stream is None else None,
            digest=hashlib.sha256(keys.tobytes()).hexdigest()[:32],
            shape=self.splits["train"].source.shape,
            levels=self.levels,
        )

    @cached_property
    def real_values(self) -> RealValues | None:
        """What the real values of the training examples are; None for integers."""
        return real_values(self.splits["train"]) if self.levels is None else None

    @property
    def remarks(self) -> tuple[str, ...]:
        """The notes, and what is wrong with real values, of one line each."""
        values = self.real_values
        return (*self.notes, *([] if values is None else values.notes()))

    def everything(self) -> Split:
        """Return all examples of the sources that the splits are of, in the order they have there.

        Of streamed data it is what is kept in memory.
        """
        train = self.splits["train"]
        parts = list({id(split.source): split for split in self.splits.values()}.values())
        if len(parts) == 1:
            indices = np.arange(len(train.source))
            return replace(train, indices=indices, name="", drawn=None)
        source = Joined([part.source for part in parts])
        conditions = [part.conditions for part in parts if part.conditions is not None]
        return replace(
            train,
            source=source,
            indices=np.arange(len(source)),
            conditions=np.concatenate(conditions) if conditions else None,
            name="",
            drawn=None,
        )

    def read_as(self, config: DataConfig) -> Dataset:
        """Return the data set with the flips, the crops and the degradation of a configuration."""
        dataset, augmentation = self, Augmentation.of(config)
        if augmentation is not None:
            if (config.condition or "").startswith("image"):
                raise InputError(
                    f"condition = '{config.condition}': its images are not flipped or cropped with "
                    "the examples; leave out --flip and --crop"
                )
            dataset = dataset.augmented(augmentation)
        if config.condition in DEGRADATIONS:
            dataset = dataset.degraded(config.condition)
        return replace(dataset, config=config.model_copy(update={"splits": self.rule}))

    def unconditioned(self) -> Dataset:
        """Return the data set without the conditions of its examples."""
        splits = {
            name: replace(split, conditions=None, degradation=None)
            for name, split in self.splits.items()
        }
        return replace(self, splits=splits, labels=None)

    def augmented(self, augmentation: Augmentation) -> Dataset:
        """Return the data set with its images flipped and cropped.

        Raises InputError for what is no image, and for images smaller than the crop.
        """
        splits = {
            name: replace(split, augmentation=augmentation) for name, split in self.splits.items()
        }
        for split in splits.values():
            augmentation.shape(split.source.shape)
        stream = None if self.stream is None else replace(self.stream, augmentation=augmentation)
        return replace(self, splits=splits, stream=stream)

    def degraded(self, degradation: str) -> Dataset:
        """Return the data set with conditions made of its images by an entry of `DEGRADATIONS`."""
        if len(self.shape) != 3:
            raise InputError(
                f"condition = '{degradation}' is for images of shape (channels, height, width), "
                f"and these examples have {self.shape}; leave out --condition"
            )
        splits = {
            name: replace(split, degradation=degradation) for name, split in self.splits.items()
        }
        stream = None if self.stream is None else replace(self.stream, degradation=degradation)
        return replace(self, splits=splits, stream=stream)

    def labelled(self, names: Sequence[str]) -> Dataset:
        """Return the data set with its classes numbered as in `names`.

        Raises InputError for an example of a class that is not among them.
        """
        if self.labels is None or self.labels == tuple(names):
            return self

        def renumbered(split: Split) -> Split:
            assert split.conditions is not None
            assert self.labels is not None
            of_source = [self.labels[k] for k in split.conditions]
            return replace(split, conditions=labels_of(of_source, names))

        splits = {name: renumbered(split) for name, split in self.splits.items()}
        return replace(self, splits=splits, labels=tuple(names))


def stored_dataset(
    stores: Mapping[str, Store], config: DataConfig, source: str, notes: tuple[str, ...] = ()
) -> Dataset:
    """Return a data set of stored examples, by the name of their split.

    stores: "train", and "validation" and "test" where the source has them; the others are drawn
    from "train".
    """
    decoder, kept, found, beside, content, groups = survey(stores, config)
    conditions, labels = _conditions(beside, config)
    sources = {name: Decoded(store, kept[name], decoder) for name, store in stores.items()}
    own = {
        name: Split(part, np.arange(len(part)), conditions=conditions.get(name))
        for name, part in sources.items()
        if len(part) and name != "train"
    }
    parts = splits_of(
        config, sources["train"], conditions.get("train"), content=content, groups=groups, **own
    )
    return Dataset.of(source, parts, (*found, *notes), labels)


def streamed_dataset(
    shards: Mapping[str, Shards],
    config: DataConfig,
    source: str,
    labels: tuple[str, ...] | None = None,
    notes: tuple[str, ...] = (),
) -> Dataset:
    """Return a data set whose training examples are streamed.

    shards: "train", and "validation" and "test" where the source has them, of which the first
    `config.hold_out` examples are taken. For a split that it has not, as many are taken out of the
    training. All of these are read once and kept in memory, undecoded.
    labels: names of all classes there are, of data that are conditioned on them.
    """
    n = config.hold_out
    missing = [name for name in SPLITS[1:] if name not in shards]
    aside, sample, held = _first(shards["train"], n * len(missing), n)
    stores = {"train": sample}
    for i, name in enumerate(missing):
        stores[name] = aside[i :: len(missing)]
    for name in shards.keys() - {"train"}:
        stores[name] = _first(shards[name], 0, n)[1]
    empty = [name for name in SPLITS if not stores[name]]
    if empty:
        raise InputError(
            f"'{source}' holds too few examples to stream: none is left for {', '.join(empty)}; "
            "leave out --streaming"
        )
    surveyed = survey({name: Held(stores[name]) for name in SPLITS}, config, complete=False)
    decoder, kept, found, beside, content, _ = surveyed
    conditions, _ = _conditions(beside, config, labels)
    splits = {
        name: Split(
            Decoded(Held(stores[name]), kept[name], decoder),
            np.arange(len(kept[name])),
            conditions=conditions.get(name),
        )
        for name in SPLITS
    }
    stream = Stream(
        shards["train"],
        decoder,
        shuffle_buffer=config.shuffle_buffer,
        lanes=config.lanes,
        held=held,
        skip_damaged=config.skip_damaged,
        conditioned=bool(conditions),
        labels=labels,
    )
    return Dataset(source, splits, (*found, *notes), stream, labels, content=content)


def _conditions(
    beside: Mapping[str, list[Any]], config: DataConfig, labels: tuple[str, ...] | None = None
) -> tuple[dict[str, np.ndarray], tuple[str, ...] | None]:
    """Return what the examples of every split are conditioned on, and the names of labels.

    beside: what stands beside the examples. labels: the names where they are known.
    """
    wanted = asked(config, KINDS)
    if wanted is None:
        return {}, None
    if wanted.kind == "label" and labels is None:
        labels = names_of(value for values in beside.values() for value in values)
    return {name: conditions_of(values, labels) for name, values in beside.items()}, labels


def _first(
    shards: Shards, n_aside: int, n_sample: int
) -> tuple[list[Stored], list[Stored], dict[int, int]]:
    """Read the first examples of some shards, evenly spread over all.

    Return those to be set aside, at most n_aside and half of a shard; a sample of those after them;
    and how many stand aside at the beginning of which shard.
    """
    chosen = np.unique(np.linspace(0, len(shards) - 1, min(len(shards), _SPREAD)).astype(int))
    aside: list[list[Stored]] = []
    sample: list[list[Stored]] = []
    held = {}
    for i, shard in enumerate(chosen.tolist()):
        quotas = [n // len(chosen) + (i < n % len(chosen)) for n in (n_aside, n_sample)]
        examples = list(islice(shards.read(shard, 0), sum(quotas)))
        exhausted = len(examples) < sum(quotas)
        held[shard] = min(quotas[0], len(examples) // 2) if exhausted else quotas[0]
        aside.append(examples[: held[shard]])
        sample.append(examples[held[shard] :][: quotas[1]])
    return _alternating(aside), _alternating(sample), held


def _alternating(lists: list[list[Stored]]) -> list[Stored]:
    """Return the first of each list, then the second of each, and so on."""
    longest = max(map(len, lists))
    return [examples[i] for i in range(longest) for examples in lists if i < len(examples)]
