"""A module imports from levels below its own, and modules of one level do not know each other."""

import ast
import re
from pathlib import Path

import pytest

import variational_diffusion

ROOT = Path(variational_diffusion.__file__).parent
DOCUMENT = ROOT.parents[1] / "docs" / "architecture.md"
ROW = re.compile(r"^\| (\d+) \| ([^|]+) \|", re.MULTILINE)

LEVEL = {
    name: int(level)
    for level, names in ROW.findall(DOCUMENT.read_text(encoding="utf-8"))
    for name in re.findall(r"`(\w+)/?`", names)
}
"""The table of docs/architecture.md, lowest first; a folder is one module."""


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
    assert own in LEVEL, f"{own} has no level: add it to the table of docs/architecture.md"
    for name in imports(path) - {own}:
        assert LEVEL[name] < LEVEL[own], f"{path} imports {name}, which is not below it"


def test_the_table_names_what_there_is():
    there = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in FILES}
    assert set(LEVEL) == there
