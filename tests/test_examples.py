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
