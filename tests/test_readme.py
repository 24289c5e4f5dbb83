"""The README: its Python runs, its commands, links and pictures exist, and it is seen whole."""

import re
from importlib import import_module
from pathlib import Path

import pytest

import variational_diffusion
from variational_diffusion.cli import COMMANDS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
FIGURES = ROOT / "docs" / "figures"
CHROMIUM = Path("/usr/bin/chromium")
WIDTH = 1012
"""Pixels that a repository's first page has for its README."""
STYLE = """
* { box-sizing: border-box }
body { width: 1012px; margin: 0; padding: 32px; font: 16px/1.5 "Noto Sans", Helvetica, sans-serif }
pre { padding: 16px; background: #eee; overflow: hidden; font: 13.6px/1.45 monospace }
pre code { font: inherit } img { max-width: 100% } table { border-collapse: collapse }
th, td { padding: 6px 13px; border: 1px solid #ddd }
"""
"""The sizes that GitHub gives to what it renders."""


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
    table = {name for row in re.findall(r"^\|.*\|$", TEXT, re.MULTILINE) for name in named(row)}
    assert set(COMMANDS) - table <= {"demo", "doctor"}


def named(row):
    """Return what stands as a command in the second cell of a row."""
    return re.findall(r"`([a-z-]+)`", row.split("|")[2])


@pytest.mark.parametrize("name", re.findall(r"^make ([a-z]+)", TEXT, re.MULTILINE))
def test_targets_are_targets(name):
    assert f"\n{name}: " in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)]+)\)", TEXT))
def test_links_lead_somewhere(link):
    assert "://" in link or (ROOT / link).exists()


def test_it_is_short():
    assert len(TEXT.splitlines()) <= 150


def test_pictures_are_together_small():
    shown = {ROOT / link for link in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", TEXT)}
    assert shown
    assert shown <= set(FIGURES.iterdir())
    assert sum(path.stat().st_size for path in FIGURES.iterdir()) <= 1.5e6


def test_badges_say_what_the_project_says(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    pictures = import_module("pictures")
    names = [name for name in pictures.PICTURES if name.startswith("badge-")]
    assert names
    for name in names:
        pictures.PICTURES[name](tmp_path / name)
        assert (tmp_path / name).read_bytes() == (FIGURES / name).read_bytes(), "make pictures"


@pytest.mark.skipif(not CHROMIUM.exists(), reason="Debian's package chromium is not installed")
def test_a_browser_shows_all_of_it(tmp_path):
    """At the width of a repository's page no line of code is cut and every picture is whole."""
    markdown = pytest.importorskip("markdown", reason="the extra docs is not installed")
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    body = markdown.markdown(TEXT, extensions=["fenced_code", "tables"])
    page = tmp_path / "readme.html"
    page.write_text(
        f'<meta charset="utf-8"><base href="{ROOT.as_uri()}/"><style>{STYLE}</style>{body}',
        encoding="utf-8",
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": WIDTH, "height": 900})
        shown.goto(page.as_uri())
        cut = "nodes => nodes.filter(n => n.scrollWidth > n.clientWidth).map(n => n.innerText)"
        pictures = "nodes => nodes.map(n => [n.naturalWidth, n.getBoundingClientRect().right])"
        assert shown.eval_on_selector_all("pre", cut) == []
        edges = shown.eval_on_selector_all("img", pictures)
        assert shown.evaluate("document.documentElement.scrollWidth") <= WIDTH
        browser.close()
    assert len(edges) == TEXT.count("![")
    assert all(width > 0 and right <= WIDTH - 32 for width, right in edges)


@pytest.mark.parametrize("name", variational_diffusion.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(variational_diffusion, name).__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = variational_diffusion.nothing
