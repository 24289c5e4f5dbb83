"""What is handed out: the wheel, the sdist, the metadata, and the pages around them."""

import json
import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml

import variational_diffusion as vd
from bare import PROJECT
from variational_diffusion.cli import run
from variational_diffusion.machine import environment

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path.relative_to(ROOT / "src").as_posix()
    for path in (ROOT / "src").rglob("*")
    if path.is_file() and path.suffix != ".pyc"
)


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return the folder with a wheel and an sdist of this tree."""
    target = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--directory", str(target)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    return target


def test_the_wheel_holds_the_package_and_nothing_else(built):
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        info = f"variational_diffusion-{environment.version()}.dist-info/"
        metadata = message_from_bytes(wheel.read(f"{info}METADATA"))
    assert sorted(name for name in names if not name.startswith(info)) == SOURCES
    assert "variational_diffusion/py.typed" in names
    assert any(name.startswith(info) and name.endswith("LICENSE") for name in names)
    assert metadata["License-Expression"] == "Apache-2.0"


def test_the_sdist_can_be_tested(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    wanted = [
        "Makefile",
        "RELEASING.md",
        "SECURITY.md",
        "constraints.txt",
        "pyproject.toml",
        "tests/test_package.py",
    ]
    wanted += [f"src/{name}" for name in SOURCES]
    assert set(wanted) <= names
    for folder in ("docs", "examples", "benchmarks", "experiments", "tests"):
        tracked = {p.relative_to(ROOT).as_posix() for p in (ROOT / folder).glob("*.*")}
        assert tracked <= names


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == environment.version() == vd.__version__ == PROJECT["version"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", changes, re.MULTILINE)
    assert re.search(r"^## \[Unreleased\]$", changes, re.MULTILINE)
    assert released[:1] in ([], [environment.version()])
    for heading in re.findall(r"^### (.*)$", changes, re.MULTILINE):
        assert heading in ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")


def test_the_forms_ask_for_what_doctor_says():
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert {form.stem for form in forms} == {"config", "defect", "wish"}
    for form in forms:
        content = yaml.safe_load(form.read_text(encoding="utf-8"))
        if form.stem != "config":
            assert {"name", "description", "body"} <= content.keys()
            ids = [field["id"] for field in content["body"]]
            assert len(set(ids)) == len(ids)
    assert "vdm doctor" in (ROOT / ".github/ISSUE_TEMPLATE/defect.yml").read_text(encoding="utf-8")


def test_links_of_the_contributing_page_lead_somewhere():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert (ROOT / link).exists(), link
    for target in re.findall(r"^make ([a-z]+)", text, re.MULTILINE):
        assert f"\n{target}: " in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_what_there_is(path):
    """Each job checks the sources out, may only read, has a time limit, and names real targets."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert content["permissions"] == {"contents": "read"}
    for job in content["jobs"].values():
        assert job["timeout-minutes"] <= 120
        assert job["steps"][0]["uses"].startswith("actions/checkout@")
        for step in job["steps"]:
            for target in re.findall(r"\bmake (\w+)", step.get("run", "")):
                assert f"\n{target}: " in makefile


def test_the_matrix_is_what_the_metadata_promise():
    content = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
    promised = {name.rpartition(" ")[2] for name in PROJECT["classifiers"] if "3." in name}
    matrix = content["jobs"]["tests"]["strategy"]["matrix"]
    assert set(matrix["python"]) == promised
    assert PROJECT["requires-python"] == f">={min(promised)}"
    assert {entry["torch"] for entry in matrix["include"]} == {"lowest"}
    lowest = re.compile(r'^    "torch>=([0-9.]*)"', re.MULTILINE)  # as sed finds it there
    assert len(lowest.findall((ROOT / "pyproject.toml").read_text(encoding="utf-8"))) == 1


def test_doctor_knows_what_is_there(capsys):
    assert run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["version"] == environment.version()
    assert found["packages"]["torch"]["fits"]
    assert found["packages"]["torch"]["extra"] is None
    assert found["packages"]["tensorboard"]["extra"] == "tracking"
    assert "pytest" not in found["packages"]
    assert "digits" in found["data"]
    assert run(["doctor"]) == 0
    assert "commands run on" in capsys.readouterr().out


def test_doctor_says_what_is_missing(capsys, monkeypatch):
    versions = {"click": None, "rich": "1.0", "tensorboard": None}
    real = environment._installed
    monkeypatch.setattr(
        environment, "_installed", lambda name: versions[name] if name in versions else real(name)
    )
    assert run(["doctor"]) == 1
    printed = capsys.readouterr()
    assert "missing or too old: click, rich" in printed.err
    assert "pip install" in printed.err
    assert re.search(r"click >=8.1: missing", printed.out)
    assert re.search(r"rich >=13.9: 1.0", printed.out)
    assert re.search(r"tracking .*vdm train --track .*missing", printed.out)
    assert "pip install 'variational-diffusion[tracking]'" in printed.out
    assert run(["doctor", "--json"]) == 1
    assert not json.loads(capsys.readouterr().out)["extras"]["tracking"]


@pytest.mark.parametrize(
    ("wanted", "installed", "fits"),
    [
        (">=2.6", "2.6", True),
        (">=2.6", "2.13.0+cpu", True),
        (">=2.6", "2.7.0rc1", True),
        (">=2.6", "2.5.9", False),
        (">=2.6", None, False),
        ("", "0.1", True),
    ],
)
def test_whether_a_version_will_do(wanted, installed, fits):
    assert environment.Package("name", wanted, installed, None).fits is fits
