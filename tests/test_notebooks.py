"""The notebooks run, are small, and hold what their cells print and show."""

import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

sys.path.insert(0, str(FOLDER))
from execute import execute  # noqa: E402


def outputs(cells):
    """Return the kinds of the outputs of each cell of code."""
    return [
        [output["output_type"] for output in cell["outputs"]]
        for cell in cells
        if cell["cell_type"] == "code"
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_holds_what_it_shows(path, monkeypatch):
    """Half a minute each on an idle core. A cell that fails is an error."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    kept = json.loads(path.read_text(encoding="utf-8"))
    made = execute(path, seconds=280)
    assert outputs(kept["cells"]) == outputs(made.cells), "type: make notebooks"
    assert any(
        "image/png" in output.get("data", {})
        for c in kept["cells"]
        for output in c.get("outputs", ())
    )


def test_there_are_four_small_ones():
    assert [path.stem for path in NOTEBOOKS] == ["images", "network", "samplers", "theory"]
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 400_000
    for path in NOTEBOOKS:
        assert "/tmp" not in path.read_text(encoding="utf-8")
