"""A module imports from levels below its own, and modules of one level do not know each other."""

import ast
from pathlib import Path

import pytest

import variational_diffusion

LEVELS = [
    {"errors", "graphs", "environment"},
    {"units"},
    {"numerics", "lattice", "config", "files", "memory", "processes", "weightings"}
    | {"conditions", "modes"},
    {"schedules", "process", "data", "ema", "posthoc", "classical", "pictures", "tracking"}
    | {"optimizers", "tensors", "journal", "measurements"},
    {"decoders", "networks", "objective", "grids", "flow", "guidance", "quality", "hub"},
    {"sampling"},
    {"model"},
    {"training", "likelihood", "profile", "sharding", "heads", "compression", "interchange"},
    {"checkpoint", "presets", "figures", "anomaly", "overfit", "plan", "editing"}
    | {"classification"},
    {"snapshots", "report", "evaluations", "examples"},
    {"web", "comparison"},
    {"cli"},
]
"""Lowest first; a folder is one module."""

ROOT = Path(variational_diffusion.__file__).parent
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}


def imports(path: Path) -> set[str]:
    """Return the modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "variational_diffusion":
                found.add(rest.split(".")[0])
    return found


FILES = [path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_from_below(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert own in LEVEL, f"{own} has no level: add it to LEVELS and to docs/architecture.md"
    for name in imports(path) - {own}:
        assert LEVEL[name] < LEVEL[own], f"{path} imports {name}, which is not below it"


def test_every_level_is_documented():
    text = (ROOT.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text or f"`{name}/`" in text for name in LEVEL)
