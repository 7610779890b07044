"""Scores as a Parquet table, for whoever reads them with other tools: one line for each SAE and metric.

Columns: sae, metric, value, low, high (95 % bootstrap interval, null where there is none), n, unit.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saelab.core.files import write_whole


def write_table(path: Path, scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Write scores, as JSON has them, by SAE and metric; whole or not at all."""
    import pyarrow
    import pyarrow.parquet

    lines = [{"sae": name, "metric": key, **score} for name, found in scores.items() for key, score in found.items()]
    text, number = pyarrow.string(), pyarrow.float64()
    kinds = {"value": number, "low": number, "high": number, "n": pyarrow.int64(), "unit": text}
    schema = pyarrow.schema({"sae": text, "metric": text, **kinds})
    table = pyarrow.Table.from_pylist(lines, schema=schema)
    write_whole(path, lambda file: pyarrow.parquet.write_table(table, file))


def write_columns(path: Path, columns: Mapping[str, list[Any]]) -> None:
    """Write a metric's own table, whole or not at all."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({name: pyarrow.array(column) for name, column in columns.items()})
    write_whole(path, lambda file: pyarrow.parquet.write_table(table, file))
