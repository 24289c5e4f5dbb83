"""The examples run to their end, shortened."""

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_density_on_the_plane_integrates_to_one(tmp_path):
    """Within 1 %, whatever the model has learned in a few seconds."""
    out = tmp_path / "plane.png"
    options = ["--minutes", "0.1", "--points", "70", "--out", str(out)]
    result = subprocess.run(
        [sys.executable, EXAMPLES / "plane.py", "checkerboard", *options],
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"integrates to ([0-9.]+)", result.stdout)
    assert found is not None
    assert abs(float(found[1]) - 1) < 0.01
    assert out.stat().st_size > 10_000


def test_scans_of_twelve_bits(tmp_path):
    options = ["--count", "100", "--size", "12", "--minutes", "0.05"]
    options += ["--out", str(tmp_path / "scans")]
    result = subprocess.run(
        [sys.executable, EXAMPLES / "scans.py", *options],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "100 scans of shape (1, 12, 12) with 4096 levels" in result.stdout
    found = re.findall(r"^(?:healthy|with a lesion): ([0-9.]+) bits", result.stdout, re.MULTILINE)
    assert len(found) == 2


def test_a_folder_of_ones_own(tmp_path):
    out = tmp_path / "result"
    options = ["--minutes", "0.05", "--steps", "3", "--out", str(out)]
    result = subprocess.run(
        [sys.executable, EXAMPLES / "folder.py", *options],
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search(
        r"^[0-9.]+ ± [0-9.]+ bits/dim \(5[0-9] test examples", result.stdout, re.MULTILINE
    )
    assert (out / "samples.png").stat().st_size > 1_000
    assert "marked by" in result.stdout
