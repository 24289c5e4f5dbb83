"""A run of three steps, and what a command prints: for the tests of the command line."""

from variational_diffusion.cli import run

TRAIN = ["--steps", "3", "--batch-size", "8", "--set", "network.widths=[8,8]"]
OPTIONS = {"steps": 3, "settings": {"training.batch_size": 8, "network.widths": [8, 8]}}
"""The same in Python."""


def train_digits(folder):
    """Train a run in a folder; return its path, as a command takes it."""
    path = str(folder / "digits")
    assert run(["train", "digits", "--run", path, *TRAIN]) == 0
    return path


def output(capsys, arguments, code=0):
    """Run a command, check its exit code, and return what it printed."""
    capsys.readouterr()
    assert run(arguments) == code
    return capsys.readouterr()
