"""`vdm data`: show what will be read."""

from __future__ import annotations

from typing import Any

import click

from variational_diffusion.cli.shared.console import print_json, print_table, say, shown
from variational_diffusion.cli.shared.options import data_config, data_options, json_option

_EXAMPLES = 64


@click.command()
@click.argument("data", type=click.Path())
@click.option(
    "--out",
    type=click.Path(),
    help="Where to write a sheet of examples, a .png or .webp; default: none is written.",
)
@json_option
@data_options
def command(data: str, out: str | None, as_json: bool, **options: Any) -> None:
    """Show how DATA will be read: count, shape, levels, splits, and what is wrong with them.

    Up to 10,000 examples are read, of more so many drawn at random. Copies, damaged examples, and
    levels and places without variation are counted.

    Example: vdm data photos --resize 32x32 --out sheet.png
    """
    import numpy as np

    from variational_diffusion.data import open_dataset
    from variational_diffusion.data.examined import examined, sound
    from variational_diffusion.images.pictures import save_sheet

    dataset = open_dataset(data_config(data, options))
    counts: dict[str, int | None] = {name: len(part) for name, part in dataset.splits.items()}
    if dataset.stream is not None:
        counts["train"] = None
    found = examined(dataset, progress=shown)
    remarks = [*dataset.remarks, *found.remarks]
    sample = dataset.splits["train"].sample(_EXAMPLES)
    some = [values for _, values in sound(sample, np.arange(len(sample)))]
    examples = np.stack(some or list(sample.read()))
    known = [count for count in counts.values() if count is not None]
    total = sum(known) if len(known) == len(counts) else None
    if out is not None:
        save_sheet(examples, dataset.levels, out)
    if as_json:
        print_json(
            {
                "source": dataset.source,
                "shape": list(dataset.shape),
                "levels": dataset.levels,
                "splits": counts,
                "labels": dataset.labels,
                **found.as_json(),
                "notes": remarks,
                "sheet": out,
            }
        )
        return
    levels = "real values" if dataset.levels is None else f"{dataset.levels} levels"
    rows = [
        ("examples", _number(total)),
        *([("damaged", str(len(found.damaged)))] if found.damaged else []),
        ("shape of one", " x ".join(map(str, dataset.shape))),
        ("values", f"{levels}, {examples.min()} to {examples.max()} in {len(examples)} examples"),
        *((f"  {name}", _number(count)) for name, count in counts.items()),
    ]
    if dataset.labels is not None:
        rows.append(("labels", ", ".join(dataset.labels)))
    print_table(dataset.source, ["", ""], rows)
    for note in remarks:
        say(note)
    if out is not None:
        say(f"a sheet of examples: {out}")


def _number(count: int | None) -> str:
    return "unknown number, streamed" if count is None else str(count)
