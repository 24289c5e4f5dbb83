"""Files of tensors: safetensors with a format version and a SHA-256 digest of the contents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from variational_diffusion.errors import DamagedFileError, InputError, is_short_of_memory
from variational_diffusion.storage.files import atomic, remove_leftovers

FORMAT = "1"
"""Version of the tensor files."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and a few strings; the file is the old one or the new one and never a part.

    Raises InputError when the disk is full or the folder is gone; the old file is still there.
    """
    contents = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {**metadata, "format": FORMAT}
    header["digest"] = _digest(contents, header)
    remove_leftovers(path.parent)  # safetensors' own, too: such files are in folders of ours
    with atomic(path, overwrite=True) as temporary:
        mode = temporary.stat().st_mode
        try:
            save_file(contents, temporary, metadata=header)
            temporary.chmod(mode)  # safetensors makes files that only their owner can read
        except SafetensorError as error:
            raise InputError(
                f"'{path}' cannot be written ({error}): free some space; "
                "what was saved before is whole"
            ) from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return what `write_tensors` wrote.

    The file may be replaced by another process meanwhile. safetensors opens it twice by its name,
    and may then see the beginning of one file and the rest of another: the new one is read again.

    Raises `DamagedFileError` if the file is missing or damaged, and InputError if it is too new or
    memory is short.
    """
    while True:
        opened = _inode(path)
        try:
            return _read(path)
        except DamagedFileError:
            if _inode(path) == opened:
                raise


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Turn what safetensors, torch and the system say of a file into an `InputError`."""
    try:
        yield
    except FileNotFoundError as error:
        raise DamagedFileError(f"'{path}' is missing: restore it from a copy") from error
    except (SafetensorError, OSError, RuntimeError, MemoryError, ValueError) as error:
        if is_short_of_memory(error):
            raise InputError(
                f"'{path}' cannot be read: there is not enough memory for its "
                f"{path.stat().st_size / 1e6:,.0f} MB; the file may well be whole, so end other "
                "programs, or raise the limit (ulimit -v)"
            ) from error
        reason = " ".join(str(error).split())
        raise DamagedFileError(
            f"'{path}' is damaged or cut short ({reason}): restore it from a copy, "
            "or train again in another --run"
        ) from error


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with _reported(path), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        # a file of tensors is no mapping: it has keys() and cannot be iterated over
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"'{path}' has format {metadata.get('format')}, this version reads {FORMAT}: "
            "update variational-diffusion"
        )
    if metadata.get("digest") != _digest(tensors, metadata):
        raise DamagedFileError(
            f"'{path}' is damaged (its contents do not match their digest): restore it from a "
            "copy, or train again in another --run"
        )
    return tensors, metadata


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a file, of its header alone.

    The header was compared with the size of the file, so that what it claims is there. Raises
    DamagedFileError where it is not.
    """
    with _reported(path), safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def read_metadata(path: Path) -> dict[str, str]:
    """Return the strings of a file without reading its tensors; nothing where there is none."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 digest of the names, types, shapes and values of tensors."""
    return _digest({name: tensor.detach().cpu() for name, tensor in tensors.items()}, {})


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for key in sorted(metadata.keys() - {"digest"}):
        digest.update(f"{key}={metadata[key]}\n".encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
