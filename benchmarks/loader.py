"""Examples a second that each kind of data gives, and the share of a training step spent waiting.

    python benchmarks/loader.py

The same images, of `--size` pixels a side in colour, are written once for each kind: an array, a
folder of PNG, parquet and tar files with the same PNG in them. "alone" is reading with nothing else
to do; "waiting" is the share of the time in training, after the first steps, for which the next
batch was not ready yet (`Batches.waited`).
"""

from __future__ import annotations

import io
import itertools
import os
import tarfile
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import device_of, log_option, markdown, report, threads_option
from PIL import Image

from variational_diffusion.config import DataConfig
from variational_diffusion.data import Dataset, open_dataset
from variational_diffusion.data.loader import Batches, training_batches
from variational_diffusion.model import build
from variational_diffusion.presets import configure
from variational_diffusion.training import TrainingState, fit

SHARDS = 8
WARM_UP = 5  # steps


@click.command(help=__doc__)
@threads_option
@log_option
@click.option("--size", default=64, help="Pixels a side (default 64).")
@click.option("--examples", type=click.IntRange(SHARDS), default=4096, help="Images of each kind.")
@click.option("--steps", default=20, help="Of training for each kind (default 20).")
@click.option("--preset", help="Of the model; default: by the size.")
@click.option("--workers", default=1, help="Threads that decode (default 1).")
@click.option("--device", default="cpu", help="Where the model is (default cpu).")
def main(
    threads: int,
    log: bool,
    size: int,
    examples: int,
    steps: int,
    preset: str | None,
    workers: int,
    device: str,
) -> None:
    target = device_of(threads, device)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_DATASETS_CACHE"] = (
            f"{folder}/cache"  # read when `datasets` is imported, which is later
        )
        for kind, config in written(Path(folder), pictures(examples, size)).items():
            start = time.monotonic()
            dataset = open_dataset(config)
            opening = time.monotonic() - start
            rate = alone(dataset, target, workers)
            waiting, step = in_training(config, dataset, preset, steps, target, workers)
            rows.append([kind, f"{opening:.1f}", f"{rate:,.0f}", f"{step:.1f}", f"{waiting:.2%}"])
    header = ["kind", "opening, s", "alone, examples/s", "step, ms", "waiting"]
    report(markdown(header, rows), log=log)


def alone(dataset: Dataset, device: torch.device, workers: int, batch_size: int = 64) -> float:
    """Return examples a second without training, over one epoch or so."""
    stream = training_batches(dataset, batch_size, 0, workers=workers, device=device)
    next(stream)
    n = max(1, 3 * len(dataset.splits["train"]) // batch_size // 4)
    start = time.monotonic()
    for _ in itertools.islice(stream, n):
        pass
    return n * batch_size / (time.monotonic() - start)


def in_training(
    config: DataConfig,
    dataset: Dataset,
    preset: str | None,
    steps: int,
    device: torch.device,
    workers: int,
) -> tuple[float, float]:
    """Return the share of the time spent waiting, and the milliseconds of a step."""
    settings = {"training.steps": WARM_UP + steps}
    run = configure(config, dataset, preset=preset, settings=settings)
    state = TrainingState.start(build(run.model, seed=0).to(device), run.training)
    stream: Batches = training_batches(
        dataset, run.training.batch_size, 0, workers=workers, device=device
    )
    start = waited = 0.0
    for record in fit(state, stream, run.training):
        if record.step == WARM_UP:
            start, waited = time.monotonic(), stream.waited
    seconds = time.monotonic() - start
    return (stream.waited - waited) / seconds, 1000 * seconds / steps


def pictures(n: int, size: int) -> np.ndarray:
    """Return smooth random images with some noise, which PNG halves, as it does photographs."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (n, size // 8, size // 8, 3), dtype=np.uint8)
    smooth = [Image.fromarray(c).resize((size, size), Image.Resampling.BICUBIC) for c in coarse]
    noise = rng.integers(0, 8, (n, size, size, 3), dtype=np.uint8)
    return np.stack([np.asarray(image) // 2 for image in smooth]) + noise


def written(folder: Path, images: np.ndarray) -> dict[str, DataConfig]:
    """Write the images in every kind; return how each is opened."""
    np.save(folder / "a.npy", images)
    contents = [png(image) for image in images]
    for kind in "folder", "parquet", "tar":
        (folder / kind).mkdir()
    for i, content in enumerate(contents):
        (folder / "folder" / f"{i:06}.png").write_bytes(content)
    for shard, own in enumerate(np.array_split(np.arange(len(images)), SHARDS)):
        table = pa.table({"image": [{"bytes": contents[i], "path": None} for i in own]})
        pq.write_table(table, folder / "parquet" / f"{shard}.parquet", row_group_size=100)
        with tarfile.open(folder / "tar" / f"{shard}.tar", "w") as archive:
            for i in own:
                info = tarfile.TarInfo(f"{i:06}.png")
                info.size = len(contents[i])
                archive.addfile(info, io.BytesIO(contents[i]))
    streamed = {"streaming": True, "hold_out": len(images) // 16, "shuffle_buffer": 500}
    return {
        "array, .npy": DataConfig(source=str(folder / "a.npy")),
        "folder of PNG": DataConfig(source=str(folder / "folder")),
        "parquet": DataConfig(source=str(folder / "parquet")),
        "parquet, streamed": DataConfig(source=str(folder / "parquet"), **streamed),
        "tar": DataConfig(source=str(folder / "tar")),
        "tar, streamed": DataConfig(source=str(folder / "tar"), **streamed),
        "tar, streamed, flip and crop": DataConfig(
            source=str(folder / "tar"),
            flip="horizontal",
            crop=(images.shape[1] - 8, images.shape[2] - 8),
            **streamed,
        ),
    }


def png(image: np.ndarray) -> bytes:
    """Return an image as PNG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


if __name__ == "__main__":
    main()
