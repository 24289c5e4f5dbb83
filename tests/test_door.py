"""What people type and bring: targets, paths, terminals, numbers, names, foreign text."""

import csv
import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import variational_diffusion as vd
from commands import output, train_digits
from variational_diffusion import escaping, hub
from variational_diffusion.cli import vdm
from variational_diffusion.cli.shared.console import print_table
from variational_diffusion.config import RunConfig, TrainingConfig, validated
from variational_diffusion.errors import InputError, one_of
from variational_diffusion.report.page import render
from variational_diffusion.storage.columns import write_columns
from variational_diffusion.storage.files import check_target, check_targets, expanded, unused

VDM = str(Path(sys.executable).with_name("vdm"))
ROOT = Path(vd.__file__).parent
NAMES = ["\x1b[2J", "\x1b]0;title\x07", "a\nb", "tab\tb", "\u202egnp.exe", "\x9b31m", "caf\udce9"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_digits(tmp_path_factory.mktemp("door"))


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A folder with whatever may stand in the way of a result."""
    monkeypatch.chdir(tmp_path)
    for name in ("enter", "read", "full", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "full/x").write_text("x")
    (tmp_path / "gone").symlink_to("nowhere/x")
    (tmp_path / "enter").chmod(0o000)
    (tmp_path / "read").chmod(0o555)
    yield tmp_path
    for name in ("enter", "read"):
        (tmp_path / name).chmod(0o755)


def told(arguments, **options):
    """Run a command as a user without root's powers, who meets the modes of files."""
    powerless = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    return subprocess.run(
        [*powerless, VDM, *arguments], capture_output=True, timeout=120, check=False, **options
    )


BAD = {
    "nodir/x": "'nodir' is no folder; mkdir -p nodir",
    "file/x": "'file' is no folder",
    "n" * 300: "file name too long",
    "gone": "exists and is not overwritten",
}
POWERLESS = {"enter/x": "permission denied", "read/x": "permission denied"}


@pytest.mark.parametrize(("path", "message"), BAD.items(), ids=lambda text: text[:10])
def test_a_target_is_refused_before_the_work(path, message, folders):
    with pytest.raises(InputError, match=message) as refused:
        check_target(path, "table")
    assert str(refused.value).startswith("table = ")
    assert "\n" not in str(refused.value)


def test_a_target_that_is_free_is_taken(folders):
    for path in ("new.csv", "empty/new.csv", "./new", folders / "new"):
        assert check_target(path) == Path(path)
    for path in ("new", "empty", "deep/er/new"):
        assert check_target(path, folder=True) == Path(path)
    for path in ("full", "file", "file/x/y"):
        with pytest.raises(InputError):
            check_target(path, folder=True)
    Path("a.csv").mkdir()
    with pytest.raises(InputError, match=r"is a folder; give a file in it: --out a\.csv/new\.csv"):
        check_target("a.csv", endings=(".csv",))
    assert check_target("file", overwrite=True) == Path("file")
    assert unused(".") == Path("new")


def test_two_results_do_not_go_to_one_file(folders):
    ends = (".png",)
    check_targets(figure=("a.png", ends), sheet=("b.png", ends), table=(None, ()))
    with pytest.raises(InputError, match=r"figure and sheet = '\./a\.png': two results"):
        check_targets(figure=("a.png", ends), sheet=("./a.png", ends))


COMMAND_TARGETS = [
    ["evaluate", "RUN", "--table", "{}.csv"],
    ["evaluate", "RUN", "--maps", "{}.png"],
    ["score", "RUN", "--figure", "{}.svg"],
    ["sample", "RUN", "--out", "{}.npy"],
    ["sample", "RUN", "--animate", "{}.gif"],
    ["edit", "vary", "RUN", "--gamma", "0", "--out", "{}.png"],
    ["compress", "RUN", "--out", "{}.vdmz"],
    ["export", "RUN", "--onnx", "{}.onnx"],
    ["report", "RUN", "--out", "{}.html"],
    ["schedule", "RUN", "--out", "{}.png"],
    ["quality", "RUN", "--nearest", "{}.png"],
    ["data", "digits", "--out", "{}.png"],
    ["compare", "RUN", "RUN", "--table", "{}.parquet"],
]


@pytest.mark.parametrize("words", COMMAND_TARGETS, ids=" ".join)
def test_every_command_checks_its_targets_first(words, run, folders, capsys):
    """No folder is there, so that whatever the command did before would have been in vain."""
    words = [word.replace("RUN", run).format("nodir/x") for word in words]
    option = words[-2].removeprefix("--")
    printed = output(capsys, words, 2)
    assert printed.err.startswith(f"vdm: {option} = 'nodir/x")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_modes_of_folders_are_met_before_the_work(run, folders):
    for path, message in POWERLESS.items():
        done = told(["evaluate", run, "--table", f"{path}.csv"], cwd=folders)
        assert done.returncode == 2
        assert message.encode() in done.stderr
        assert done.stderr.count(b"\n") == 1
    done = told(["train", "digits", "--run", "enter/run", "--steps", "1"], cwd=folders)
    assert done.returncode == 2
    assert b"Permission denied" in done.stderr


def test_a_tilde_is_what_a_shell_makes_of_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "~x").mkdir()
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home"
    assert expanded("~") == home
    assert expanded("~/r") == expanded(Path("~/r")) == home / "r"
    assert expanded("./~x") == tmp_path / "~x"
    assert expanded("./~") == tmp_path / "~"
    assert expanded("~nobody-of-this-name/r") == tmp_path / "~nobody-of-this-name/r"
    assert expanded("a/~/b") == Path("a/~/b")
    for written in ("~/r", "./~x", "./~", "~nobody-of-this-name/r", "a~"):
        assert expanded(expanded(written)) == expanded(written)
    with pytest.raises(InputError, match="zero byte"):
        expanded("a\0b")


