"""Results as files: JSON for what is said once, Parquet for a line per latent or step. Each appears whole or not."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.core.files import write_json
from saelab.core.read import check_format, expect, read_json
from saelab.data.parquet import read_parquet, write_parquet

FORMAT = 1
AGAIN = "restore it from a copy or run the same command again"
Columns = dict[str, Tensor | Sequence[Any]]
"""Of a table, by name and of equal length."""


def write_result(folder: Path, kind: str, about: Mapping[str, Any]) -> None:
    """Write `KIND.json` into a folder: a JSON object with `format` and `kind` and what else there is to say."""
    write_json(folder / f"{kind}.json", {"format": FORMAT, "kind": kind, **about})


def read_result(folder: str | Path, kind: str, what: Any) -> dict[str, Any]:
    """What `write_result` wrote; ValueError that names the file if it is missing, damaged or newer.

    Args:
        folder: of the result.
        kind: of the result.
        what: what it holds, as `saelab.core.read` says it.
    """
    path = Path(folder) / f"{kind}.json"
    found = read_json(path)
    check_format(path, found.get("format"), FORMAT)
    expect(found, {"kind": kind} | what, path, AGAIN)
    return found


def write_table(path: Path, columns: Mapping[str, Tensor | Sequence[Any]]) -> None:
    """Write columns of equal length as Parquet."""
    import pyarrow as pa  # takes long to import, and only files need it

    plain = {key: part.cpu().numpy() if isinstance(part, Tensor) else list(part) for key, part in columns.items()}
    write_parquet(path, pa.table(plain))


def write_lines(path: Path, lines: Sequence[Any]) -> None:
    """Write dataclass objects of one kind as Parquet, a column for each field."""
    records = [asdict(line) for line in lines]
    write_table(path, {key: [record[key] for record in records] for key in (records[0] if records else ())})


def read_table(path: str | Path, columns: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of a Parquet file: tensors where they are numbers, lists otherwise.

    Args:
        path: of the file.
        columns: those it has to have, see `saelab.data.parquet.read_parquet`; others are read too.

    Raises:
        ValueError: that names the file if it is missing, damaged or lacks a column.
    """
    import pyarrow as pa

    table = read_parquet(path, columns, AGAIN)
    found: dict[str, Any] = {}
    for name in table.column_names:
        column = table[name]
        plain = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        whole = plain and not column.null_count
        found[name] = torch.from_numpy(column.to_numpy().copy()) if whole else column.to_pylist()
    return found
