"""Digests: the first bytes of SHA-256."""

from __future__ import annotations

import hashlib

import numpy as np

CONTENT = 8
"""Bytes of a digest of examples: of 2^64 wrong decodings one would pass."""


def digest(*parts: bytes, size: int = 16) -> bytes:
    """Return the digest of bytes, one after the other, as `size` bytes."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.digest()[:size]


def content_digest(x: np.ndarray, levels: int) -> bytes:
    """Return the digest of examples, whatever integer type they have: `CONTENT` bytes."""
    return digest(np.ascontiguousarray(x, value_type(levels)).tobytes(), size=CONTENT)


def value_type(levels: int) -> np.dtype:
    """Return the type that values are stored in: one byte up to 256 levels, otherwise two."""
    return np.dtype("u1" if levels <= 256 else "<u2")
