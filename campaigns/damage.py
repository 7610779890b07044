"""Ways to damage a file: bytes of any, and parts of JSON, YAML, headers of tensors, tables of SQLite and Parquet.

A damaged file may also be one that anybody could have written: another value, another kind of value, a part less.
"""

import contextlib
import json
import random
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    3,
    1.5,
    1e308,
    10**30,
    "",
    "x",
    "\ud800",
    [],
    {},
    [[]],
    {"a": 1},
    [None],
    "NaN",
    float("nan"),
]


def damage(draw: random.Random, file: Path) -> str:
    """Damage a file in a way that fits it, or as bytes; returns how."""
    kinds: list[Callable[[random.Random, Path], str]] = [_bytes]
    if file.suffix in (".json", ".jsonl"):
        kinds = [_structure, _structure, _structure, _bytes, _text]
    if file.suffix == ".yaml":
        kinds = [_settings, _settings, _bytes, _text]
    if file.suffix == ".safetensors":
        kinds = [_bytes, _header]
    if file.suffix == ".sqlite":
        kinds = [_bytes, _table, _table, _row, _row, _packed]
    if file.suffix == ".parquet":
        kinds = [_bytes, _columns, _columns]
    if file.suffix in (".txt", ".py"):
        kinds = [_bytes, _text]
    return draw.choice(kinds)(draw, file)


def _bytes(draw: random.Random, file: Path) -> str:
    data, at = bytearray(file.read_bytes()), draw.randrange(max(1, file.stat().st_size))
    how = draw.choice(("bit", "cut", "zeros", "junk", "empty", "twice"))
    if how == "bit" and data:
        data[at] ^= 1 << draw.randrange(8)
    elif how == "cut":
        del data[at:]
    elif how == "zeros":
        data[at : at + 64] = bytes(min(64, len(data) - at))
    elif how == "junk":
        data[at : at + 8] = draw.randbytes(8)
    elif how == "empty":
        data.clear()
    else:
        data += data[:at]
    file.write_bytes(data)
    return f"{how} at {at}"


def _text(draw: random.Random, file: Path) -> str:
    bad = draw.choice((b"[" * 10_000, b"\xff\xfe", b"\x00", b"\xef\xbb\xbf", b"&a [*a]\n", b"9" * 5000, b"{}\n", b"\n"))
    data = file.read_bytes()
    at = draw.choice((0, len(data), draw.randrange(len(data))))
    file.write_bytes(data[:at] + bad + data[at:])
    return f"{bad[:8]!r} put in at {at}"


def _structure(draw: random.Random, file: Path) -> str:
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    number = draw.choice([number for number, line in enumerate(lines) if line.strip()] or [-1])
    if number < 0:
        return _bytes(draw, file)
    value, how = _other(draw, json.loads(lines[number]))
    lines[number] = json.dumps(value)
    file.write_text("\n".join(lines) + "\n")
    return how


def _settings(draw: random.Random, file: Path) -> str:
    import yaml

    value, how = _other(draw, yaml.safe_load(file.read_text()))
    file.write_text(yaml.safe_dump(value))
    return how


def _other(draw: random.Random, value: Any) -> tuple[Any, str]:
    """A value with one part replaced, removed or added."""
    places: list[tuple[Any, Any]] = []

    def walk(part: Any) -> None:
        for key in part if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ():
            places.append((part, key))
            walk(part[key])

    walk(value)
    if not places or draw.random() < 0.05:
        odd = draw.choice(ODD)
        return odd, f"made {odd!r}"
    part, key = draw.choice(places)
    odd = draw.choice(ODD)
    if draw.random() < 0.3:
        del part[key]
        return value, f"without {key}"
    part[key] = odd
    return value, f"with {key} = {odd!r}"


def _header(draw: random.Random, file: Path) -> str:
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, how = _other(draw, json.loads(data[8 : 8 + size]))
    text = json.dumps(header).encode()
    length = draw.choice((len(text), len(text), len(text) + draw.randrange(9), 1 << draw.randrange(64)))
    file.write_bytes(length.to_bytes(8, "little") + text + data[8 + size :])
    return f"header {how}, its length {length}"


IN_TABLES = (None, b"\x01\x02\x03", b"\xff" * 64, "x", -1, 1 << 40, 1e308, "", b"", "[]", "{")


def _column(draw: random.Random, connection: sqlite3.Connection) -> tuple[str, str]:
    names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    name = draw.choice([name for name in names if not name.startswith(("sqlite", "words_", "said_"))])
    return name, draw.choice([row[1] for row in connection.execute(f"PRAGMA table_info({name})")])


def _table(draw: random.Random, file: Path) -> str:
    with sqlite3.connect(file) as connection:
        (name, column), odd = _column(draw, connection), draw.choice(IN_TABLES)
        change = draw.choice((f"DROP TABLE {name}", f"DELETE FROM {name}", f"UPDATE {name} SET {column} = ?"))
        change = _executed(connection, (change, (odd,) if "?" in change else ()), (f"DELETE FROM {name}", ()))
    return f"{change} {odd!r}"


def _executed(connection: sqlite3.Connection, *changes: tuple[str, tuple[Any, ...]]) -> str:
    """The first of some changes that the table takes: an index without content takes few."""
    for change, values in changes:
        with contextlib.suppress(sqlite3.Error):
            connection.execute(change, values)
            return change
    return "nothing to change in it"


def _row(draw: random.Random, file: Path) -> str:
    with sqlite3.connect(file) as connection:
        (name, column), odd = _column(draw, connection), draw.choice(IN_TABLES)
        values = [value for (value,) in connection.execute(f"SELECT {column} FROM {name} LIMIT 50")]
        if not values:
            return "nothing in it"
        old = draw.choice(values)
        if isinstance(old, bytes) and draw.random() < 0.5:
            odd = old[: draw.randrange(len(old) + 1)]
        where = f"WHERE {column} IS ?"
        _executed(
            connection,
            (f"UPDATE {name} SET {column} = ? {where}", (odd, old)),
            (f"DELETE FROM {name} {where}", (old,)),
        )
    return f"{name}.{column} {str(old)[:20]!r} made {str(odd)[:20]!r}"


def _packed(draw: random.Random, file: Path) -> str:
    with sqlite3.connect(file) as connection:
        rows = connection.execute("SELECT id, data FROM details").fetchall()
        if not rows:
            return "nothing in it"
        number, data = draw.choice(rows)
        value, how = _other(draw, json.loads(zlib.decompress(data)))
        changed = zlib.compress(json.dumps(value).encode())
        connection.execute("UPDATE details SET data = ? WHERE id = ?", (changed, number))
    return f"details of {number} {how}"


def _columns(draw: random.Random, file: Path) -> str:
    import pyarrow as pa
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(file)
    at = draw.randrange(table.num_columns)
    name, rows = table.column_names[at], table.num_rows
    how = draw.choice(("gone", "empty", "texts", "nulls", "numbers", "rows"))
    made = {"texts": pa.array(["x"] * rows), "nulls": pa.nulls(rows, table.schema.types[at])}
    made["numbers"] = pa.array([draw.choice((-1, 1 << 40))] * rows)
    if how == "gone":
        table = table.drop_columns([name])
    elif how in made:
        table = table.set_column(at, name, made[how])
    else:
        table = table.slice(0, 0 if how == "empty" else draw.randrange(rows + 1))
    pyarrow.parquet.write_table(table, file)
    return f"column {name} {how}"
