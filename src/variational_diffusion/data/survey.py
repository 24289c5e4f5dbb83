"""Looking over stored examples before they are used: what they have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from variational_diffusion.config import DataConfig
from variational_diffusion.data import changes
from variational_diffusion.data.decoding import Arrays, Decoder, Pictures, is_array, read_array
from variational_diffusion.data.images import CHANNELS, Header, read_header
from variational_diffusion.data.keys import key_of, keys_of_groups
from variational_diffusion.data.source import MAX_LEVELS, Finite, check_range
from variational_diffusion.data.stored import Store, Stored
from variational_diffusion.errors import DamagedError, InputError

_ASKED = {"grey": "L", "rgb": "RGB", "rgba": "RGBA"}


class Named(NamedTuple):
    """The header of an example."""

    name: str
    header: Header


class Survey(NamedTuple):
    """How examples are decoded, which of each store are sound, and remarks of one line each.

    beside: what stands beside the sound ones of each store. content: their keys, uint64.
    groups: of those to be split, where `config.group` finds any; see `keys.keys_of_groups`.
    """

    decoder: Decoder
    kept: dict[str, np.ndarray]
    notes: list[str]
    beside: dict[str, list[Any]]
    content: dict[str, np.ndarray]
    groups: np.ndarray | None


class _Sound(NamedTuple):
    """A sound example. number: in its store; key: see `data.keys`; header: of an image."""

    split: str
    number: int
    name: str
    key: int
    beside: Any
    header: Header | None


def survey(stores: Mapping[str, Store], config: DataConfig, *, complete: bool = True) -> Survey:
    """Look at the header of every image, or verify every array, of stores by their split's name.

    complete: whether they hold all there is, or only the first examples of a stream.
    With `config.skip_damaged`, images are decoded here once, and what cannot be is left out.
    Raises InputError where the examples do not fit together, and as `read_header` does.
    """
    everything = {split: np.arange(len(store)) for split, store in stores.items()}
    examples = _examples(stores, everything)
    there = (stored for _, _, stored in examples if not isinstance(stored.content, DamagedError))
    first = next(there, None)
    if first is None and not any(map(len, stores.values())):
        raise InputError("no examples; give data that hold some")
    arrays = first is not None and is_array(first)
    sound, notes = _sound_ones(_examples(stores, everything), config, arrays)
    if config.skip_sizes:
        sound = _of_one_size(sound, config, notes)
    of = {split: [one for one in sound if one.split == split] for split in stores}
    kept = {split: np.array([one.number for one in ones], np.int64) for split, ones in of.items()}
    decoder: Decoder
    if arrays:
        decoder = _arrays_decoder(stores, kept, config, complete)
        for _, _, stored in _examples(stores, kept):
            decoder.decode(stored)
    else:
        headers = [Named(one.name, one.header) for one in sound if one.header is not None]
        pictures = _pictures_decoder(headers, config, complete)
        notes += changes.notes([header for _, header in headers], pictures.mode)
        decoder = pictures
    groups = None
    if config.group is not None:
        groups = keys_of_groups((one.name for one in of["train"]), config.group)
    return Survey(
        decoder,
        kept,
        notes,
        beside={split: [one.beside for one in ones] for split, ones in of.items()},
        content={
            split: np.array([one.key for one in ones], np.uint64) for split, ones in of.items()
        },
        groups=groups,
    )


def _sound_ones(
    examples: Iterable[tuple[str, int, Stored]], config: DataConfig, arrays: bool
) -> tuple[list[_Sound], list[str]]:
    """Return the examples that can be read, and remarks on the others."""
    finite = Finite()
    sound: list[_Sound] = []
    n_damaged = n_sheets = 0
    for split, index, stored in examples:
        header = None
        try:
            if arrays:
                _look_at(stored, finite, config.skip_damaged)
            else:
                header = read_header(
                    stored, decode=config.skip_damaged, max_pixels=config.max_pixels
                )
        except DamagedError:
            if not config.skip_damaged:
                raise
            n_damaged += 1
        else:
            if header is not None and header.sheet:
                n_sheets += 1
                continue
            key = key_of(stored)
            sound.append(_Sound(split, index, stored.name, key, stored.beside, header))
    finite.check()
    if not sound:
        problem = f"{n_damaged} examples are damaged" if n_damaged else "images are sheets of vdm"
        raise InputError(f"all {problem}; give data that hold others")
    notes = [f"{n_damaged} damaged examples skipped"] if n_damaged else []
    if n_sheets:
        notes.append(f"{n_sheets} sheets and animations that vdm drew left out")
    return sound, notes


def _of_one_size(sound: list[_Sound], config: DataConfig, notes: list[str]) -> list[_Sound]:
    """Return the images of the size that most have; note how many others there are."""
    if config.resize is not None or config.crop is not None:
        raise InputError(
            "skip_sizes = True: --resize and --crop bring all images to one size; leave one out"
        )
    sizes = Counter(one.header.size for one in sound if one.header is not None)
    if not sizes:
        raise InputError("skip_sizes = True is for images, these are arrays; leave it out")
    size, count = sizes.most_common(1)[0]
    if count < len(sound):
        others = f"{len(sound) - count:,} images of another size than {size[0]}×{size[1]}"
        notes.append(f"{others} left out")
    return [one for one in sound if one.header is not None and one.header.size == size]


def _arrays_decoder(
    stores: Mapping[str, Store], kept: Mapping[str, np.ndarray], config: DataConfig, complete: bool
) -> Arrays:
    """Return the decoder for arrays like the first.

    complete: whether the stores hold all there is, so that the largest integer is the largest.
    Raises InputError for options that are of images, and where the levels cannot be known.
    """
    for name in ("resize", "channels"):
        if getattr(config, name) != DataConfig.model_fields[name].default:
            raise InputError(
                f"{name} = {getattr(config, name)!r} is for images, and these are arrays; leave "
                f"out --{name}"
            )
    arrays = (read_array(stored) for _, _, stored in _examples(stores, kept))
    first = next(arrays)
    levels, kind = config.levels, first.dtype.kind
    check_range(config.value_range)
    if kind != "f" and levels is None and config.value_range is not None:
        raise InputError(
            f"value_range = {config.value_range} is for floats, these are {first.dtype}; leave out "
            "--range"
        )
    if levels is None and kind in "bu" and first.dtype.itemsize <= 2:
        levels = 2 if kind == "b" else 2 ** (8 * first.dtype.itemsize)
    if levels is None and kind != "f" and not complete:
        raise InputError(
            f"the arrays hold {first.dtype}, so the number of levels is not known before all have "
            "been read; give --levels"
        )
    if levels is None and kind != "f":
        largest = max([int(first.max()), *(int(array.max()) for array in arrays)])
        levels = min(MAX_LEVELS, max(2, largest + 1))
    return Arrays(
        first.dtype,
        _cropped(first.shape, config),
        levels,
        value_range=config.value_range,
        cropped=config.crop is not None,
    )


def _pictures_decoder(headers: list[Named], config: DataConfig, complete: bool) -> Pictures:
    """Return the decoder for images with these headers.

    complete: whether these are all there are; if not, a later one with colours is no surprise.
    Raises InputError for images of several sizes without `config.resize` or `config.crop`, and for
    a mixture of 8 and 16 bits.
    """
    if config.value_range is not None and config.levels is None:
        raise InputError(
            f"value_range = {config.value_range} is for floats, and these are images; leave out "
            "--range"
        )
    size = _checked_size(config.resize)
    if size is None and config.crop is not None:
        size = config.crop
        small = _first(headers, lambda header: header.size[0] < size[0] or header.size[1] < size[1])
        if small is not None:
            h, w = small.header.size
            raise InputError(
                f"crop = {config.crop}: '{small.name}' has {h}×{w} pixels (height × width); give a "
                "smaller --crop, or --resize too"
            )
    mode = _common_mode(headers, config)
    return Pictures(
        mode,
        size or _common_size(headers),
        levels=config.levels,
        resize=config.resize is not None,
        cropped=config.crop is not None,
        colour=complete or CHANNELS[mode] > 1 or config.channels != "auto",
        max_pixels=config.max_pixels,
        value_range=config.value_range,
    )


def _cropped(shape: tuple[int, ...], config: DataConfig) -> tuple[int, ...]:
    """Return the least shape that examples like one of `shape` may have."""
    if config.crop is None or len(shape) != 3:
        return shape
    return (shape[0], *config.crop)


def _examples(
    stores: Mapping[str, Store], kept: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, int, Stored]]:
    """Yield split, index and example of all kept examples of all stores, a few in memory."""
    for split, indices in kept.items():
        for first in range(0, len(indices), 64):
            few = indices[first : first + 64]
            for index, stored in zip(few.tolist(), stores[split].read(few), strict=True):
                yield split, index, stored


def _look_at(stored: Stored, finite: Finite, skip_damaged: bool) -> None:
    """Verify that an array is finite: at once where it can be skipped, else with the others."""
    array = read_array(stored)
    if skip_damaged and array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DamagedError(f"'{stored.name}' holds values that are not finite")
    finite.look(array[None], _naming(stored))


def _naming(stored: Stored) -> Callable[[int], str]:
    return lambda _: f"'{stored.name}'"


def _checked_size(resize: tuple[int, int] | None) -> tuple[int, int] | None:
    if resize is not None and min(resize) < 1:
        raise InputError(f"resize = {resize}: both are at least 1; give --resize HxW, as in 32x32")
    return resize


def _common_size(headers: list[Named]) -> tuple[int, int]:
    first = headers[0]
    size = first.header.size
    other = _first(headers, lambda header: header.size != size)
    if other is not None:
        (h, w), (h_2, w_2) = size, other.header.size
        common, count = Counter(header.size for _, header in headers).most_common(1)[0]
        raise InputError(
            f"images differ in size: '{first.name}' has {h}×{w} pixels (height × width), "
            f"'{other.name}' has {h_2}×{w_2}, and {count:,} of {len(headers):,} have "
            f"{common[0]}×{common[1]}; bring all to one size with --resize HxW, as in "
            f"--resize {common[0]}x{common[1]}, or leave the others out with --skip-sizes"
        )
    return size


def _common_mode(headers: list[Named], config: DataConfig) -> str:
    deep = _first(headers, lambda header: header.bits == 16)
    if deep is not None:
        shallow = _first(headers, lambda header: header.bits < 16)
        if shallow is not None:
            raise InputError(
                f"images differ in depth: '{deep.name}' has 16 bits, '{shallow.name}' has "
                f"{shallow.header.bits}; convert them to one depth, or give a folder for each"
            )
        if config.channels in ("rgb", "rgba"):
            raise InputError(
                f"channels = {config.channels!r}: '{deep.name}' and all others are grey with 16 "
                "bits; leave out --channels, or type --channels grey"
            )
        return "I;16"
    if config.channels in ("auto", "grey") and not config.resize:
        plain = _first(headers, lambda header: header.bits > 1 or header.transparent) is None
        if plain:
            return "1"
    if config.channels == "auto":
        return "RGB" if _first(headers, lambda header: not header.grey) is not None else "L"
    return _ASKED[config.channels]


def _first(headers: list[Named], test: Callable[[Header], bool]) -> Named | None:
    return next((named for named in headers if test(named.header)), None)
