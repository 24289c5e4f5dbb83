"""The README: its Python runs, and its commands and links exist."""

import re
from pathlib import Path

import pytest

import variational_diffusion
from variational_diffusion.cli import COMMANDS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
def test_python_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(block, names)
    assert names["samples"].shape == (4, 1, 8, 8)
    assert 0 <= names["samples"].min() <= names["samples"].max() <= 16


def test_commands_are_commands():
    mentioned = set(re.findall(r"^vdm ([a-z]+)", TEXT, re.MULTILINE))
    assert mentioned
    assert mentioned <= set(COMMANDS)


@pytest.mark.parametrize("name", re.findall(r"^make ([a-z]+)", TEXT, re.MULTILINE))
def test_targets_are_targets(name):
    assert f"\n{name}: " in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)]+)\)", TEXT))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()


@pytest.mark.parametrize("name", variational_diffusion.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(variational_diffusion, name).__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = variational_diffusion.nothing
