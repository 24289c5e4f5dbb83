"""Lossless compression: bits back over a model's chain, and the file that keeps the result."""

from variational_diffusion.compression.chain import ChainCoder, model_digest
from variational_diffusion.compression.container import Container, Header, group_entry, write
from variational_diffusion.compression.group import MAX_GROUP, Encoded, decode, encode

__all__ = [
    "MAX_GROUP",
    "ChainCoder",
    "Container",
    "Encoded",
    "Header",
    "decode",
    "encode",
    "group_entry",
    "model_digest",
    "write",
]
