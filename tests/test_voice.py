"""The command line as one voice: options, help, times, narrow tables, completion by the shell."""

import ast
import json
import os
import re
import resource
import subprocess
import sys
from collections import defaultdict
from importlib import import_module
from pathlib import Path

import click
import pytest
from click.shell_completion import get_completion_class

import variational_diffusion
from commands import output
from variational_diffusion.cli import COMMANDS, vdm
from variational_diffusion.cli.shared.console import print_table
from variational_diffusion.cli.shared.types import Duration

ROOT = Path(variational_diffusion.__file__).parent


def all_commands():
    """Return every command, subcommands too, by the words that call it."""
    found = {}

    def walk(name, command):
        if isinstance(command, click.Group):
            for own, inner in command.commands.items():
                walk(f"{name} {own}", inner)
        else:
            found[name] = command

    for name in COMMANDS:
        walk(name, import_module(f"variational_diffusion.cli.{name.replace('-', '_')}").command)
    return found


ALL = all_commands()


def kind(parameter):
    """Return the family of an option's type."""
    if isinstance(parameter.type, click.types.IntParamType):
        return "whole number"
    if isinstance(parameter.type, click.types.FloatParamType):
        return "number"
    if isinstance(parameter.type, (click.Choice, click.types.StringParamType)):
        return "word"
    return type(parameter.type).__name__


def test_options_of_one_name_mean_one_thing():
    meanings = defaultdict(set)
    for command in ALL.values():
        for option in command.params:
            if isinstance(option, click.Option):
                for name in option.opts:
                    first = re.match(r"\w*", option.help or "")[0]
                    meanings[name].add((kind(option), option.nargs, first))
    assert {name: found for name, found in meanings.items() if len(found) > 1} == {}
    assert len(meanings) > 80  # all of them were looked at


@pytest.mark.parametrize("name", ALL)
def test_a_command_has_an_example_help_for_each_option_and_json(name):
    command = ALL[name]
    assert re.search(rf"\n\n *Example: vdm {name}\b", command.help)
    options = [option for option in command.params if isinstance(option, click.Option)]
    assert [option.name for option in options if not option.help] == []
    if name != "serve":  # it shows a page until it is ended
        assert "as_json" in {option.name for option in options}


@pytest.mark.parametrize("name", ALL)
def test_examples_of_the_help_are_taken(name):
    """Each example parses: its options are there, and their values allowed."""
    example = re.search(r"Example: vdm (.*)", ALL[name].help).group(1)
    words = example.split()[len(name.split()) :]
    ALL[name].make_context(name, words).close()


def run_python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
    )


