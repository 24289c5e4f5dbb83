"""Run the notebooks of this folder and keep what they print and show: make notebooks.

    python docs/notebooks/execute.py [NAME …]

Each runs in a folder of its own. Pictures are stored with a palette of 64 colours, and nothing is
kept of when and how fast a cell ran, so that a notebook changes only where its results do.
"""

from __future__ import annotations

import base64
import io
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent
_SECONDS, _COLOURS = 300, 64


def execute(path: Path, seconds: int = _SECONDS) -> nbformat.NotebookNode:
    """Run a notebook in an empty folder; return it with its outputs.

    Raises CellExecutionError for a cell that fails, CellTimeoutError for one that takes longer.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        where = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=seconds, resources=where, coalesce_streams=True).execute()
    for cell in notebook.cells:
        cell.metadata.clear()
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = _light(data["image/png"])
                data["text/plain"] = "a picture"
                for other in set(data) - {"image/png", "text/plain"}:
                    del data[other]
    notebook.metadata.pop("language_info", None)  # the version of Python
    return notebook


def _light(png: str) -> str:
    """Return a picture with few colours."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    file = io.BytesIO()
    picture.quantize(_COLOURS).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.ipynb")):
        if not sys.argv[1:] or path.stem in sys.argv[1:]:
            nbformat.write(execute(path), path)
            print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")
