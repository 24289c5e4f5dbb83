"""Options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from variational_diffusion.cli.shared.types import Number, OneOf, Size
from variational_diffusion.errors import InputError

if TYPE_CHECKING:
    from variational_diffusion.config import DataConfig
    from variational_diffusion.machine.distributed import Place
    from variational_diffusion.run.directory import Run

COMPILE_MODES = ("off", "default", "cuda-graphs")
PRECISIONS = ("auto", "float32", "bfloat16")
DEGRADATIONS = (
    "grey",
    "coarse-2",
    "coarse-4",
    "coarse-8",
    "hidden-centre",
    "hidden-right",
    "hidden-bottom",
    "hidden-anywhere",
)
"""As in `machine.execution` and `data.beside`, which import torch; a test compares them."""

_NETWORK = "variational_diffusion.network"
_PLACE = "variational_diffusion.place"

Command = TypeVar("Command", bound=Callable[..., Any])


def data_options(command: Command) -> Command:
    """Add the options that say how DATA is read; `data_config` collects them."""
    for option in (
        click.option(
            "--condition",
            metavar="WHAT",
            help="What to condition on: label, label:NAME, vector:NAME or image:NAME of a column "
            f"or array, or made of the example: {', '.join(DEGRADATIONS)}.",
        ),
        click.option(
            "--hold-out",
            type=int,
            default=1000,
            help="Streamed examples set aside for each of validation and test (default 1000).",
        ),
        click.option("--lanes", type=int, default=1, help="Parts of the shards read side by side."),
        click.option(
            "--shuffle-buffer",
            type=int,
            default=1000,
            help="Streamed examples shuffled together (default 1000).",
        ),
        click.option(
            "--streaming", is_flag=True, help="Read parquet, tar or hf: data shard by shard."
        ),
        click.option("--crop", type=Size(), help="Random crop in training, the middle otherwise."),
        click.option(
            "--flip",
            type=OneOf(["none", "horizontal", "vertical", "both"]),
            default="none",
            help="Mirror training images at random.",
        ),
        click.option(
            "--group",
            metavar="PATTERN",
            help="Keep together, on one side of the splits, examples with the same match of a "
            "regular expression in their names, or of the first star of a glob: '(.*)_[0-9]+', "
            "'*/*'.",
        ),
        click.option("--split-seed", type=click.IntRange(0), default=0, help="Seed of the splits."),
        click.option("--test", type=Number(), default=0.1, help="Share of the test split."),
        click.option(
            "--validation", type=Number(), default=0.1, help="Share of the validation split."
        ),
        click.option(
            "--skip-sizes", is_flag=True, help="Leave out images of another size than most have."
        ),
        click.option(
            "--frames",
            type=click.Choice(["first", "each"]),
            default="first",
            help="Of files of several pictures (pages, frames), read the first (default) or each.",
        ),
        click.option(
            "--max-pixels",
            type=click.IntRange(min=1),
            default=89_478_485,
            help="Pixels that an image file may have (default 89,478,485).",
        ),
        click.option(
            "--skip-damaged", is_flag=True, help="Leave out examples that cannot be read."
        ),
        click.option(
            "--channels",
            type=OneOf(["auto", "grey", "rgb", "rgba"]),
            default="auto",
            help="Channels of image files; auto: grey if all are, otherwise rgb.",
        ),
        click.option("--resize", type=Size(), help="Crop and resample image files to this size."),
        click.option(
            "--column", help="Which column of parquet files, or extension in tar files, to read."
        ),
        click.option("--array", help="Which array of an .npz file."),
        click.option(
            "--range",
            "value_range",
            type=Number(),
            nargs=2,
            help="Allowed range of real values; with --levels, the lowest and the highest level.",
        ),
        click.option(
            "--levels",
            type=int,
            help="Levels of integer data, 2 to 65536; floats that are levels are read as integers.",
        ),
    ):
        command = option(command)
    return command


def data_config(source: str, options: dict[str, Any]) -> DataConfig:
    """Take the options of `data_options` out of a command's arguments."""
    from variational_diffusion.config import DataConfig, validated

    names = DataConfig.model_fields.keys() & options.keys()
    return validated(DataConfig, {"source": source, **{name: options.pop(name) for name in names}})


def parsed_settings(assignments: Iterable[str]) -> dict[str, Any]:
    """Return "section.field" → value from the arguments of --set."""
    settings: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or "." not in key:
            raise InputError(
                f"set = {assignment!r}: give SECTION.FIELD=VALUE, "
                "for example --set training.weight_decay=0.05"
            )
        try:
            settings[key] = json.loads(text)
        except json.JSONDecodeError:
            settings[key] = text
    return settings


