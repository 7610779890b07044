"""Scores as a Parquet table, for whoever reads them with other tools: one line for each SAE and metric.

Columns: sae, metric, value, low, high (95 % bootstrap interval, null where there is none), n, unit, documents (that the
interval is over, null where it is over something else).
"""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saelab.core.files import write_text
from saelab.data.parquet import read_parquet, write_parquet
from saelab.metrics.base import Table


def write_table(path: Path, scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Write scores, as JSON has them, by SAE and metric; whole or not at all."""
    import pyarrow

    lines = [{"sae": name, "metric": key, **score} for name, found in scores.items() for key, score in found.items()]
    text, number = pyarrow.string(), pyarrow.float64()
    kinds = {"value": number, "low": number, "high": number, "n": pyarrow.int64(), "unit": text}
    kinds |= {"documents": pyarrow.int64()}
    schema = pyarrow.schema({"sae": text, "metric": text, **kinds})
    write_parquet(path, pyarrow.Table.from_pylist(lines, schema=schema))


def write_columns(path: Path, columns: Mapping[str, list[Any]]) -> None:
    """Write a metric's own table, whole or not at all."""
    import pyarrow

    write_parquet(path, pyarrow.table({name: pyarrow.array(column) for name, column in columns.items()}))


def read_columns(path: Path, kinds: Mapping[str, Any] | None = None) -> Table:
    """A table that `write_columns` wrote; ValueError that names the file if it is damaged or lacks one of `kinds`."""
    table: Table = read_parquet(path, kinds, "restore it from a copy or measure again").to_pydict()
    return table


def write_csv(path: Path, table: Table) -> None:
    """Write columns of equal length as CSV, whole or not at all; None is nothing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(zip(*table.values(), strict=True))
    write_text(path, text.getvalue())
