"""Everything that the package reads, each with a reader and what a right answer is."""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from attacks.commands import FEW, QUIET
from attacks.isolation import Outcome, isolated
from variational_diffusion.cli import run as vdm
from variational_diffusion.config import DataConfig
from variational_diffusion.data import open_dataset
from variational_diffusion.errors import InputError
from variational_diffusion.machine.execution import Execution
from variational_diffusion.model import VDM
from variational_diffusion.run.averages import write_average
from variational_diffusion.run.directory import Run
from variational_diffusion.run.noise_errors import measured_errors
from variational_diffusion.run.trained import Trained
from variational_diffusion.storage import json_lines

TESTS = Path(__file__).parents[2] / "tests"
SECONDS = 60.0


class Kind(NamedTuple):
    """A kind of what is read.

    Attributes:
        name: Of the kind.
        file: What is damaged, in the prepared folder; `*` for any of several.
        whole: What is copied for a case: the file, or the folder that it belongs to, or several.
        read: Path of the copy of `whole` (of several: of their folder) → a value, equal whenever
            the same was read.
        answer: What may be read besides the value itself. "same": nothing. "part": some of the
            entries of the value, in their order. "any": other values, of what has no digests.
    """

    name: str
    file: str
    whole: str
    read: Callable[[Path], Any]
    answer: Literal["same", "part", "any"] = "same"


def digest(array: Any) -> str:
    """Return a short digest of an array or tensor with its type and shape."""
    values = np.ascontiguousarray(array)
    text = f"{values.dtype}{values.shape}".encode()
    return hashlib.sha256(text + values.tobytes()).hexdigest()[:16]


def _model(vdm: VDM) -> dict[str, str]:
    return {name: digest(tensor) for name, tensor in vdm.state_dict().items()}


def _config(path: Path) -> Any:
    return Run.open(path).config.model_dump()


def _weights(name: str) -> Callable[[Path], dict[str, str]]:
    return lambda path: _model(Run.open(path).load(name))


def _state(path: Path) -> list[Any]:
    """Return digests of the state that training goes on from; an earlier one is right, too."""
    resumed = Run.open(path).resume()
    if resumed is None:
        return []
    state = resumed.state
    return [(state.step, _model(state.vdm), _model(state.average.module))]


def _average(path: Path) -> dict[str, str]:
    """Write an average as `vdm ema` does, and read it."""
    write_average(Run.open(path), 0.1)
    return _model(Run.open(path).load("ema-0.1"))


def _errors(path: Path) -> list[str]:
    """Return the measured errors; where what is kept is damaged, they are measured again."""
    trained = Trained.open(Run.open(path / "run", data=path / "photos"), "ema", Execution("cpu"))
    errors = measured_errors(trained)
    return [digest(errors.gamma), digest(errors.error)]


def _metrics(path: Path) -> list[Any]:
    return Run.open(path).metrics()


def _evaluations(path: Path) -> list[Any]:
    return json_lines.read(path / "evaluations.jsonl")


def _pretrained(path: Path) -> dict[str, str]:
    vdm = VDM.from_pretrained(path)
    assert vdm.config is not None
    return _model(vdm) | {"config": vdm.config.model_dump_json()}


def opened(path: Path) -> Any:
    dataset = open_dataset(DataConfig(source=str(path), validation=0.2, test=0.2))
    return {name: digest(split.read()) for name, split in dataset.splits.items()}


def _unpacked(path: Path) -> list[Any]:
    """Decompress with the run beside the file, as the command does."""
    out = path / "back"
    code = vdm(["decompress", str(path / "run"), str(path / "photos.vdmz"), "--out", str(out)])
    if code == 2 and not out.exists():
        raise InputError("refused, as the command said")
    return [(file.name, digest(Image.open(file))) for file in sorted(out.glob("*"))]


def _golden(name: str) -> Callable[[Path], list[Any]]:
    """Return a reader of files of earlier versions, by the models of the tests."""

    def read(path: Path) -> list[Any]:
        if str(TESTS) not in sys.path:
            sys.path.insert(0, str(TESTS))
        import test_compression_golden as golden

        coder = golden.CODERS[name]()
        _, images = golden.read(path.read_bytes(), coder)
        return [(number, digest(values)) for number, values in sorted(images.items())]

    return read


PICTURES = {
    **{"png": {}, "webp": {"lossless": True}, "tiff": {}, "gif": {}, "bmp": {}, "jpg": {}},
    **{"jp2": {}, "ppm": {}, "tga": {}, "ico": {}, "pcx": {}, "sgi": {}, "im": {}, "avif": {}},
    **{"dds": {}, "qoi": {}, "icns": {}, "msp": {}, "xbm": {}},
}
"""Extension → how pillow writes a file of it."""

