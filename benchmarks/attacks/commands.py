"""Commands that write, on a small run, and what a folder looks like after they did it well."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from attacks.isolation import Outcome, isolated
from variational_diffusion.cli import run as vdm
from variational_diffusion.config import DataConfig
from variational_diffusion.data import open_dataset
from variational_diffusion.errors import InputError
from variational_diffusion.run.training import train
from variational_diffusion.storage import json_lines
from variational_diffusion.storage.tensors import read_tensors

QUIET = ("--threads", "1", "--device", "cpu", "--json")
SETTINGS = {
    "network.widths": [8, 8],
    "network.blocks": 1,
    "network.attention": False,
    "training.batch_size": 8,
    "training.warmup_steps": 2,
}
STEPS = 6


class Command(NamedTuple):
    """A command that writes.

    Attributes:
        name: Of the command, and what it writes.
        arguments: With `{here}` for the folder of the case; or a function of that folder that
            returns an exit code.
        figure: Key of the figure in what it prints, which must be shown even if nothing can be
            kept.
    """

    name: str
    arguments: tuple[str, ...] | Callable[[Path], int]
    figure: str | None = None

    def work(self, here: Path) -> Callable[[], int]:
        """Return what does it in a folder."""
        if not isinstance(self.arguments, tuple):
            return partial(self.arguments, here)
        filled = [argument.replace("{here}", str(here)) for argument in self.arguments]
        return lambda: vdm(filled)


def trained(here: Path, name: str = "run", *, steps: int, seed: int = 0) -> int:
    """Train a small run on the photos of a folder, as the command does but saving at every step."""
    try:
        train(
            open_dataset(DataConfig(source=str(here / "photos"), validation=0.2, test=0.2)),
            here / name,
            steps=steps,
            seed=seed,
            every=0.0,
            settings=SETTINGS,
            precision="float32",
            device="cpu",
            threads=1,
            progress=False,
        )
    except InputError as error:
        print(f"vdm: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


RUN, OUT = "{here}/run", "{here}/out"
FEW = ("--limit", "6")
ROUNDS = ("--rounds", "2")
COMMANDS = (
    Command("train", partial(trained, steps=5)),
    Command("train: on with it", partial(trained, steps=9)),
    Command(
        "evaluate",
        (
            *("evaluate", RUN, *FEW, *ROUNDS, "--table", f"{OUT}/b.csv"),
            *("--maps", f"{OUT}/m.png", *QUIET),
        ),
        "bits_per_dim",
    ),
    Command("evaluate: record", ("evaluate", RUN, *FEW, *ROUNDS, *QUIET), "bits_per_dim"),
    Command(
        "evaluate: chain",
        (
            *("evaluate", RUN, *FEW, *ROUNDS, "--estimator", "discrete", "--steps", "4"),
            *("--grid", "optimal", "--variance", "position", *QUIET),
        ),
        "bits_per_dim",
    ),
    Command(
        "compare",
        ("compare", RUN, "{here}/other", *FEW, *ROUNDS, "--table", f"{OUT}/c.csv", *QUIET),
    ),
    Command(
        "score",
        (
            *("score", RUN, *FEW, "--score", "bits", "--table", f"{OUT}/s.csv"),
            *("--figure", f"{OUT}/f.png", "--sheet", f"{OUT}/s.png", *QUIET),
        ),
        "false_alarms",
    ),
    Command(
        "sample: sheet",
        (
            *("sample", RUN, "--n", "4", "--steps", "2", "--out", f"{OUT}/s.png"),
            *("--table", f"{OUT}/s.csv", "--animate", f"{OUT}/s.gif", *QUIET),
        ),
    ),
    Command(
        "sample: folder",
        ("sample", RUN, "--n", "4", "--steps", "2", "--out", f"{OUT}/samples", *QUIET),
    ),
    Command(
        "sample: array",
        ("sample", RUN, "--n", "4", "--steps", "2", "--out", f"{OUT}/s.npy", *QUIET),
    ),
    Command(
        "edit",
        (
            *("edit", "vary", RUN, "--gamma", "0", "--steps", "2", "--n", "2", "--limit", "2"),
            *("--out", f"{OUT}/e.png", *QUIET),
        ),
    ),
    Command(
        "compress",
        ("compress", RUN, *FEW, "--steps", "4", "--out", f"{OUT}/new.vdmz", *QUIET),
    ),
    Command(
        "decompress: folder",
        ("decompress", RUN, "{here}/photos.vdmz", "--out", f"{OUT}/back", *QUIET),
    ),
    Command(
        "decompress: array",
        ("decompress", RUN, "{here}/photos.vdmz", "--out", f"{OUT}/back.npy", *QUIET),
    ),
    Command("export: folder", ("export", RUN, "--hub", f"{OUT}/hub", "--threads", "1", "--json")),
    Command("export: onnx", ("export", RUN, "--onnx", f"{OUT}/m.onnx", "--threads", "1", "--json")),
    Command("ema", ("ema", RUN, "--width", "0.1", "--limit", "4", "--draws", "1", *QUIET)),
    Command("variance", ("variance", RUN, "--steps", "2", *QUIET)),
    Command(
        "schedule",
        ("schedule", RUN, "--evaluations", "2000", "--out", f"{OUT}/g.png", *QUIET),
    ),
    Command(
        "report",
        (
            *("report", RUN, "--limit", "4", "--n", "4", "--steps", "2"),
            *("--evaluations", "2000", "--training-examples", "4", *QUIET),
        ),
    ),
    Command("data", ("data", "{here}/photos", "--out", f"{OUT}/d.png", "--json")),
)


def prepare(base: Path) -> None:
    """Make a folder of photos, two runs of them and a compressed file, in a child."""
    outcome = isolated(lambda: _prepare(base), seconds=600)
    if outcome.code:
        raise SystemExit(f"the runs that are to be attacked cannot be made:\n{outcome.said}")


def _prepare(base: Path) -> int:
    rng = np.random.default_rng(0)
    (base / "photos").mkdir(parents=True)
    (base / "out").mkdir()
    for number in range(48):
        pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(base / "photos" / f"{number:02}.png")
    packed = str(base / "photos.vdmz")
    return (
        trained(base, "run", steps=STEPS)
        or trained(base, "other", steps=STEPS, seed=1)
        or vdm(["compress", str(base / "run"), *FEW, "--steps", "4", "--out", packed, *QUIET])
    )


def copied(base: Path, here: Path, command: Command) -> Path:
    """Return a copy of the prepared folder for a case of a command."""
    here.mkdir(mode=0o777, parents=True)
    for path in base.iterdir():
        if path.is_dir() and not (command.name == "train" and path.name == "run"):
            shutil.copytree(path, here / path.name)
        elif path.is_file():
            shutil.copy2(path, here / path.name)
    return here


def files(here: Path) -> dict[str, bytes]:
    """Return the contents of all files below a folder, by their names."""
    return {
        str(path.relative_to(here)): path.read_bytes()
        for path in sorted(here.rglob("*"))
        if path.is_file()
    }


_VOLATILE = {
    *("seconds", "time", "when", "date", "commit", "memory", "waiting", "machine", "versions"),
    *("examples_per_second", "identity", "run", "digest", "save", "command", "threads", "device"),
    *("training_seconds", "fingerprint", "steps_per_second", "source"),
    *("train", "variance", "gradient_norm"),  # means over the steps of one process
}
"""What differs between two runs that did the same."""


def meaning(path: Path) -> Any:
    """Return what is in a file, as far as it is the same whenever the same was done.

    Raises any error for a file that is not whole.
    """
    return _MEANINGS.get(path.suffix, Path.read_bytes)(path)


def _tensors(path: Path) -> Any:
    tensors, _ = read_tensors(path)
    return {name: (tensor.dtype, tensor.numpy().tobytes()) for name, tensor in tensors.items()}


def _lines(path: Path) -> list[str]:
    """What is asked twice is recorded twice."""
    return sorted({json.dumps(_steady(line), sort_keys=True) for line in json_lines.read(path)})


def _page(path: Path) -> bool:
    text = path.read_text(encoding="utf-8").rstrip()
    if not text.endswith("</html>"):
        raise ValueError("a page without an end")
    return True


_MEANINGS: dict[str, Callable[[Path], Any]] = {
    ".safetensors": _tensors,
    ".jsonl": _lines,
    ".json": lambda path: _steady(json.loads(path.read_text(encoding="utf-8"))),
    ".html": _page,
    ".png": lambda path: np.asarray(Image.open(path)).tobytes(),  # the text in it names folders
    ".csv": lambda path: list(csv.reader(path.read_text(encoding="utf-8").splitlines())),
    **dict.fromkeys((".md", ".lock", ".onnx"), Path.exists),  # with dates and versions in them
}
"""Extension → what is the same whenever the same was done; of other files that is all of them."""


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _steady(x) for name, x in value.items() if name not in _VOLATILE}
    if isinstance(value, list):
        return [_steady(x) for x in value]
    return value


def meanings(here: Path) -> dict[str, Any]:
    """Return the meaning of all files below a folder; of those that are not whole, the error."""
    found: dict[str, Any] = {}
    for path in sorted(here.rglob("*")):
        if path.is_file():
            try:
                found[str(path.relative_to(here))] = meaning(path)
            except Exception as error:
                found[str(path.relative_to(here))] = f"not whole: {error}"
    return found


def is_temporary(name: str) -> bool:
    """Whether a file is one that is being written, or is in a folder that is."""
    return any(part.startswith(".") for part in Path(name).parts)


def figure(command: Command, outcome: Outcome) -> Any:
    """Return the figure that a command printed; None where there is none."""
    if command.figure is None:
        return None
    for line in outcome.printed.splitlines():
        try:
            return json.loads(line)[command.figure]
        except (ValueError, KeyError, TypeError):
            continue
    return None