def typed_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return those arguments of the command that are no defaults of its options."""
    context = click.get_current_context()
    return {
        name: value
        for name, value in options.items()
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    }


def device_options(command: Command) -> Command:
    """Add --device and --threads."""
    for option in (
        click.option("--threads", type=click.IntRange(1), help="CPU threads."),
        click.option("--device", default="auto", help="cpu, cuda, cuda:1, …; auto: cuda if any."),
    ):
        command = option(command)
    return command


def speed_options(command: Command) -> Command:
    """Add --compile and --channels-last, for a model that stays as it is."""
    return _compile_option(COMPILE_MODES[:2])(_channels_last(command))


def training_speed_options(command: Command) -> Command:
    """Add what `speed_options` does, --compile cuda-graphs and --precision."""
    return _compile_option(COMPILE_MODES)(_channels_last(precision_option(command)))


def _compile_option(modes: Sequence[str]) -> Callable[[Command], Command]:
    return click.option(
        "--compile",
        type=OneOf(modes),
        default="off",
        help="Compile the network: a minute at the start, faster steps (docs/performance.md).",
    )


_channels_last = click.option(
    "--channels-last",
    is_flag=True,
    help="Keep the channels of a pixel side by side: faster for some networks "
    "(docs/performance.md).",
)

precision_option = click.option(
    "--precision",
    type=OneOf(PRECISIONS),
    default="auto",
    help="Of the network's products in training; auto: bfloat16 where the device has units or "
    "instructions for it.",
)

accumulate_option = click.option(
    "--accumulate",
    type=click.IntRange(1),
    default=1,
    help="Parts a batch goes through the network in, to take less memory (default 1).",
)

checkpointing_option = click.option(
    "--checkpointing",
    is_flag=True,
    help="Compute activations again in the backward pass: less memory, a third more time.",
)

settings_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="SECTION.FIELD=VALUE",
    help="Any other setting of config.json; sections: training, model, network, schedule.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def seed_option(what: str) -> Callable[[Command], Command]:
    """Add --seed; what: it is of."""
    return click.option("--seed", type=click.IntRange(0), default=0, help=f"Seed of {what}.")


@contextmanager
def joined(device: str) -> Iterator[Place]:
    """Join the processes that torchrun started, for a command that shares out its work.

    What is not the leading process prints nothing: it leaves the block by `Place.leads`.
    """
    from variational_diffusion.machine.distributed import DAYS, processes
    from variational_diffusion.machine.execution import Execution

    with processes(Execution(device).target(), DAYS) as place:
        yield place


def network_option(command: Command) -> Command:
    """Add --network, for runs with a network of one's own: `open_run` acts on it."""
    return click.option(
        "--network",
        metavar="MODULE:NAME",
        expose_value=False,
        callback=lambda context, _, value: context.meta.__setitem__(_NETWORK, value),
        help="Network of the run, imported from here if it is one's own.",
    )(command)


def place_option(command: Command) -> Command:
    """Add --data, for runs whose data were moved: `open_run` acts on it."""
    return click.option(
        "--data",
        "place",
        metavar="PLACE",
        expose_value=False,
        callback=lambda context, _, value: context.meta.__setitem__(_PLACE, value),
        help="Where the data that the run was trained on are now; kept in the run.",
    )(command)


def weights_option(command: Command) -> Command:
    """Add --weights, --network and --data."""
    return click.option(
        "--weights",
        default="ema",
        help="ema: averaged weights (default); raw: the last ones; or what vdm ema made.",
    )(network_option(place_option(command)))


def open_run(path: str) -> Run:
    """Open the run of a command, with what --network and --data say."""
    from variational_diffusion.run.directory import Run

    meta = click.get_current_context().meta
    return Run.open(path, network=meta.get(_NETWORK), data=meta.get(_PLACE))


def command_line(command: str, left_out: Collection[str]) -> str:
    """Return what the user typed as "vdm COMMAND RUN …", without paths and without some options.

    left_out: names of parameters.
    """
    context = click.get_current_context()
    words = [f"vdm {command} RUN"]
    for parameter in context.command.params:
        name, value = parameter.name or "", context.params.get(parameter.name or "")
        typed = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if not typed or value is None or name in left_out:
            continue
        if isinstance(parameter, click.Argument):
            words.insert(1, str(value) if str(value).startswith("hf:") else Path(str(value)).name)
        elif isinstance(parameter, click.Option) and parameter.is_flag:
            words.append(parameter.opts[0])
        else:
            words.append(f"{parameter.opts[0]} {value}")
    return " ".join(words)
