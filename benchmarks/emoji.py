"""Noto emoji as arrays: distinct base emoji, in colour on white, at several sizes.

    npm pack emoji-datasource-google@16.0.0
    python benchmarks/emoji.py emoji-datasource-google-16.0.0.tgz --out FOLDER --size 8 --size 32

Variants in other skin tones are near-copies of their base and would put almost the same picture
into two splits, and some emoji look alike at a small size; both are left out. Each size becomes a
file emoji-SIZE.npy of shape (n, size, size, 3), 8 bit, which `vdm train` and the benchmarks read.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import IO, cast

import click
import numpy as np
from PIL import Image


@click.command()
@click.argument("archive", type=click.Path(exists=True, dir_okay=False))
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--size", "sizes", type=click.IntRange(1, 64), multiple=True, default=(8, 32, 64))
def main(archive: str, out: Path, sizes: tuple[int, ...]) -> None:
    """Read the package ARCHIVE."""
    with tarfile.open(archive) as files:

        def read(name: str) -> bytes:
            return cast(IO[bytes], files.extractfile(f"package/{name}")).read()

        names = [x["image"] for x in json.loads(read("emoji.json")) if x["has_img_google"]]
        pictures = [on_white(read(f"img/google/64/{name}")) for name in names]
    out.mkdir(parents=True, exist_ok=True)
    for size in sizes:
        scaled = np.stack([np.asarray(p.resize((size, size), Image.LANCZOS)) for p in pictures])
        _, first = np.unique(scaled.reshape(len(scaled), -1), axis=0, return_index=True)
        distinct = scaled[np.sort(first)]
        path = out / f"emoji-{size}.npy"
        np.save(path, distinct)
        print(f"{path}: {len(distinct)} of {len(pictures)} are distinct")


def on_white(png: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


if __name__ == "__main__":
    main()
