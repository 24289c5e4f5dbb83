"""`vdm data`: show what will be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from variational_diffusion.cli.shared.console import print_json, print_table, say
from variational_diffusion.cli.shared.options import data_config, data_options, json_option

_EXAMPLES = 64


@click.command()
@click.argument("data", type=click.Path())
@click.option(
    "--out",
    type=click.Path(),
    help="Where to write the .png of examples; default: NAME-examples.png here.",
)
@json_option
@data_options
def command(data: str, out: str | None, as_json: bool, **options: Any) -> None:
    """Show how DATA will be read: count, shape, levels, splits, and a sheet of examples.

    Example: vdm data photos --resize 32x32
    """
    from variational_diffusion.data import open_dataset
    from variational_diffusion.images.pictures import is_image, save_sheet
    from variational_diffusion.storage.files import expanded, unused

    dataset = open_dataset(data_config(data, options))
    counts: dict[str, int | None] = {name: len(part) for name, part in dataset.splits.items()}
    if dataset.stream is not None:
        counts["train"] = None
    train = dataset.splits["train"]
    examples = train.sample(_EXAMPLES).read()
    known = [count for count in counts.values() if count is not None]
    total = sum(known) if len(known) == len(counts) else None
    path = None
    if is_image(dataset.shape):
        name = f"{Path(dataset.source).stem}-examples.png"
        path = unused(name) if out is None else expanded(out)
        save_sheet(examples, dataset.levels, path)
    if as_json:
        print_json(
            {
                "source": dataset.source,
                "shape": list(dataset.shape),
                "levels": dataset.levels,
                "splits": counts,
                "labels": dataset.labels,
                "notes": list(dataset.remarks),
                "sheet": None if path is None else str(path),
            }
        )
        return
    levels = "real values" if dataset.levels is None else f"{dataset.levels} levels"
    rows = [
        ("examples", _number(total)),
        ("shape of one", " x ".join(map(str, dataset.shape))),
        ("values", f"{levels}, {examples.min()} to {examples.max()} in {len(examples)} examples"),
        *((f"  {name}", _number(count)) for name, count in counts.items()),
    ]
    if dataset.labels is not None:
        rows.append(("labels", ", ".join(dataset.labels)))
    print_table(dataset.source, ["", ""], rows)
    for note in dataset.remarks:
        say(note)
    if path is not None:
        say(f"a sheet of examples: {path}")


def _number(count: int | None) -> str:
    return "unknown number, streamed" if count is None else str(count)
