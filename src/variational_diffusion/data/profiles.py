"""Colour profiles: whether the values of an image mean other colours than those of sRGB."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

_ALIKE = 3
"""Levels of 255 by which a profile may be off: what calculators of profiles differ by."""

_SRGB_GAMMA = 0.45455
_PATCHES = np.array(
    [[x, y, z] for x in (0, 64, 128, 192, 255) for y in (0, 128, 255) for z in (0, 128, 255)],
    np.uint8,
)[None]


def profile_of(image: Image.Image) -> str:
    """Return the name of an image's colour profile; "" for none, for sRGB, and for a damaged one.

    A PNG's gamma counts where nothing else says what its values mean.
    """
    profile = image.info.get("icc_profile")
    if profile:
        return _name(bytes(profile), "L" if image.mode in ("1", "L", "LA") else "RGB")
    gamma = image.info.get("gamma")
    if "srgb" in image.info or not isinstance(gamma, float):
        return ""
    return "" if abs(gamma - _SRGB_GAMMA) < 0.01 else f"gamma {gamma:g}"


@lru_cache(64)
def _name(profile: bytes, mode: str) -> str:
    try:
        opened = ImageCms.ImageCmsProfile(BytesIO(profile))
        described = ImageCms.getProfileDescription(opened).strip() or "without a name"
        if opened.profile.xcolor_space.strip() not in ("RGB", "GRAY"):
            return described
        stored = Image.fromarray(_PATCHES).convert(mode)
        shown = ImageCms.profileToProfile(
            stored, opened, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (OSError, ValueError, ImageCms.PyCMSError):
        return ""
    off = np.asarray(shown, np.int16) - np.asarray(stored.convert("RGB"), np.int16)
    return described if np.abs(off).max() > _ALIKE else ""
