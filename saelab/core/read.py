"""The checked readers of text, JSON, JSON lines and YAML: what a file should hold is said where it is read.

    read_json(path, {"members": [str], "step": int})      "k/sweep.json: members: expected a list of texts, got 3; ..."

Whatever stands in a file, reading it gives what was expected or one line of ValueError: the file, the place in it, what
was expected, what to do. What is expected of a value is

    str, bool, list, dict, Any    such a value
    int                           a whole number of at most 63 bits, no bool
    float                         a finite number, no bool
    None, (int, None), "kl"       null; one of several; this very value
    [int], {str: int}             a list of them; a table whose values are such
    {"k": int, "name?": str}      a table with these keys, the second of which may be missing; others may be there too
    Row(int, str)                 a list of so many, each as said

Files of strangers may repeat keys and hold NaN, as other programs write them; ours may not. Tensors are read by
`saelab.core.files`, Parquet by `saelab.data.parquet`, SQLite by `saelab.explorer.database`.
"""

import gzip
import json
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

BOM = "\ufeff"
REMEDY = "restore it from a copy or make it again"
DEEPEST = 100
"""Tables and lists inside each other, at most: what walks over a value may call itself for each."""
MOST = 1_000_000
"""Values in a YAML file at most, those behind an alias counted wherever it stands."""
MEND = "mend the line or take it out"
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
NOT_YAML = (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError)
"""What PyYAML raises for a text that is none, or whose tags do not fit their values."""
WORDS = {str: "a text", bool: "true or false", int: "a whole number", float: "a number", list: "a list"}
WORDS |= {dict: "a table"}
SEVERAL = {str: "texts", int: "whole numbers", float: "numbers", dict: "tables"}


class Row:
    """A list with one value for each of these kinds."""

    def __init__(self, *kinds: Any):
        self.kinds = kinds


# ---- what is expected ----


def expect(value: Any, kind: Any, where: str | Path, remedy: str = REMEDY) -> Any:
    """The value itself; ValueError that begins with `where` and ends with `remedy` unless it is as `kind` says."""
    if found := _misfit(value, kind, ""):
        place, wanted, got = found
        place = f"{place.removeprefix('.')}: " if place else ""
        raise ValueError(f"{where}: {place}expected {wanted}, got {got}; {remedy}")
    return value


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is as expected."""
    return _misfit(value, kind, "") is None


def _misfit(value: Any, kind: Any, place: str) -> tuple[str, str, str] | None:
    """Place, what was expected and what was found instead; None if all is as expected."""
    if isinstance(kind, dict) and str not in kind and isinstance(value, dict):
        for key, inner in kind.items():
            name = key.removesuffix("?")
            if name not in value:
                if name == key:
                    return f"{place}.{name}", type_words(inner), "nothing"
            elif found := _misfit(value[name], inner, f"{place}.{name}"):
                return found
        return None
    if isinstance(kind, dict) and str in kind and isinstance(value, dict):
        return next(filter(None, (_misfit(v, kind[str], f"{place}.{_short(key)}") for key, v in value.items())), None)
    if isinstance(kind, list) and isinstance(value, list):
        return next(filter(None, (_misfit(v, kind[0], f"{place}[{n}]") for n, v in enumerate(value))), None)
    if isinstance(kind, Row) and isinstance(value, list) and len(value) == len(kind.kinds):
        pairs = enumerate(zip(value, kind.kinds, strict=True))
        return next(filter(None, (_misfit(v, inner, f"{place}[{n}]") for n, (v, inner) in pairs)), None)
    if isinstance(kind, tuple):
        misfits = [_misfit(value, inner, place) for inner in kind]
        inside = [found for found in misfits if found and found[0] != place]
        return None if None in misfits else (inside or [(place, type_words(kind), _shown(value))])[0]
    return None if _is_a(value, kind) else (place, type_words(kind), _shown(value))


def _is_a(value: Any, kind: Any) -> bool:
    if kind is Any or kind is None:
        return kind is Any or value is None
    if kind is int:
        return type(value) is int and -(1 << 63) <= value < 1 << 63
    if kind is float:
        return type(value) in (int, float) and abs(value) < 1e308 and math.isfinite(value)
    return type(value) is kind if isinstance(kind, type) else type(value) is type(kind) and value == kind


def type_words(kind: Any) -> str:
    """What is expected, in words."""
    if isinstance(kind, tuple):
        return " or ".join(type_words(inner) for inner in kind)
    if isinstance(kind, Row):
        return f"a list of {len(kind.kinds)}"
    if isinstance(kind, list):
        one = dict if isinstance(kind[0], dict) else kind[0]
        return f"a list of {SEVERAL.get(one, 'values') if isinstance(one, type) else 'values'}"
    if isinstance(kind, dict):
        return "a table"
    return "null" if kind is None else WORDS.get(kind, "a value") if isinstance(kind, type) else repr(kind)


def _shown(value: Any) -> str:
    if isinstance(value, list | dict):
        return f"{WORDS[type(value)]} of {len(value)}"
    if type(value) is int and abs(value) >= 1 << 63:
        return "a number of more than 63 bits"
    return _short(json.dumps(value, ensure_ascii=False))


def _short(text: object) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= 40 else f"{line[:36]} ..."


def check_format(path: Path, found: Any, known: int) -> None:
    """ValueError if a file's format number is missing or newer than this program knows."""
    if type(found) is not int:
        raise ValueError(f"{path} has no format number: it was not written by saelab")
    if found > known:
        raise ValueError(f"{path} has format {found}, newer than {known}, the newest this saelab reads; update saelab")


