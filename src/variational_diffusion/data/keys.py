"""Keys of examples: 64 bits of their content, by which examples are split and data are known again.

A key says nothing of the place or the name of an example, so neither more examples beside it nor
another order changes it, and exact copies have one key. Of a file, its length and its first and
last 32 KiB are read, and no more: files that are equal have equal keys, and two that differ only
in between are taken for copies, which does no harm. So opening 100,000 large files takes one short
read of each beside that of its header. Names alone would be quicker, but they would not show that
files were replaced, and copies would stand on both sides of a split.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable

import numpy as np

from variational_diffusion.data.source import Source
from variational_diffusion.data.stored import Stored
from variational_diffusion.errors import DamagedError, InputError

_END = 2**15
"""Bytes at either end of a stored example that its key is made of."""

_VALUES = 2**22
"""Values that are read together."""

_REGULAR = re.compile(r"[\\(\[{+^$|]|\.[*?]")
"""What makes a pattern a regular expression and not a glob."""


def key_of(stored: Stored) -> int:
    """Return the key of a stored example that can be read."""
    content = stored.content
    assert not isinstance(content, DamagedError)
    picture = "" if stored.picture is None else f"picture {stored.picture} of "
    if isinstance(content, np.ndarray):
        return _key(f"{content.dtype.str} {content.shape}", np.ascontiguousarray(content).tobytes())
    if isinstance(content, bytes):
        return _key(f"{picture}{len(content)}", content[:_END], content[_END:][-_END:])
    with content.open("rb") as file:
        first = file.read(_END)
        length = os.fstat(file.fileno()).st_size
        file.seek(max(_END, length - _END))
        return _key(f"{picture}{length}", first, file.read(_END))


def keys_of_values(values: np.ndarray) -> np.ndarray:
    """Return the key of every example, uint64, from its values. values: shape (n, ...)."""
    kind = f"{values.dtype.str} {values.shape[1:]}"
    rows = np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint8)
    return np.fromiter((_key(kind, row.data) for row in rows), np.uint64, len(values))


def keys_of_source(source: Source, indices: np.ndarray | None = None) -> np.ndarray:
    """Return the key of every example of a source, uint64, from its values."""
    indices = np.arange(len(source)) if indices is None else indices
    together = max(1, _VALUES // int(np.prod(source.shape)))
    pieces = [
        keys_of_values(np.stack(list(source.read(indices[first : first + together]))))
        for first in range(0, len(indices), together)
    ]
    return np.concatenate(pieces) if pieces else np.empty(0, np.uint64)


def keys_of_groups(names: Iterable[str], pattern: str) -> np.ndarray:
    """Return one key, uint64, for all examples of a group: those of which a pattern finds the same.

    pattern: a regular expression, of which the first group in parentheses counts, or else all that
        it finds in a name; or a glob of the whole name, of which the first star counts.
    Raises InputError for a pattern that is neither, and for a name that it does not fit.
    """
    try:
        search = re.compile(_from_glob(pattern)).search
    except re.error as error:
        raise InputError(
            f"group = '{pattern}' is no regular expression ({error}); give one such as "
            "'(.*)_[0-9]+', or a glob such as '*/*'"
        ) from error
    keys = []
    for name in names:
        found = search(name)
        if found is None:
            raise InputError(
                f"group = '{pattern}' is not found in '{name}': every name must belong to a group; "
                "give another --group, or one that finds something in all, such as '^[^_]*'"
            )
        keys.append(_key("group", (found[1] if found.re.groups else found[0] or "").encode()))
    return np.array(keys, np.uint64)


def _from_glob(pattern: str) -> str:
    if _REGULAR.search(pattern) or not set("*?") & set(pattern):
        return pattern
    text = re.escape(pattern).replace(r"\?", ".").replace(r"\*", "(.*)", 1).replace(r"\*", ".*")
    return rf"\A{text}\Z"


def _key(kind: str, *parts: bytes | memoryview) -> int:
    digest = hashlib.blake2b(kind.encode(), digest_size=8)
    for part in parts:
        digest.update(part)
    return int.from_bytes(digest.digest(), "little")
