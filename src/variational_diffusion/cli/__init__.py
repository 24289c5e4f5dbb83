"""The command `vdm`: one module a command, each of which parses, calls and prints.

Exit codes: 0 done; 2 the user's input was wrong, one line on standard error; 1 anything else.
Results go to standard output, everything else to standard error. This module imports no torch, and
a command's module is imported when the command runs, so that `vdm --help` is quick.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from variational_diffusion.errors import InputError, is_short_of_memory, one_of

GROUPS = {
    "Train": {
        "train": "Train a model on your data, or go on with a run.",
        "data": "Show what will be read: count, shape, levels, splits, examples.",
        "plan": "What a run will take: operations, memory, time and energy on named hardware.",
        "ema": "Averages of other widths: which is best, and write one as weights.",
        "variance": "Train a small network that predicts the reverse variance, for few steps.",
    },
    "Measure": {
        "evaluate": "Bits per dimension of data under a trained model, with a standard error.",
        "compare": "Which of several runs is better, by the same examples and the same noise.",
        "score": "Rank examples by anomaly scores with p-values: table, histogram, sheet.",
        "schedule": "What the noise schedule has learned: variances in a table, and a figure.",
        "classify": "The class under which each example is most likely, and how often that "
        "is right.",
        "quality": "How good samples are: FID, KID, precision, recall, with errors and a floor.",
        "report": "One page about a run: curves, samples, likelihoods, how to repeat them.",
    },
    "Make": {
        "sample": "Draw examples: a sheet, single files, an array, an animation.",
        "edit": "Change examples: inpaint, restore, vary, interpolate.",
        "compress": "Compress examples without loss, to about their bits per dimension.",
        "decompress": "Bring back what vdm compress wrote, exact to the bit.",
        "serve": "A page in the browser about a model: sample, likelihood, inpaint, compress.",
    },
    "Share": {
        "export": "Write a model as a pretrained folder for the hub, or as an ONNX file.",
        "push": "Upload a model to the Hugging Face hub.",
        "import-official": "Make a run of a checkpoint of the official VDM release.",
    },
    "Help": {
        "demo": "Train, evaluate and sample on handwritten digits, in a few minutes.",
        "doctor": "What is installed, which device there is, and what is missing.",
    },
}
"""Group of `vdm --help` → its commands, and what each is for."""

COMMANDS = {name: about for group in GROUPS.values() for name, about in group.items()}

_COLLECT_AFTER = 50_000  # objects: at 700, collections are a tenth of the time of torch's import

_LOST_OUTPUT = {errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EFBIG}

LOG = logging.getLogger("variational_diffusion")


class _Remarks(logging.Handler):
    """Prints what the library remarks, a line each, to standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        from variational_diffusion.cli.shared.console import shown

        shown.message(record.getMessage())


class _Commands(click.Group):
    """The commands of the table, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            one_of("command", cmd_name, COMMANDS)
        module = cmd_name.replace("-", "_")
        return import_module(f"variational_diffusion.cli.{module}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        longest = max(map(len, COMMANDS))
        for title, group in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(longest), about) for name, about in group.items()])


@click.group(cls=_Commands, invoke_without_command=True)
@click.version_option(package_name="variational-diffusion")
@click.pass_context
def vdm(ctx: click.Context) -> None:
    """Variational diffusion models: train, evaluate in bits per dimension, sample.

    Example: vdm train digits --run runs/digits --minutes 2, then: vdm sample runs/digits
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    gc.set_threshold(_COLLECT_AFTER)
    code = run(arguments)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Threads of the collectives may still be there and ask for Python's lock; in the
        # interpreter's clean-up that aborts the process, although its work is done.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code. Defects of ours are raised as they are."""
    from variational_diffusion.cli.shared.console import say, set_up_streams

    set_up_streams()
    remarks = _Remarks()
    LOG.addHandler(remarks)
    level = LOG.level
    LOG.setLevel(logging.INFO)
    try:
        code = vdm.main(args=arguments, prog_name="vdm", standalone_mode=False)
    except click.ClickException as error:
        say(f"vdm: {' '.join(error.format_message().split())}", err=True)
        return 2
    except InputError as error:
        say(f"vdm: {' '.join(str(error).split())}", err=True)
        return 2
    except (KeyboardInterrupt, click.Abort):
        say("vdm: interrupted", err=True)
        return 1
    except (MemoryError, RuntimeError, OSError) as error:
        if is_short_of_memory(error):
            say(
                f"vdm: memory or threads ran out ({str(error).partition(chr(10))[0]}): end other "
                "programs, raise the limit (ulimit -v, ulimit -u), or ask for less at once",
                err=True,
            )
        elif isinstance(error, OSError) and error.errno in _LOST_OUTPUT and error.filename is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python has more for it
            if error.errno != errno.EPIPE:  # whoever reads has seen enough: vdm data x | head
                say(f"vdm: standard output cannot be written: {error.strerror}", err=True)
        else:
            raise
        return 1
    finally:
        LOG.removeHandler(remarks)
        LOG.setLevel(level)
    return code or 0  # a command returns none, or calls `ctx.exit`
