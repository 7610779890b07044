"""The checked reader of Parquet files: the columns that are expected, or one line that names the file and the fault.

A column is expected as `saelab.core.read` says it: `str`, `bool`, `int`, `float` (whole numbers become floats), `list`,
`Any`, or (kind, None) where entries may be null. pyarrow takes long to import and only files need it: it is imported on
use.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.core.components import near_miss
from saelab.core.files import write_whole
from saelab.core.read import REMEDY, WORDS

if TYPE_CHECKING:
    import pyarrow


def read_parquet(path: str | Path, columns: Mapping[str, Any] | None = None, remedy: str = REMEDY) -> "pyarrow.Table":
    """The table in a Parquet file.

    Args:
        path: of the file.
        columns: those that it has to have, and what they hold; others may stand beside them.
        remedy: what to do about a file that is damaged.

    Raises:
        ValueError: that names the file, and the column.
    """
    import pyarrow
    import pyarrow.parquet

    if not Path(path).is_file():
        raise ValueError(f"there is no file {path}")
    # Whole, because its lists and texts are not looked at before somebody takes them out.
    table: pyarrow.Table = _tried(
        path, remedy, lambda: pyarrow.parquet.read_table(str(path), page_checksum_verification=True)
    )
    _tried(path, remedy, lambda: table.validate(full=True))
    for name, kind in (columns or {}).items():
        if table.column_names.count(name) != 1:
            raise ValueError(f"{path} has no column '{name}'{near_miss(name, table.column_names)}; {remedy}")
        kinds = kind if isinstance(kind, tuple) else (kind,)
        column, wanted = table[name], f"{path}: column {name}: expected {WORDS[kinds[0]]}"
        if column.null_count and None not in kinds and Any not in kinds:
            raise ValueError(f"{wanted} in each line, some hold none; {remedy}")
        if len(table) and not any(_holds(column.type, one) for one in kinds):
            raise ValueError(f"{wanted}, it holds {column.type}; {remedy}")
        if float in kinds and pyarrow.types.is_integer(column.type):
            place = table.column_names.index(name)
            table = table.set_column(place, name, column.cast(pyarrow.float64(), safe=False))
    return table


def _holds(kind: Any, wanted: Any) -> bool:
    from pyarrow import types

    if wanted is Any or types.is_null(kind):
        return wanted is Any or wanted is None
    checks: dict[Any, Sequence[Callable[[Any], bool]]] = {
        str: (types.is_string, types.is_large_string),
        bool: (types.is_boolean,),
        int: (types.is_integer,),
        float: (types.is_integer, types.is_floating),
        list: (types.is_list, types.is_large_list),
    }
    return any(check(kind) for check in checks.get(wanted, ()))


def parquet_names(path: str | Path) -> list[str]:
    """Names of the columns of a stranger's file."""
    import pyarrow.parquet

    names: list[str] = _tried(path, REMEDY, lambda: pyarrow.parquet.read_schema(str(path)).names)
    return names


def parquet_rows(path: str | Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a stranger's file, a few at a time; of some columns, or of all."""
    import pyarrow.parquet

    file = _tried(path, REMEDY, lambda: pyarrow.parquet.ParquetFile(str(path), page_checksum_verification=True))
    with file:
        batches = _tried(path, REMEDY, lambda: file.iter_batches(batch_size=1024, columns=columns))
        while batch := _tried(path, REMEDY, lambda: next(batches, None)):
            yield from _tried(path, REMEDY, batch.to_pylist)


def write_parquet(path: str | Path, table: "pyarrow.Table") -> None:
    """Write a table whole or not at all, with checksums of its pages."""
    import pyarrow.parquet

    write_whole(Path(path), lambda file: pyarrow.parquet.write_table(table, file, write_page_checksum=True))


def _tried(path: str | Path, remedy: str, read: Callable[[], Any]) -> Any:
    import pyarrow

    try:
        return read()
    except (pyarrow.ArrowException, ArithmeticError, LookupError, OSError, TypeError, ValueError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is damaged or not Parquet ({why}); {remedy}") from None
