"""Lossless compression: what a file takes, where the time goes, and who else can decode it.

    vdm train fashion-mnist --run runs/fashion --minutes 20
    vdm variance runs/fashion
    python benchmarks/compression.py runs/fashion --limit 1000 --configuration none

Test images are compressed as by the command and decompressed in this process, which gives the
sizes, the share of the time that is the network's, and the speed of the coder. Then every
configuration decompresses the same file in a process of its own: other numbers of threads, other
batches, other memory formats, other instructions of numpy, torch, oneDNN and MKL. `--other-torch`
adds another version of torch: a folder that `pip install --target FOLDER torch==VERSION` filled.
The table shows the images that differ, and how far the network's outputs are from those here, as a
share of the band within which roundings are written down (compression/rounding.py).

    python benchmarks/compression.py RUN DATA --steps 5 --random 10000 --tables 10000000

`--random` has so many images of random values coded by the model alone, too: no classical coder
takes them out of its hands. `--tables` compares the tables of p(x|z_0) of so many random pixels,
for a chain of one step and several numbers of levels, and the symbols that are drawn with them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from common import log_option, markdown, report, threads_option

from variational_diffusion import compress, decompress
from variational_diffusion.compression import ChainCoder, Encoded, decode, encode
from variational_diffusion.compression.chain import FINEST, STD_SIZE
from variational_diffusion.compression.exact import PER_OCTAVE, on_grid
from variational_diffusion.compression.lattice import lattice_of
from variational_diffusion.compression.levels import nearest_of, parts, reach_of, table_of
from variational_diffusion.compression.rounding import BAND
from variational_diffusion.compression.stack import Stack
from variational_diffusion.model import VDM
from variational_diffusion.run.directory import Run
from variational_diffusion.run.examples import chosen_examples

PROBED = 4  # images whose outputs are compared, at every step


@dataclass(frozen=True)
class Configuration:
    """How a decoder computes. together: images that the network sees at once."""

    threads: int = 1
    together: int | None = None
    onednn: bool = True
    channels_last: bool = False
    environment: dict[str, str] = field(default_factory=dict)


SIMD = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
"""The sets of instructions above its baseline that numpy found here, rising."""

CONFIGURATIONS = {
    "as encoded": Configuration(),
    "two threads": Configuration(threads=2, environment={"OMP_WAIT_POLICY": "PASSIVE"}),
    "one image at a time": Configuration(together=1),
    "64 images at a time": Configuration(together=64),
    "oneDNN off": Configuration(onednn=False),
    "channels last": Configuration(channels_last=True),
    "numpy without its best instructions": Configuration(
        environment={"NPY_DISABLE_CPU_FEATURES": " ".join(SIMD[1:])}
    ),
    "numpy's baseline": Configuration(environment={"NPY_DISABLE_CPU_FEATURES": " ".join(SIMD)}),
    "torch without vector instructions": Configuration(
        environment={"ATEN_CPU_CAPABILITY": "default"}
    ),
    "torch with AVX2": Configuration(environment={"ATEN_CPU_CAPABILITY": "avx2"}),
    "torch with AVX-512": Configuration(environment={"ATEN_CPU_CAPABILITY": "avx512"}),
    "oneDNN with SSE4.1": Configuration(environment={"DNNL_MAX_CPU_ISA": "SSE41"}),
    "oneDNN with AVX2": Configuration(environment={"DNNL_MAX_CPU_ISA": "AVX2"}),
    "oneDNN with AVX-512": Configuration(environment={"DNNL_MAX_CPU_ISA": "AVX512_CORE"}),
    "MKL's conditional numerical reproducibility": Configuration(
        environment={"MKL_CBWR": "COMPATIBLE"}
    ),
    "MKL with SSE4.2": Configuration(environment={"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}),
    "MKL with AVX2": Configuration(environment={"MKL_ENABLE_INSTRUCTIONS": "AVX2"}),
    "all at their least": Configuration(
        together=1,
        onednn=False,
        environment={
            "NPY_DISABLE_CPU_FEATURES": " ".join(SIMD),
            "ATEN_CPU_CAPABILITY": "default",
            "DNNL_MAX_CPU_ISA": "SSE41",
            "MKL_CBWR": "COMPATIBLE",
        },
    ),
}

TABLE_LEVELS = (2, 17, 256, 65_536)


class Network:
    """The network's share of the time between its first call and its last."""

    def __init__(self) -> None:
        self.seconds = self.begin = self.end = 0.0

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Time every reverse step of every model."""
        reverse = VDM.reverse

        def measured(*arguments: Any) -> Any:
            begin = time.perf_counter()
            normal = reverse(*arguments)
            self.end = time.perf_counter()
            self.begin = self.begin or begin
            self.seconds += self.end - begin
            return normal

        # compress makes its own models: it is timed from outside
        VDM.reverse = measured  # type: ignore[method-assign]
        try:
            yield
        finally:
            VDM.reverse = reverse  # type: ignore[method-assign]

    @property
    def total(self) -> float:
        """Seconds from the first call to the end of the last."""
        return self.end - self.begin


@contextlib.contextmanager
def coders(configuration: Configuration) -> Iterator[list[ChainCoder]]:
    """Let coders compute by a configuration; give the list of those that are made."""
    made: list[ChainCoder] = []
    construct = ChainCoder.__init__

    def constructed(self: ChainCoder, *arguments: Any, **options: Any) -> None:
        construct(self, *arguments, **options)
        self.together = configuration.together or self.together
        if configuration.channels_last:
            self._vdm.to(memory_format=torch.channels_last)
        made.append(self)

    # no option says this, nor should it: coders are changed as they are made
    ChainCoder.__init__ = constructed  # type: ignore[method-assign]
    torch.backends.mkldnn.enabled = configuration.onednn
    try:
        yield made
    finally:
        ChainCoder.__init__ = construct  # type: ignore[method-assign]
        torch.backends.mkldnn.enabled = True


def probe(coder: ChainCoder, latents: list[np.ndarray]) -> list[np.ndarray]:
    """Return what is rounded at every step of the chain, in half widths of the band."""
    found = []
    for step, z_t in enumerate(latents, 1):
        mean, std = coder._reverse(z_t, step)
        size = FINEST / coder._lattice.width[step - 1]
        logs = PER_OCTAVE * np.log2(std)
        found.append(np.stack([FINEST * mean / (BAND * size), logs / (BAND * STD_SIZE)]))
    return found


def probed_latents(coder: ChainCoder, x: np.ndarray) -> list[np.ndarray]:
    """Return latents of every step for images x, on their lattice."""
    generator = np.random.default_rng(0)
    encoded = (2 * x[:PROBED].reshape(-1, *coder.shape).astype(np.float64) + 1) / coder.levels - 1
    latents = []
    for gamma, width in zip(coder.gammas[-2::-1], coder._lattice.width[1:], strict=True):
        alpha, sigma = (float(np.sqrt(1 / (1 + np.exp(sign * gamma)))) for sign in (1, -1))
        z = alpha * encoded + sigma * generator.standard_normal(encoded.shape)
        latents.append(np.rint(z / width).astype(np.int64))
    return latents


def symbols_per_second(repeats: int = 15) -> dict[str, float]:
    """Return the median speed of each operation of the stack on Gaussians, in seconds of a core."""
    generator = np.random.default_rng(0)
    mean = generator.normal(0, 300, 1 << 17)
    std = np.exp2(generator.uniform(4, 6, mean.shape))
    stack = Stack(generator.integers(0, 2**32, 1 << 18, dtype=np.uint32), sealed=True)
    speeds: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name in ("draw", "push", "pop", "undraw"):
            begin = time.thread_time()
            if name == "draw":
                z = stack.draw(mean, 20.0)
            elif name == "push":
                stack.push(z, mean, std)
            elif name == "pop":
                z = stack.pop(mean, std)
            else:
                stack.undraw(z, mean, 20.0)
            speeds.setdefault(name, []).append(mean.size / (time.thread_time() - begin))
    return {name: float(np.median(found)) for name, found in speeds.items()}


def decoded_by(
    configuration: Configuration,
    run: str,
    file: Path,
    folder: Path,
    other_torch: str | None,
    compared: dict[str, int],
) -> dict[str, Any]:
    """Decompress in another process; return what it found, and seconds."""
    environment = os.environ | configuration.environment
    if other_torch is not None:
        environment["PYTHONPATH"] = os.pathsep.join(
            [other_torch, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        )
    with tempfile.TemporaryDirectory(dir=folder) as out:
        task = {
            "run": run,
            "file": str(file),
            "out": f"{out}/x.npy",
            "settings": asdict(configuration),
            **compared,
        }
        process = subprocess.run(
            [sys.executable, __file__, run, "--task", json.dumps(task)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if process.returncode:
            raise RuntimeError(process.stderr)
        found = json.loads(process.stdout)
        x = np.load(folder / "original.npy")
        differ = np.load(f"{out}/x.npy").reshape(x.shape) != x
    return found | {"wrong": int(differ.reshape(len(x), -1).any(1).sum())}


def tables_digest(levels: int, pixels: int) -> str:
    """Return a digest of the tables of random pixels, and of the symbols drawn with them."""
    gamma_0 = np.rint(1024 * (-13.3 + 2 * np.log(256 / levels))) / 1024
    lattice = lattice_of(np.array([5.0, gamma_0]), levels)
    generator, digest = np.random.Generator(np.random.Philox(key=levels)), hashlib.sha256()
    stack = Stack(generator.integers(0, 2**32, pixels + 100, dtype=np.uint32), sealed=True)
    reach = reach_of(lattice.spacing)
    limit = round(1.1 * lattice.signal)
    for part in parts(pixels, reach):
        z_0 = generator.integers(-limit, limit, part.stop - part.start)
        position = on_grid(lattice.to_levels * z_0 + 0.5 * (levels - 1))
        nearest = nearest_of(position, levels)
        table = table_of(position, nearest, lattice.spacing, levels, reach)
        digest.update(table.tobytes())
        digest.update(stack.pop_table(table).tobytes())
    digest.update(stack.words().tobytes())
    return digest.hexdigest()


def random_images(coder: ChainCoder, images: int) -> np.ndarray:
    """Return images of random values."""
    generator = np.random.Generator(np.random.Philox(key=0))
    return generator.integers(0, coder.levels, (images, *coder.shape))


def by_model(coder: ChainCoder, images: int) -> bytes:
    """Return random images as the bytes of a group."""
    *_, done = encode(coder, random_images(coder, images)) if images else [Encoded()]
    return done.payload


def wrong_of_random(coder: ChainCoder, payload: bytes, images: int) -> int:
    """Return how many of the random images do not come back."""
    x, found = random_images(coder, images), 0
    with contextlib.suppress(ValueError):
        for place, values in decode(coder, payload, images) if images else []:
            found += int((values == x[place]).reshape(len(values), -1).all(1).sum())
    return images - found


def child(task: dict[str, Any]) -> None:
    """Decompress as a task says and print how far the outputs are from those of the encoder."""
    configuration, file = Configuration(**task["settings"]), Path(task["file"])
    begin = time.perf_counter()
    with coders(configuration) as made:
        decompress(task["run"], file, task["out"], threads=configuration.threads)
        seconds = time.perf_counter() - begin
        with np.load(file.with_suffix(".npz")) as arrays:
            steps = len(arrays.files) // 2
            outputs = probe(made[0], [arrays[f"z{i}"] for i in range(steps)])
            far = [np.abs(x - arrays[f"y{i}"]).max((1, 2, 3, 4)) for i, x in enumerate(outputs)]
    mean, std = np.max(far, 0).tolist()
    found = {"seconds": seconds, "mean": mean, "std": std, "torch": torch.__version__}
    payload = file.with_suffix(".random").read_bytes()
    found["random"] = wrong_of_random(made[0], payload, task["random"])
    print(json.dumps(found | {"tables": digests(task["tables"])}))


def digests(pixels: int) -> list[str]:
    """Return the digest of the tables for every number of levels, if pixels are asked for."""
    return [tables_digest(levels, pixels) for levels in TABLE_LEVELS] if pixels else []


@click.command()
@click.argument("run")
@click.argument("data", required=False)
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--steps", type=click.IntRange(1), help="Default: the command's own.")
@click.option("--fast", is_flag=True, help="In float32.")
@click.option(
    "--configuration",
    "names",
    multiple=True,
    type=click.Choice([*CONFIGURATIONS, "none"]),
    help="Default: all.",
)
@click.option("--other-torch", type=click.Path(exists=True), help="Folder of another torch.")
@click.option("--random", type=click.IntRange(0), default=0, help="Random images to be coded.")
@click.option("--tables", type=click.IntRange(0), default=0, help="Random pixels for tables.")
@click.option("--task", hidden=True)
@threads_option
@log_option
def main(
    run: str,
    data: str | None,
    limit: int,
    steps: int | None,
    fast: bool,
    names: tuple[str, ...],
    other_torch: str | None,
    random: int,
    tables: int,
    task: str | None,
    threads: int,
    log: bool,
) -> None:
    """Compress test images of a RUN, or DATA, and decompress them in many ways."""
    if task is not None:
        return child(json.loads(task))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "x.vdmz"
        x = np.asarray(chosen_examples(Run.open(run), data, None, limit).read())
        np.save(folder / "original.npy", x)
        encoding, decoding = Network(), Network()
        with coders(Configuration()) as made, encoding.timed():
            options = {"limit": limit, "steps": steps, "fast": fast, "threads": threads}
            told = compress(run, data, file, verify=False, **options).as_json()
        latents = probed_latents(made[0], x)
        outputs = probe(made[0], latents)
        arrays = {f"z{i}": z for i, z in enumerate(latents)}
        arrays |= {f"y{i}": y for i, y in enumerate(outputs)}
        np.savez(file.with_suffix(".npz"), **arrays)
        with decoding.timed():
            decompress(run, file, folder / "x.npy", threads=threads)
        assert np.array_equal(np.load(folder / "x.npy").reshape(x.shape), x)
        texts = [sizes(told), times(encoding, decoding, len(x))]
        if "none" not in names:
            file.with_suffix(".random").write_bytes(by_model(made[0], random))
            rows, expected = [], digests(tables)
            compared = {"random": random, "tables": tables}
            for configuration in names or CONFIGURATIONS:
                settings = CONFIGURATIONS[configuration]
                found = decoded_by(settings, run, file, folder, None, compared)
                rows.append(configuration_row(configuration, found, random, expected))
            if other_torch is not None:
                found = decoded_by(Configuration(), run, file, folder, other_torch, compared)
                rows.append(configuration_row(f"torch {found['torch']}", found, random, expected))
            header = ["decoded", "wrong images", "seconds", "means, of the band", "deviations"]
            header += ["wrong random images"] if random else []
            header += ["other tables, of levels"] if tables else []
            texts.append(markdown(header, rows))
    precision = "float32" if fast else "float64, portable"
    what = f"{data or Run.open(run).config.data.source}, {len(x)} images, T = {told['steps']}"
    report("\n\n".join([f"{what}, {precision}", *texts]), log=log)


def sizes(told: dict[str, Any]) -> str:
    """Return the table of what the file and other coders take."""
    bits, bound = told["bits_per_dim"], told["bound"] or float("nan")
    rows: list[list[object]] = [
        ["the file", f"{told['bytes']:,}", f"{bits:.4f}", ""],
        [f"the bound, T = {told['steps']}", "", f"{told['bound']:.4f}", ""],
    ]
    for part, value in told["overhead"].items():
        rows.append([f"+ {part}", "", f"{value:+.4f}", f"{value / bound:+.2%}"])
    rows[0][-1] = f"{bits / bound - 1:+.2%}"
    for coder, value in told["classical"].items():
        rows.append([coder, "", f"{value:.3f}", f"the file is {1 - bits / value:.1%} smaller"])
    return markdown(["", "bytes", "bits/dim", ""], rows)


def times(encoding: Network, decoding: Network, images: int) -> str:
    """Return the table of seconds, the network's share, and the coder's speed."""
    rows: list[list[object]] = [
        [name, f"{images / part.total:.2f}", f"{part.seconds / part.total:.1%}"]
        for name, part in (("encoding", encoding), ("decoding", decoding))
        if part.total > 0  # a model that knows nothing codes nothing
    ]
    speeds = symbols_per_second()
    note = ", ".join(f"{name} {speed / 1e6:.1f}" for name, speed in speeds.items())
    table = markdown(["", "images/s", "in the network"], rows)
    return f"{table}\n\nThe coder, million symbols in a second of a core: {note}."


def configuration_row(
    name: str, found: dict[str, Any], random: int, expected: list[str]
) -> list[object]:
    """Return a row of the table of configurations."""
    print(name, found, flush=True)
    row = [name, found["wrong"], f"{found['seconds']:.0f}"]
    row += [f"{found[part]:.2g}" for part in ("mean", "std")]
    row += [found["random"]] if random else []
    pairs = zip(TABLE_LEVELS, found["tables"], expected, strict=False)
    others = [str(levels) for levels, theirs, ours in pairs if theirs != ours]
    return [*row, ", ".join(others) or "none"] if expected else row


if __name__ == "__main__":
    main()
