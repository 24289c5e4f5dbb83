"""Tables of figures for every example, as .csv or .parquet files."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from variational_diffusion.errors import InputError, needs
from variational_diffusion.storage.files import atomic

ENDINGS = (".csv", ".parquet")


def write_columns(path: str | Path, columns: dict[str, np.ndarray]) -> None:
    """Write columns of one length as a .csv or .parquet file, which must not exist."""
    with atomic(path) as temporary:
        if Path(path).suffix == ".parquet":
            with needs("data"):
                import pyarrow  # noqa: PLC0415  (it takes a third of a second)
                import pyarrow.parquet  # noqa: PLC0415  (as above)

            pyarrow.parquet.write_table(pyarrow.table(columns), temporary)
            return
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))


def check_target(name: str, path: str | None, endings: tuple[str, ...]) -> None:
    """Refuse before the work a file that could not be written after it."""
    if path is None:
        return
    if Path(path).suffix not in endings:
        raise InputError(f"{name} = '{path}': give a name that ends in {' or '.join(endings)}")
    if Path(path).suffix == ".parquet":
        with needs("data"):
            import pyarrow  # noqa: F401, PLC0415  (asked only whether it is there)
    if Path(path).exists():
        raise InputError(f"{name} = '{path}' exists and is not overwritten; give another name")
