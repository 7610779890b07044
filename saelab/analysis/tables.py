"""Results as files: JSON for what is said once, Parquet for a line per latent or step. Each appears whole or not."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.core.files import write_json, write_whole
from saelab.core.read import check_format, read_json

FORMAT = 1
Columns = dict[str, Tensor | Sequence[Any]]
"""Of a table, by name and of equal length."""


def write_result(folder: Path, kind: str, about: Mapping[str, Any]) -> None:
    """Write `KIND.json` into a folder: a JSON object with `format` and `kind` and what else there is to say."""
    write_json(folder / f"{kind}.json", {"format": FORMAT, "kind": kind, **about})


def read_result(folder: str | Path, kind: str) -> dict[str, Any]:
    """What `write_result` wrote; ValueError that names the file if it is missing, damaged or newer."""
    path = Path(folder) / f"{kind}.json"
    found = read_json(path)
    check_format(path, found.get("format"), FORMAT)
    return found


def write_table(path: Path, columns: Mapping[str, Tensor | Sequence[Any]]) -> None:
    """Write columns of equal length as Parquet."""
    import pyarrow as pa  # takes long to import, and only files need it
    import pyarrow.parquet as pq

    plain = {key: part.cpu().numpy() if isinstance(part, Tensor) else list(part) for key, part in columns.items()}
    table = pa.table(plain)
    write_whole(path, lambda file: pq.write_table(table, file))


def write_lines(path: Path, lines: Sequence[Any]) -> None:
    """Write dataclass objects of one kind as Parquet, a column for each field."""
    records = [asdict(line) for line in lines]
    write_table(path, {key: [record[key] for record in records] for key in (records[0] if records else ())})


def read_table(path: str | Path) -> dict[str, Any]:
    """Columns of a Parquet file: tensors where they are numbers, lists otherwise; ValueError if it is no such file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not Path(path).exists():
        raise ValueError(f"there is no file {path}")
    try:
        table = pq.read_table(path)
    except pa.ArrowException as error:
        raise ValueError(f"{path} is damaged ({error}); make it again") from None
    found: dict[str, Any] = {}
    for name in table.column_names:
        column = table[name]
        plain = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        whole = plain and not column.null_count
        found[name] = torch.from_numpy(column.to_numpy().copy()) if whole else column.to_pylist()
    return found