def test_help_of_every_command_is_quick_and_imports_no_library():
    """0.1 s of an idle core each; the limit is for one that is busy with more."""
    script = """if True:
        import os, resource, sys
        from variational_diffusion.cli import COMMANDS, run

        for name in COMMANDS:
            child = os.fork()
            if not child:
                run([name, "--help"])
                heavy = {"torch", "numpy", "rich", "pydantic", "scipy"} & set(sys.modules)
                sys.stdout.flush()
                os._exit(1 if heavy else 0)
            assert os.waitpid(child, 0)[1] == 0, name
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    printed = run_python("-c", script).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert printed.count("Usage: vdm ") == len(COMMANDS)
    assert seconds < 3  # one interpreter, and a fork for each command


@pytest.mark.parametrize("name", ["train", "sample", "edit"])
def test_help_takes_less_than_three_tenths_of_a_second(name):
    def seconds():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run_python("-m", "variational_diffusion", name, "--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.3


def test_the_model_alone_imports_no_plumbing():
    script = "import sys, variational_diffusion as vd; vd.VDM; print(' '.join(sys.modules))"
    names = run_python("-c", script).stdout.split()
    heavy = {"click", "rich", "datasets", "accelerate", "matplotlib", "sklearn", "diffusers"}
    heavy |= {"torchdiffeq", "scipy", "sympy", "pandas", "torch.distributed.tensor"}
    assert heavy & set(names) == set()
    assert "torch" in names


def test_no_module_below_the_command_line_knows_it_or_a_terminal():
    for path in ROOT.rglob("*.py"):
        if "cli" in path.relative_to(ROOT).parts or path.name == "__main__.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            for name in names:
                assert name.split(".")[0] not in ("click", "rich"), path
                assert not f"{name}.".startswith("variational_diffusion.cli."), path


def test_modules_of_commands_import_only_click_and_what_is_shared():
    allowed = set(sys.stdlib_module_names) | {"click"}
    for path in (ROOT / "cli").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            for name in names:
                assert name.split(".")[0] in allowed or name.startswith(
                    ("variational_diffusion.errors", "variational_diffusion.cli.shared")
                ), f"{path} imports {name}"


def test_the_command_line_stays_small():
    lines = sum(len(path.read_text().splitlines()) for path in (ROOT / "cli").rglob("*.py"))
    assert lines <= 3600


@pytest.mark.parametrize(
    ("unit", "text", "value"),
    [
        ("seconds", "60", 60),
        ("seconds", "60s", 60),
        ("seconds", "1.5h", 5400),
        ("minutes", "10", 10),
        ("minutes", "10m", 10),
        ("minutes", "90s", 1.5),
        ("minutes", "2H", 120),
        ("minutes", 2.5, 2.5),
    ],
)
def test_a_time_is_written_with_its_unit(unit, text, value):
    assert Duration(unit).convert(text, None, None) == value


@pytest.mark.parametrize("text", ["0.5", "0.9s", "ten", "1d", "-1m", "inf", "nan", "", "m"])
def test_what_is_no_time_is_one_line(capsys, text):
    told = output(capsys, ["train", "digits", "--run", "r", "--every", text], code=2)
    assert "of 1 seconds or more as 60s, 10m or 1.5h" in told.err
    assert told.err.count("\n") == 1


WIDE = ["schedule", "variance, (bits/dim)²", "95 % interval", "of the optimum"]
ROWS = [
    ("learned", "0.440 ± 0.008", "0.425 to 0.457", "1.00"),
    ("cosine", "18.552 ± 0.350", "", "42"),
]


def test_a_table_that_fits_is_one(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    print_table("title", WIDE, ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "title"
    assert len(lines) == 1 + 1 + 1 + 1 + 2 + 1  # title, top, names, line, rows, bottom
    assert any("learned" in line and "0.425 to 0.457" in line for line in lines)


def test_a_table_that_does_not_fit_is_lines_of_values(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    print_table("title", WIDE, ROWS)
    assert capsys.readouterr().out.splitlines() == [
        "title",
        "schedule learned",
        "  variance, (bits/dim)²: 0.440 ± 0.008",
        "  95 % interval: 0.425 to 0.457",
        "  of the optimum: 1.00",
        "schedule cosine",
        "  variance, (bits/dim)²: 18.552 ± 0.350",
        "  of the optimum: 42",
    ]


@pytest.mark.parametrize("columns", [40, 80])
def test_no_line_of_a_table_is_wider_than_the_terminal(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    for wide in (6, 12, 30):
        names = ["", *(f"class {i}" for i in range(wide))]
        print_table("t", names, [("a name of several words", *("1",) * wide)] * 2)
    print_table("t", ["", ""], [("  operations of an image and pass", "12,345,678"), ("x", "y")])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns


def test_cells_with_numbers_stay_on_one_line(capsys, monkeypatch):
    """Where words of the names give room, they are folded before a number is."""
    monkeypatch.setenv("COLUMNS", "80")
    interval = "16.685 to 19.654"
    names = [
        "schedule",
        "variance, (bits/dim)²",
        "95 % interval",
        "of the optimum",
        "evaluations for ± 1",
    ]
    print_table("t", names, [("cosine", "17.997 ± 0.695", interval, "38.30", "179,970")])
    lines = capsys.readouterr().out.splitlines()
    assert sum(interval in line for line in lines) == 1
    assert {len(line) for line in lines[1:]} == {80}
    assert sum("│ " in line for line in lines) == 1


def test_python_m_is_the_command():
    assert "\n  import-official  " in run_python("-m", "variational_diffusion").stdout


def completed(words, shell="bash"):
    """Return what the shell offers for the last of a line's words; and whether torch was there."""
    script = (
        "import sys; from variational_diffusion.cli import vdm\n"
        "try: vdm.main(prog_name='vdm')\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    line = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    if shell == "fish":
        line["COMP_CWORD"] = words[-1]
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | line | {"_VDM_COMPLETE": f"{shell}_complete"},
    )
    assert done.stderr.strip() == "False"
    return done.stdout


def test_the_shell_completes_commands_options_choices_and_files():
    assert completed(["vdm", "comp"]).split() == ["plain,compare", "plain,compress"]
    assert set(completed(["vdm", "edit", ""]).split()) == {
        f"plain,{task}" for task in ("inpaint", "restore", "vary", "interpolate")
    }
    assert completed(["vdm", "sample", "--sa"]).split() == ["plain,--sampler"]
    assert completed(["vdm", "evaluate", "--estimator", "i"]).split() == ["plain,importance"]
    assert completed(["vdm", "sample", "runs/"]).split() == ["file,runs/"]
    assert "compress" in completed(["vdm", "comp"], "zsh")
    assert "compress" in completed(["vdm", "comp"], "fish")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_a_script(shell):
    class_ = get_completion_class(shell)
    source = class_(vdm, {}, "vdm", "_VDM_COMPLETE").source_vars()
    assert source["complete_var"] == "_VDM_COMPLETE"
    assert "vdm" in class_.source_template % source


def test_json_of_data_names_the_sheet(capsys, tmp_path):
    sheet = str(tmp_path / "sheet.png")
    told = json.loads(output(capsys, ["data", "digits", "--out", sheet, "--json"]).out)
    assert told["sheet"] == sheet
