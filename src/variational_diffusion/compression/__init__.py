"""Lossless compression: bits back over a model's chain, and the file that keeps the result."""

from variational_diffusion.compression.chain import ChainCoder
from variational_diffusion.compression.container import Container, Image, Writer
from variational_diffusion.compression.group import Encoded, decode, encode
from variational_diffusion.compression.images import EncodedImages, ImageCoding, decode_images
from variational_diffusion.compression.needed import model_digest
from variational_diffusion.compression.records import MAX_IMAGES, MAX_VALUES, Header, Origin, Table
from variational_diffusion.compression.tiles import number_of_tiles

__all__ = [
    "MAX_IMAGES",
    "MAX_VALUES",
    "ChainCoder",
    "Container",
    "Encoded",
    "EncodedImages",
    "Header",
    "Image",
    "ImageCoding",
    "Origin",
    "Table",
    "Writer",
    "decode",
    "decode_images",
    "encode",
    "model_digest",
    "number_of_tiles",
]
