"""A light core: what the bare requirements do alone, and how what is missing is named."""

import ast
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import bare
import variational_diffusion
from variational_diffusion.cli import COMMANDS
from variational_diffusion.errors import InputError, needs
from variational_diffusion.machine import environment

ROOT = Path(variational_diffusion.__file__).parent
BARE = bare.PROJECT["dependencies"]
EXTRAS = bare.PROJECT["optional-dependencies"]
FOR_USERS = set(EXTRAS) - {"all", "docs", "dev"}


def run_bare(*arguments, folder=""):
    """Run a module with the bare requirements alone; return what it printed."""
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    variables = os.environ | {"PYTHONPATH": path}
    command = [sys.executable, bare.__file__, "-m", *arguments]
    return subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env=variables
    ).stdout


def test_the_bare_wheel_asks_for_little():
    assert len(BARE) <= 12


def test_every_extra_says_what_needs_it():
    assert set(environment.EXTRAS) == FOR_USERS
    for use in environment.EXTRAS.values():
        for command in re.findall(r"vdm ([\w-]+)", use):
            assert command in COMMANDS
        for module in re.findall(r"variational_diffusion[\w.]+", use):
            assert find_spec(module) is not None
    (everything,) = map(Requirement, EXTRAS["all"])
    assert everything.extras == FOR_USERS


def test_requirements_are_written_as_doctor_reads_them():
    bounds = dict.fromkeys(BARE) | {text: extra for extra in FOR_USERS for text in EXTRAS[extra]}
    for text, extra in bounds.items():
        line = text if extra is None else f"{text}; extra == '{extra}'"
        asked = environment._REQUIREMENT.fullmatch(line)
        assert asked, line
        parsed = Requirement(text)
        found = asked["name"], asked["wanted"], asked["extra"]
        assert found == (parsed.name, str(parsed.specifier), extra)


def test_every_package_that_is_named_belongs_to_the_extra():
    """An import in `with needs(extra)` is of a package of that extra, or of its requirements."""
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.With) and "needs(" in ast.unparse(node.items[0])):
                continue
            (extra,) = (argument.value for argument in node.items[0].context_expr.args)
            assert extra in FOR_USERS, path
            names = {
                name.partition(".")[0]
                for part in node.body
                for name in (
                    [alias.name for alias in part.names]
                    if isinstance(part, ast.Import)
                    else [part.module]
                )
            }
            assert not names & bare.hidden(*EXTRAS[extra]), f"{path}: {names}"


def test_what_is_missing_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    line = r"torchdiffeq is not installed; pip install 'variational-diffusion\[ode\]'"
    with pytest.raises(InputError, match=f"^{line}$"), needs("ode"):
        import torchdiffeq  # noqa: F401, PLC0415
    with pytest.raises(InputError, match=r"^cannot import name .*; pip install"), needs("ode"):
        from math import no_such_name  # noqa: F401, PLC0415


def test_the_bare_requirements_suffice_for_the_demo(tmp_path):
    run = tmp_path / "demo"
    arguments = ["demo", "--run", str(run), "--minutes", "0.02", "--threads", "1"]
    text = run_bare("variational_diffusion", *arguments)
    for row in ("297 test images", "bound", "prior", "reconstruction", "diffusion"):
        assert row in text
    for row in ("order-0 entropy", "xz", "PNG", "WebP", "sheet.png", "reverse-process.gif"):
        assert row in text
    assert (run / "samples" / "sheet.png").exists()


WALK = """
import importlib, pkgutil
import variational_diffusion as package
for module in pkgutil.walk_packages(package.__path__, "variational_diffusion.", lambda name: None):
    try:
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    except package.InputError as error:
        print(module.name, error, sep=" | ")
"""


def test_a_module_is_there_or_says_what_to_install(tmp_path):
    (tmp_path / "walk.py").write_text(WALK)
    rooms = set()
    for line in run_bare("walk", folder=tmp_path).splitlines():
        module, _, problem = line.partition(" | ")
        assert re.fullmatch(
            r"[\w.]+ is not installed; pip install 'variational-diffusion\[\w+\]'", problem
        )
        rooms.add(module.split(".")[1])
    assert rooms == {"data", "interchange", "report", "web"}  # and what lies in them
