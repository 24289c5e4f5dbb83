"""The documents: their code runs, their commands and links exist, and the site builds strictly."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

import variational_diffusion as vd
from variational_diffusion import cli

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"(<!-- runs[^>]*-->\n)?```(\w*)\n(.*?)```", re.DOTALL)
TABLES = (
    vd.networks.NETWORKS,
    vd.schedules.SCHEDULES,
    vd.decoders.DECODERS,
    vd.conditions.CONDITIONS,
    vd.grids.GRIDS,
    vd.sampling.SAMPLERS,
    vd.likelihood.ESTIMATORS,
    vd.data.KINDS,
)
CHROMIUM = Path("/usr/bin/chromium")


def blocks(path):
    """Yield (mark, language, text) of every block of code."""
    yield from FENCE.findall(path.read_text(encoding="utf-8"))


def commands(text):
    """Return the lines of a block that are `vdm …`, without what is said about them."""
    return [re.split(r" {2,}", line)[0] for line in text.splitlines() if line.startswith("vdm ")]


def shortened(line, mark):
    """Return the arguments of a command with what its mark adds; a budget replaces another."""
    found = re.search(r"shortened by (.*?) -->", mark)
    added = found[1].split() if found else []
    if "--steps" in added:
        line = re.sub(r" --minutes \S+", "", line)
    return [*shlex.split(line)[1:], *added]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a folder of runs that pages may measure."""
    folder = tmp_path_factory.mktemp("runs")
    for name, seed in (("digits", 0), ("small", 1), ("large", 2)):
        vd.train(
            "digits", folder / name, steps=5, network="mlp", seed=seed, threads=1, progress=False
        )
    return folder


@pytest.fixture
def _tables():
    """Take out of the tables what a page puts in."""
    kept = [(table, dict(table)) for table in TABLES]
    yield
    for table, entries in kept:
        table.clear()
        table.update(entries)


@pytest.mark.usefixtures("_tables")
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_code_runs(path, tmp_path, monkeypatch, capsys, runs):
    """Blocks of Python and marked commands, in the order of the page and in one folder."""
    monkeypatch.chdir(tmp_path)
    if not re.search(r"<!-- runs.*-->\n```\nvdm train", path.read_text(encoding="utf-8")):
        shutil.copytree(runs, tmp_path / "runs")
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(100):
        picture = rng.integers(0, 255, (18, 20, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / "photos" / f"{i}.png")
    names: dict[str, object] = {}
    for mark, language, text in blocks(path):
        if language == "python":
            exec(compile(text, f"{path.name}", "exec"), names)
        elif mark:
            lines = commands(text)
            assert lines
            for i, line in enumerate(lines):
                arguments = shortened(line, mark if i == 0 else "")
                assert cli.run(arguments) == 0, (line, capsys.readouterr().err)


@pytest.mark.parametrize("path", [*PAGES, ROOT / "README.md"], ids=lambda path: path.name)
def test_commands_have_the_options_that_are_shown(path):
    for _, language, text in blocks(path):
        for line in commands(text) if not language else ():
            name = line.split()[1]
            if name.startswith("-") or not name.islower():
                continue
            command = cli.vdm.get_command(click.Context(cli.vdm), name)
            group = getattr(command, "commands", {})  # vdm edit TASK
            rest = line.split()[2:]
            if group and rest and rest[0] in group:
                command = group[rest[0]]
            known = {option for parameter in command.params for option in parameter.opts}
            known |= {option for parameter in command.params for option in parameter.secondary_opts}
            shown = set(re.findall(r"(?<=\s)--[a-z][a-z-]*", line))
            assert shown <= known | {"--help"}, line


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert "://" in link or (path.parent / link).exists(), link


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return the folder of the site, built strictly."""
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    target = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(target)],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return target


def test_the_site_has_every_page(site):
    for path in PAGES:
        assert (site / f"{path.stem}.html").exists()
    for name in ("objective", "process", "compression.chain", "sampling.multistep"):
        assert "source" in (site / "reference" / f"{name}.html").read_text(encoding="utf-8")
    theory = (site / "theory.html").read_text(encoding="utf-8")
    assert theory.count("<math") > 15
    assert "$$" not in theory
    assert 'href="reference/process.html"' in theory


def test_a_strict_build_finds_a_link_that_dangles(site, tmp_path):
    """The test above can fail: the same configuration with one bad link."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# A\n\n[b](missing.md)\n", encoding="utf-8")
    (tmp_path / "mkdocs.yml").write_text("site_name: a\nstrict: true\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build"],
        cwd=tmp_path,
        check=False,
        capture_output=True,
    )
    assert done.returncode != 0


@pytest.mark.skipif(not CHROMIUM.exists(), reason="Debian's package chromium is not installed")
def test_a_browser_shows_the_pages(site):
    """Nothing comes from elsewhere, formulas have a size, a phone need not scroll sideways."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    elsewhere, errors = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        for width in (390, 1280):
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.on(
                "request",
                lambda request: (
                    None
                    if request.url.startswith(("file:", "data:", "blob:"))
                    else elsewhere.append(request.url)
                ),
            )
            page.on("pageerror", lambda error: errors.append(str(error)))
            for name, heading in {"index": "Start here", "theory": "Theory beside code"}.items():
                page.goto((site / f"{name}.html").as_uri())
                assert heading in page.locator("h1").inner_text()
                extra = page.evaluate(
                    "document.documentElement.scrollWidth - document.documentElement.clientWidth"
                )
                assert extra <= 0, (name, width)
            box = page.locator("math").first.bounding_box()
            assert box["width"] > 50
        browser.close()
    assert elsewhere == []
    assert errors == []
