"""Which files are images that we read, and what to do with those of other kinds: two tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import PurePath
from typing import NamedTuple

from PIL import Image


class Format(NamedTuple):
    """An image format that we read. extensions: of its files. what: of it is read."""

    extensions: tuple[str, ...]
    what: str


_FIRST = "the first picture of several, or each with `--frames each`"
_EIGHT = "more than 8 bits of colour are read with 8"

FORMATS = {
    "PNG": Format((".png", ".apng"), f"1 to 16 bits of grey; {_EIGHT}; {_FIRST}"),
    "JPEG": Format(
        (".jpg", ".jpeg", ".jpe", ".jfif"),
        f"grey, colour, and CMYK turned to RGB; {_FIRST} (phones add gain maps and depth)",
    ),
    "WEBP": Format((".webp",), f"colour, with opacity; {_FIRST}"),
    "TIFF": Format(
        (".tif", ".tiff"),
        "1, 8 and 16 bits of grey, either byte order, in strips or tiles; CMYK turned to RGB; "
        f"{_EIGHT}; {_FIRST} (pages)",
    ),
    "GIF": Format((".gif",), f"palettes as their colours; {_FIRST}"),
    "BMP": Format((".bmp",), "grey, palettes as their colours, colour"),
    "AVIF": Format((".avif", ".avifs"), f"colour, with opacity; {_EIGHT}; {_FIRST}"),
    "HEIF": Format(
        (".heic", ".heif", ".hif", ".heics", ".heifs"),
        f"colour, with opacity, once `pip install 'variational-diffusion[heif]'` was typed; "
        f"{_EIGHT}; {_FIRST}",
    ),
    "JPEG2000": Format(
        (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"), f"8 and 16 bits of grey; {_EIGHT}"
    ),
    "PPM": Format((".pbm", ".pgm", ".ppm", ".pnm"), f"1, 8 and 16 bits of grey; {_EIGHT}"),
    "TGA": Format((".tga", ".icb", ".vda", ".vst"), "grey, palettes, colour, with opacity"),
    "SGI": Format((".sgi", ".rgb", ".rgba", ".bw"), "more than 8 bits are read with 8"),
    "PCX": Format((".pcx",), "grey, palettes, colour"),
    "DCX": Format((".dcx",), _FIRST),
    "ICO": Format((".ico",), "the largest picture"),
    "CUR": Format((".cur",), "the largest picture"),
    "ICNS": Format((".icns",), "the largest picture"),
    "QOI": Format((".qoi",), "colour, with opacity"),
    "DDS": Format((".dds",), "8 bits"),
    "FITS": Format((".fit", ".fits"), "8 and 16 bits of grey"),
    "FLI": Format((".fli", ".flc"), _FIRST),
    "SUN": Format((".ras",), "8 bits"),
    "IM": Format((".im",), f"8 and 16 bits; {_FIRST}"),
    "XBM": Format((".xbm",), "1 bit"),
    "XPM": Format((".xpm",), "palettes as their colours"),
    "DIB": Format((".dib",), "as BMP"),
    "MSP": Format((".msp",), "1 bit"),
    "PCD": Format((".pcd",), "colour"),
    "PIXAR": Format((".pxr",), "colour"),
    "GBR": Format((".gbr",), "8 bits"),
    "BLP": Format((".blp",), "8 bits"),
    "FTEX": Format((".ftc", ".ftu"), "8 bits"),
}
"""Pillow's name → format: all of them that are read, whatever else pillow knows."""

_HEIF = FORMATS["HEIF"].extensions


class Other(NamedTuple):
    """Files that we do not read: what they are, and how they become data."""

    extensions: tuple[str, ...]
    what: str
    remedy: str


OTHERS = (
    Other(_HEIF, "HEIC", "pip install 'variational-diffusion[heif]'"),
    Other(
        (".raw", ".cr2", ".cr3", ".crw", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".pef"),
        "raw photographs",
        "develop them to .tif or .png, as in darktable-cli IN.NEF OUT.tif",
    ),
    Other((".dcm", ".dicom", ".ima"), "DICOM", "np.save the pixel_array of pydicom.dcmread"),
    Other(
        (".nii", ".nii.gz", ".mgz", ".mha", ".mhd", ".nrrd"),
        "volumes (NIfTI and the like)",
        "np.save the arrays that nibabel.load(FILE).get_fdata() gives, as (n, 1, d, h, w) or as "
        "slices (n, h, w)",
    ),
    Other(
        (".svg", ".svgz", ".eps", ".ps", ".ai", ".pdf", ".wmf", ".emf"),
        "drawings without pixels",
        "render them, as in rsvg-convert -h 64 IN.svg -o OUT.png or pdftoppm -png IN.pdf OUT",
    ),
    Other(
        (".psd", ".psb", ".xcf", ".kra"),
        "files of layers",
        "flatten them, as in magick 'IN.psd[0]' OUT.png",
    ),
    Other((".jxl",), "JPEG XL", "djxl IN.jxl OUT.png"),
    Other((".exr", ".hdr", ".pfm"), "images of real numbers", "np.save them as one .npy"),
    Other(
        (".mp4", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".m4v"),
        "films",
        "take out their frames, as in ffmpeg -i FILM.mp4 FOLDER/%05d.png",
    ),
    Other(
        (".h5", ".hdf5", ".hdf", ".mat", ".zarr", ".pt", ".pth", ".pkl", ".pickle"),
        "arrays of another kind",
        "np.save the array as .npy",
    ),
    Other(
        (".czi", ".lif", ".nd2", ".svs", ".ndpi", ".oib", ".vsi"),
        "files of a microscope",
        "convert them, as in bfconvert IN OUT.tif",
    ),
    Other((".csv", ".tsv", ".xlsx"), "tables", "np.save their numbers as .npy"),
    Other(
        (".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar", ".gz", ".xz", ".zst"),
        "packed files",
        "unpack them first",
    ),
)
"""Files that people bring and that are not read, and the way out."""


@cache
def pillow_formats() -> tuple[str, ...]:
    """Return the names of `FORMATS` that can be read here, for pillow."""
    Image.init()
    if find_spec("pillow_heif") is not None:
        import pillow_heif  # noqa: PLC0415 (an extra)

        pillow_heif.register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def extensions() -> frozenset[str]:
    """Return the extensions, with the dot and in small letters, that are read as images."""
    return frozenset(end for name in pillow_formats() for end in FORMATS[name].extensions)


def other(name: str) -> Other | None:
    """Return what a file that is not read is, by its name; None for one that nothing is known of.

    The longest extension counts, so that x.nii.gz is a volume.
    """
    known = {end: entry for entry in OTHERS for end in entry.extensions}
    parts = PurePath(name).name.lower().split(".")
    ends = ("." + ".".join(parts[i:]) for i in range(1, len(parts)))
    return next((known[end] for end in ends if end in known and end not in extensions()), None)


def told(names: Iterable[str]) -> list[str]:
    """Return what files are that are not read, one line for each kind, and the way out."""
    found = Counter(other(name) for name in names)
    return [
        f"{count} of them {entry.what}: {entry.remedy}"
        for entry, count in found.most_common()
        if entry is not None
    ]


def table() -> str:
    """Return the table of docs/data.md of what is read."""
    rows = [
        f"| {name} | {', '.join(f'`{end}`' for end in entry.extensions)} | {entry.what} |"
        for name, entry in FORMATS.items()
    ]
    return "\n".join(["| format | files | what is read |", "| --- | --- | --- |", *rows])
