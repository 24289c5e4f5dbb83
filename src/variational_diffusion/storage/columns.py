"""Tables of figures for every example, as .csv or .parquet files."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from variational_diffusion.escaping import cell
from variational_diffusion.storage.files import atomic

ENDINGS = (".csv", ".parquet")


def write_columns(path: str | Path, columns: dict[str, np.ndarray]) -> None:
    """Write columns of one length as a .csv or .parquet file, which must not exist."""
    with atomic(path) as temporary:
        if Path(path).suffix == ".parquet":
            import pyarrow  # noqa: PLC0415  (it takes a third of a second)
            import pyarrow.parquet  # noqa: PLC0415  (as above)

            pyarrow.parquet.write_table(pyarrow.table(columns), temporary)
            return
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            rows = zip(*(column.tolist() for column in columns.values()), strict=True)
            for row in ([*columns], *rows):
                writer.writerow([cell(value) if isinstance(value, str) else value for value in row])