def test_data_run_and_out_mean_the_same_by_a_tilde(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("~x.npy", "x.npy"):
        np.save(name, np.random.default_rng(0).integers(0, 17, (40, 1, 5, 5)))
    small = ["--steps", "1", "--batch-size", "4", "--network", "mlp"]
    output(capsys, ["train", "./~x.npy", "--run=~/r", *small])
    assert (tmp_path / "r/config.json").exists()
    assert not (tmp_path / "~").exists()
    output(capsys, ["sample", "~/r", "--n", "2", "--steps", "1", "--out", "~/s.npy"])
    assert np.load("s.npy").shape == (2, 1, 5, 5)
    output(capsys, ["data", "~/x.npy"])
    assert vd.Run.open("~/r").config.data.source == str(tmp_path / "~x.npy")
    assert vd.open_dataset("./~x.npy").shape == (1, 5, 5)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "cp437", "shift_jis", "utf-8"])
def test_any_terminal_can_show_it(run, encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    table = told(
        ["evaluate", run, "--limit", "4", "--rounds", "1", "--threads", "1"], env=environment
    )
    assert table.returncode == 0
    shown = table.stdout.decode(encoding)
    assert "± " in shown or "+- " in shown
    page = told(["schedule", "--help"], env=environment)
    assert page.returncode == 0
    wrong = told(["evaluate", "γ±"], env=environment)
    assert wrong.returncode == 2
    assert wrong.stderr.count(b"\n") == 1


def test_a_reader_that_has_seen_enough_gets_no_traceback(run):
    line = f"{shlex.join([VDM, 'train', 'digits', '--dry-run'])} | head -n 1"
    done = subprocess.run(line, shell=True, capture_output=True, timeout=60, check=True)
    assert done.stderr == b""
    line = f"{shlex.join([VDM, 'train', 'digits', '--dry-run'])} > /dev/full"
    done = subprocess.run(line, shell=True, capture_output=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == b"vdm: standard output cannot be written: No space left on device\n"


def parameters():
    """Every parameter of every command, with the words that call the command."""

    def walk(group, words):
        with click.Context(group) as context:
            for name in group.list_commands(context):
                found = group.get_command(context, name)
                if isinstance(found, click.Group):
                    yield from walk(found, (*words, name))
                else:
                    yield from (((*words, name), parameter) for parameter in found.params)

    return list(walk(vdm, ()))


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (words, parameter)
        for words, parameter in parameters()
        if isinstance(parameter, click.Option)
        and not parameter.is_flag
        and not isinstance(parameter.type, click.Path | click.Choice | click.types.StringParamType)
    ],
    ids=lambda part: part if isinstance(part, str) else " ".join(getattr(part, "opts", part)),
)
def test_every_option_refuses_what_is_no_finite_number(words, option, capsys):
    for value in ("nan", "inf", "-inf", "NaN", "1e999", "x"):
        values = [value] * option.nargs
        printed = output(capsys, [*words, option.opts[0], *values, "RUN"], 2)
        assert printed.err.startswith("vdm: Invalid value for")
        assert printed.err.count("\n") == 1


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("field", ["learning_rate", "weight_decay", "clip_norm", "minutes"])
def test_settings_refuse_numbers_that_are_not_finite(field, value, tmp_path, capsys):
    words = ["train", "digits", "--run", str(tmp_path / "r"), "--set", f"training.{field}={value}"]
    assert f"{field} = " in output(capsys, words, 2).err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["evaluat", "r"], "evaluate"),
        (["smaple", "r"], "sample"),
        (["edit", "inpiant", "r"], "inpaint"),
        (["evaluate", "r", "--estimator", "impotance"], "importance"),
        (["evaluate", "r", "--split", "Tset"], "test"),
        (["train", "digits", "--run", "r", "--schedule", "cosin"], "cosine"),
        (["train", "digits", "--run", "r", "--network", "unett"], "unet"),
        (["train", "digits", "--run", "r", "--preset", "fullx"], None),
        (["train", "digits", "--run", "r", "--set", "trainig.seed=1"], "training"),
        (["train", "digits", "--run", "r", "--set", "training.batchsize=1"], "batch_size"),
        (["train", "digits", "--run", "r", "--set", "network.width=3"], "widths"),
        (["train", "digits", "--run", "r", "--set", "schedule.gama_min=3"], "gamma_min"),
        (["train", "digits", "--run", "r", "--weighting", "sigmod"], "sigmoid"),
        (["train", "digits", "--run", "r", "--track", "tensorbord"], "tensorboard"),
    ],
    ids=lambda words: words[-1] if isinstance(words, list) else None,
)
def test_a_name_that_is_nearly_right_is_guessed(words, meant, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = output(capsys, words, 2).err
    assert printed.count("\n") == 1
    assert meant is None or f"did you mean {meant}?" in printed.replace("'", "").replace(
        "Did", "did"
    )


def test_a_sampler_and_a_field_are_guessed_in_python_too(run):
    with pytest.raises(InputError, match=r"sampler = 'dpmpp2m': known are .*did you mean dpmpp-2m"):
        vd.Run.open(run).sample(1, sampler="dpmpp2m")
    with pytest.raises(InputError, match=r"known are a, b$"):
        one_of("x", 3, ["a", "b"])
    with pytest.raises(InputError, match=r"and 60 more; did you mean name77\?"):
        one_of("x", "nam77", [f"name{k}" for k in range(100)])


@pytest.mark.parametrize(
    "name", [*NAMES, "it's", "a b", "-x", "~x", "$(id)", "`id`", "\\", "*", "é"]
)
def test_what_a_hint_says_can_be_pasted(name, tmp_path):
    """bash reads back the name that was meant."""
    word = escaping.typed(name)
    assert word.isprintable()
    script = f"printf %s {word}"
    shown = subprocess.run(["bash", "-c", script], capture_output=True, check=True, cwd=tmp_path)
    same = name if not name.startswith("~") else f"./{name}"
    assert shown.stdout == os.fsencode(same)


def test_hints_of_the_program_can_be_pasted(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "my runs/it's"
    output(
        capsys, ["train", "digits", "--run", name, "--steps", "1", "--set", "network.widths=[8]"]
    )
    hint = output(capsys, ["evaluate", name, "--weights", "ema-0.1"], 2).err
    assert f"vdm ema {shlex.quote(name)} --width" in hint
    Path("my table.csv").write_text("x")
    hint = output(capsys, ["evaluate", name, "--table", "my table.csv"], 2).err
    assert "--table 'my table-2.csv'" in hint
    assert "vdm train DATA --run 'no run'" in output(capsys, ["evaluate", "no run"], 2).err


@pytest.mark.parametrize("name", NAMES)
def test_foreign_text_is_one_harmless_line_on_a_terminal(name, capsys):
    assert escaping.printable(name).isprintable()
    print_table(f"title {name}", [name, name], [[name, name]])
    output(capsys, ["evaluate", name], 2)
    print_table(f"title {name}", [name, "[red]b[/red]"], [[name, "[/x]"]])
    printed = capsys.readouterr().out
    assert all(line.isprintable() for line in printed.split("\n"))
    assert "[red]b[/red]" in printed
    assert "[/x]" in printed


def test_commands_print_in_one_place():
    for path in ROOT.joinpath("cli").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert path.name == "console.py" or not re.search(r"(?<!_)\bprint\(", text)
        assert path.parts[-2:] == ("cli", "__init__.py") or "click.echo" not in text


@pytest.mark.parametrize("name", ["=cmd|'/c calc'!A1", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_spreadsheet_runs_no_name(name, tmp_path):
    columns = {"file": np.array([name, "good.png"]), name: np.array([-1.5, 2.0])}
    write_columns(tmp_path / "t.csv", columns)
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        head, first, second = csv.reader(file)
    assert head == ["file", "'" + escaping.printable(name)]
    assert first == ["'" + escaping.printable(name), "-1.5"]
    assert second == ["good.png", "2.0"]


MEASURED = {
    "bits_per_dim": 1.0,
    "standard_error": 0.1,
    "examples": 3,
    "split": "test",
    "estimator": "vlb",
}
HOSTILE = [
    "a|b",
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "`x` | **b**",
    "a\n## heading\n| c |",
    "---\nlicense: x",
    "\u202ex",
    "\x1b[31m",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_model_card_shows_a_name_as_it_is(name):
    entry = {**MEASURED, "data": name, "command": f"vdm evaluate RUN {escaping.typed(name)}"}
    text = str(hub.card(None, 3, evaluations=[entry], facts={"trained": name}).text)
    assert all(line.isprintable() for line in text.split("\n"))
    assert "<img" not in text
    assert "](javascript" not in text
    rows = [line for line in text.split("\n") if line.startswith("|")]
    assert len(rows) == 3 + 1 + 3
    assert {line.count("|") for line in rows[-3:]} == {6}
    assert escaping.markdown("plain name-1.png, 3 × 4 (x)") == "plain name-1.png, 3 × 4 (x)"


@pytest.mark.parametrize("name", [*NAMES, "<script>alert(1)</script>"])
def test_a_report_shows_a_name_as_it_is(name, run):
    opened = vd.Run.open(run)
    entry = {**MEASURED, "data": name, "command": f"vdm evaluate RUN {name}", "description": name}
    entry |= {"terms": {}, "interval": [0, 1], "draws_error": 0.1, "weights": "ema", "steps": None}
    text = render(opened, "ema", {}, notes=[f"left out: {name}"], evaluations=[entry])
    assert all(line.isprintable() for line in text.replace("\t", " ").split("\n"))
    assert "<script" not in text


def test_json_is_json(run, capsys):
    assert escaping.json_text({"a": [math.nan, (math.inf, 1.5)], "b": None}) == (
        '{"a": [null, [null, 1.5]], "b": null}'
    )

    def refuse(name):
        raise AssertionError(name)

    for words in (["evaluate", run, "--limit", "1"], ["evaluate", run, "--limit", "2"]):
        printed = output(capsys, [*words, "--rounds", "1", "--json", "--threads", "1"]).out
        json.loads(printed, parse_constant=refuse)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_a_configuration_has_no_numbers_that_are_not_finite(number, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(f"[data]\nsource = 'digits'\n[model]\n[training]\nminutes = {number}\n")
    with pytest.raises(InputError, match=r"minutes|model"):
        RunConfig.from_file(path)
    with pytest.raises(InputError, match="finite"):
        validated(TrainingConfig, {"steps": 1, "learning_rate": float(number)})


def test_no_network_and_no_home_are_told_in_one_line(run, tmp_path):
    nowhere = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_none"}
    done = told(["push", run, "someone/model"], env=nowhere)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b"Connection refused" in done.stderr
    table = pa.table({"a": np.arange(50.0), "b": np.arange(50.0) ** 2})
    pq.write_table(table, tmp_path / "t.parquet")
    homeless = {name: value for name, value in os.environ.items() if name != "HF_HOME"}
    homeless["HOME"] = "/proc/none"
    done = told(["data", str(tmp_path / "t.parquet")], env=homeless)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b"set HF_HOME" in done.stderr
