"""Crops of photographs as an array: 32×32 in colour, none overlapping another.

    apt-get install mate-backgrounds
    python benchmarks/crops.py /usr/share/backgrounds/mate/nature --out FOLDER

Each photograph is halved in both directions first, which takes away what JPEG did to it, and cut
from its top left corner; what is left at the right and at the bottom is not used. The file is
crops-SIZE.npy of shape (n, size, size, 3), 8 bit. `vdm train` splits it at random, so that test
crops come from the photographs that training crops come from.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from PIL import Image


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--size", type=click.IntRange(4, 256), default=32, show_default=True)
def main(folder: Path, out: Path, size: int) -> None:
    """Cut the photographs in FOLDER."""
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".jpeg", ".png"))
    crops = np.concatenate([cut(Image.open(path), size) for path in paths])
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"crops-{size}.npy"
    np.save(path, crops)
    print(f"{path}: {len(crops)} crops of {len(paths)} photographs")


def cut(photograph: Image.Image, size: int) -> np.ndarray:
    """Return the crops of one photograph, shape (n, size, size, 3)."""
    pixels = np.asarray(photograph.convert("RGB").reduce(2))
    rows, columns = (side // size for side in pixels.shape[:2])
    cells = pixels[: rows * size, : columns * size].reshape(rows, size, columns, size, 3)
    return np.ascontiguousarray(cells.swapaxes(1, 2)).reshape(-1, size, size, 3)


if __name__ == "__main__":
    main()
