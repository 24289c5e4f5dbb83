"""What reading an image changes or leaves out: one list.

`vdm data` notes all of it. `vdm compress`, which promises examples exact to the bit, refuses what
loses something.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from variational_diffusion.data.images import CHANNELS, Header, is_opaque
from variational_diffusion.data.stored import Stored


class Change(NamedTuple):
    """One thing that reading does to images.

    happens: whether it does, to an image with this header that is read in pillow's mode. note: a
    remark, where {n} is the number of images and {channels} that of the mode. loss: what an image
    has that does not come back; "" where the pixels come back as they were. but: whether an example
    is one that loses nothing after all, for what only the pixels tell.
    """

    happens: Callable[[Header, str], bool]
    note: str
    loss: str = ""
    but: Callable[[Stored], bool] | None = None


CHANGES = (
    Change(
        lambda header, mode: header.left_out > 0,
        "{n} files hold several pictures (pages, frames, sizes), and the first is read; --frames "
        "each reads the pages of a TIFF and the frames of an animation",
        "several pictures, of which the first is read",
    ),
    Change(
        lambda header, mode: header.mode in ("CMYK", "YCbCr"),
        "{n} CMYK or YCbCr images read as RGB",
        "colours for print (CMYK) or video (YCbCr), which are read as RGB",
    ),
    Change(
        lambda header, mode: header.mode in ("P", "PA"),
        "{n} images with a palette read as their colours",
    ),
    Change(
        lambda header, mode: header.transparent and CHANNELS[mode] < 4,
        "alpha put on white in {n} images (--channels rgba keeps it)",
        "transparency, which is put on white for this model",
        is_opaque,
    ),
    Change(
        lambda header, mode: header.masked,
        "{n} images with 16 bits of grey and a transparent value read without transparency",
        "a transparent value beside 16 bits of grey, which is not read",
    ),
    Change(
        lambda header, mode: CHANNELS[mode] == 4 and not header.transparent,
        "{n} images without opacity read as opaque",
    ),
    Change(
        lambda header, mode: header.grey and CHANNELS[mode] > 1,
        "{n} grey images read with {channels} channels",
    ),
    Change(
        lambda header, mode: not header.grey and CHANNELS[mode] == 1,
        "{n} colour images turned grey",
        "colours, which this model does not have",
    ),
    Change(
        lambda header, mode: header.reduced,
        "{n} images with more than 8 bits (of colour, or beside opacity) read with 8",
        "more than 8 bits of colour, and 8 are read",
    ),
    Change(
        lambda header, mode: bool(header.profile),
        "{n} images have a colour profile other than sRGB: their values are read as they are, not "
        "converted",
        "a colour profile other than sRGB, which does not come back",
    ),
    Change(
        lambda header, mode: header.turned,
        "{n} images turned upright, as their EXIF says",
    ),
)


def notes(headers: Sequence[Header], mode: str) -> list[str]:
    """Return remarks of one line on what reading images with these headers in a mode changes."""
    counts = [sum(change.happens(header, mode) for header in headers) for change in CHANGES]
    return [
        change.note.format(n=count, channels=CHANNELS[mode])
        for change, count in zip(CHANGES, counts, strict=True)
        if count
    ]


def loss(stored: Stored, header: Header, mode: str) -> str:
    """Return what an image has that does not come back when read in a mode; "" for nothing."""
    losing = (change for change in CHANGES if change.loss and change.happens(header, mode))
    lost = (change.loss for change in losing if change.but is None or not change.but(stored))
    return next(lost, "")