# ---- files ----


def text_of(path: str | Path, remedy: str = REMEDY) -> str:
    """A UTF-8 file's text; ValueError that names it if it is missing or something else."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"there is no file {path}") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder, expected a file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({_line(error)}); {remedy}") from None


def read_json(path: str | Path, kind: Any = dict, foreign: bool = False, remedy: str = REMEDY) -> Any:
    """What a JSON file holds: of this kind, or a ValueError."""
    return parse_json(text_of(path, remedy), path, kind, foreign, remedy)


def read_yaml(path: str | Path, kind: Any = dict, remedy: str = REMEDY) -> Any:
    """What a YAML file holds: of this kind, or a ValueError."""
    return parse_yaml(text_of(path, remedy), path, kind, remedy)


def read_json_lines(path: str | Path, kind: Any = dict) -> Iterator[tuple[int, Any]]:
    """Number, from 1, and value of each line of a stranger's file, packed if its name ends in .gz; no empty ones."""
    with gzip.open(path) if str(path).lower().endswith(".gz") else open(path, "rb") as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, parse_json(line, f"{path}, line {number}", kind, True, MEND)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is damaged or cut short ({_line(error)}); restore it from a copy") from None


# ---- what they hold ----


def parse_json(
    text: str | bytes, where: str | Path, kind: Any = dict, foreign: bool = False, remedy: str = REMEDY
) -> Any:
    """The value of a JSON text.

    Args:
        text: UTF-8, where it is bytes.
        where: the file, and the place in it, for complaints.
        kind: what is expected, as above.
        foreign: whether keys may repeat (the last one counts), numbers be NaN or infinite, and texts hold half a
            surrogate pair (which becomes "?").
        remedy: what to do about it.
    """
    hooks: dict[str, Any] = {} if foreign else {"object_pairs_hook": _once, "parse_constant": _constant}
    try:
        text = (text.decode() if isinstance(text, bytes) else text).removeprefix(BOM)
        value = json.loads(text, **hooks)
        if text.count("[") + text.count("{") > DEEPEST or SURROGATE.search(text):
            value = _plain(value, DEEPEST, [len(text)], foreign)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is damaged: not JSON ({_why(error)}); {remedy}") from None
    return expect(value, kind, where, remedy)


def parse_yaml(text: str, where: str | Path, kind: Any = dict, remedy: str = REMEDY) -> Any:
    """The value of a YAML text, of what JSON has too: null, true, numbers, texts, lists, tables named by texts."""
    try:
        value = _plain(yaml.load(text, _Loader), DEEPEST, [MOST], False)  # noqa: S506
    except NOT_YAML as error:
        raise ValueError(f"{where} is damaged: not YAML that saelab reads ({_why(error)}); {remedy}") from None
    return expect(value, kind, where, remedy)


class _Loader(yaml.SafeLoader):
    """Makes plain values only, and complains of a key that is repeated."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        _check_once([key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"])
        return super().construct_mapping(node, deep)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _check_once([key for key, _ in pairs])
    return dict(pairs)


def _check_once(keys: list[str]) -> None:
    if len(set(keys)) < len(keys):
        raise ValueError(f"the key {_short(next(key for key in keys if keys.count(key) > 1))} is repeated")


def _constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _plain(value: Any, deep: int, left: list[int], foreign: bool) -> Any:
    """A copy with whole texts only; ValueError if it goes too deep, is too large or holds what JSON does not have."""
    left[0] -= 1
    if deep < 0 or left[0] < 0:
        raise ValueError(f"nested more than {DEEPEST} deep" if deep < 0 else f"more than {MOST:,} values")
    if isinstance(value, list):
        return [_plain(part, deep - 1, left, foreign) for part in value]
    if isinstance(value, dict):
        if odd := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"the key {_short(odd[0])} is not text: write it in quotes")
        return {_whole(key, foreign): _plain(part, deep - 1, left, foreign) for key, part in value.items()}
    if isinstance(value, str):
        return _whole(value, foreign)
    if isinstance(value, float) and not (foreign or math.isfinite(value)):
        raise ValueError(f"the number {value} is not finite")
    if value is not None and type(value) not in (bool, int, float):
        raise ValueError(f"{_short(value)} is a {type(value).__name__}: write it in quotes")
    return value


def _whole(text: str, foreign: bool) -> str:
    try:
        return text.encode("utf-8", "replace" if foreign else "strict").decode()
    except UnicodeEncodeError:
        raise ValueError("an unpaired surrogate in a text") from None


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"nested more than {DEEPEST} deep"
    if "digits" in str(error):  # of Python's own limit, and how it is raised
        return "a number of too many digits"
    if isinstance(error, KeyError | IndexError | AttributeError):  # their words are of the parser's own parts
        return "a value that does not fit its tag"
    return _line(error)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