RUN_FILES = ("ema.safetensors", "model.safetensors", "best.safetensors")
KINDS = (
    Kind("run: config.json", "run/config.json", "run", _config),
    Kind("run: ema", "run/ema.safetensors", "run", _weights("ema")),
    Kind("run: raw weights", "run/model.safetensors", "run", _weights("raw")),
    Kind("run: best", "run/best.safetensors", "run", _weights("best")),
    Kind("run: states", "run/state/*.safetensors", "run", _state, "part"),
    Kind("run: averages", "run/averages/*.safetensors", "run", _average),
    Kind("run: measured errors", "run/errors-ema.safetensors", "run photos", _errors),
    Kind("run: kept", "run/kept/*.safetensors", "run photos.vdmz", _unpacked, "part"),
    Kind("run: metrics", "run/metrics.jsonl", "run", _metrics, "part"),
    Kind("run: evaluations", "run/evaluations.jsonl", "run", _evaluations, "part"),
    Kind("export: config.json", "hub/config.json", "hub", _pretrained),
    Kind("export: weights", "hub/model.safetensors", "hub", _pretrained),
    Kind("vdmz", "photos.vdmz", "run photos.vdmz", _unpacked, "part"),
    *(
        Kind(
            f"vdmz {file}", f"golden/{file}.vdmz", f"golden/{file}.vdmz", _golden(file[:-2]), "part"
        )
        for file in ("grey-2", "grey-3", "colour-2", "colour-3", "empty-2", "empty-3")
    ),
    *(
        Kind(f"image {end}", f"images-{end}/3.{end}", f"images-{end}", opened, "any")
        for end in PICTURES
    ),
    Kind("npy", "a.npy", "a.npy", opened, "any"),
    Kind("npy, reals", "r.npy", "r.npy", opened, "any"),
    Kind("npz", "a.npz", "a.npz", opened, "any"),
    Kind("npz, packed", "p.npz", "p.npz", opened, "any"),
    Kind("parquet", "a.parquet", "a.parquet", opened, "any"),
    Kind("parquet, images", "i.parquet", "i.parquet", opened, "any"),
    Kind("idx", "idx/train-images-idx3-ubyte", "idx", opened, "any"),
    Kind("tar", "a.tar", "a.tar", opened, "any"),
)


def prepare(base: Path) -> None:
    """Write a file of every kind into the prepared folder, in a child."""
    outcome = isolated(lambda: _prepare(base), seconds=600)
    if outcome.code:
        raise SystemExit(f"the files that are to be damaged cannot be made:\n{outcome.said}")


def _prepare(base: Path) -> int:
    rng = np.random.default_rng(1)
    for arguments in (
        ("evaluate", str(base / "run"), *FEW, *QUIET),
        ("evaluate", str(base / "run"), *FEW, "--draws", "2", *QUIET),
        ("export", str(base / "run"), "--hub", str(base / "hub"), "--threads", "1", "--json"),
    ):
        if vdm(list(arguments)):
            return 1
    (base / "golden").mkdir()
    for file in (TESTS / "golden").glob("*.vdmz"):
        (base / "golden" / file.name).write_bytes(file.read_bytes())
    images = rng.integers(0, 256, (24, 16, 16), dtype=np.uint8)
    for end, options in PICTURES.items():
        folder = base / f"images-{end}"
        folder.mkdir()
        for number in range(8):
            picture = Image.fromarray(images[number])
            if end in ("msp", "xbm"):
                picture = picture.convert("1")
            if end in ("avif", "dds", "qoi", "icns"):
                picture = picture.convert("RGB")
            if end in ("ico", "icns"):
                picture = picture.resize((32, 32))
            picture.save(folder / f"{number}.{end}", **options)
    np.save(base / "a.npy", images)
    np.save(base / "r.npy", rng.normal(size=(40, 5)))
    np.savez(base / "a.npz", images=images)
    np.savez_compressed(base / "p.npz", images=images)
    pyarrow.parquet.write_table(
        pyarrow.table({"x": list(rng.normal(size=(40, 4)))}), base / "a.parquet"
    )
    encoded = []
    with tarfile.open(base / "a.tar", "w") as tar:
        for number, image in enumerate(images):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            encoded.append({"bytes": buffer.getvalue(), "path": f"{number}.png"})
            member = tarfile.TarInfo(f"{number:02}.png")
            member.size = len(buffer.getvalue())
            tar.addfile(member, io.BytesIO(buffer.getvalue()))
    pyarrow.parquet.write_table(pyarrow.table({"image": encoded}), base / "i.parquet")
    (base / "idx").mkdir()
    for name in ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte"):
        sizes = np.array([0x803, *images.shape], ">u4").tobytes()
        (base / "idx" / name).write_bytes(sizes + images.tobytes())
    return 0


def reader(kind: Kind, path: Path) -> Callable[[], tuple[str, Any]]:
    """Return work for a child: ("read", value) or ("refused", message)."""

    def work() -> tuple[str, Any]:
        try:
            return "read", kind.read(path)
        except InputError as error:
            return "refused", str(error)

    return work


def fault(kind: Kind, outcome: Outcome, whole: Any) -> str | None:
    """Return what is wrong with how something damaged was read; None for a right answer.

    whole: what is read where nothing is damaged.
    """
    what = outcome.fault(codes=(0,))
    if what is not None:
        return what
    answer, value = outcome.value
    if answer == "refused":
        return "a message of several lines" if "\n" in value else None
    if value == whole or kind.answer == "any":
        return None
    if kind.answer == "part":
        rest = iter(whole)
        if kind.name == "run: states" or all(entry in rest for entry in value):
            return None if kind.name != "run: states" else _other_state(value, whole)
    return "other values are read"


def _other_state(value: list[Any], whole: list[Any]) -> str | None:
    """An earlier state is right, and a file that says another step is not."""
    if not value or value[0][0] < whole[0][0]:
        return None
    return "another state is read"
