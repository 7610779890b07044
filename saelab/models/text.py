"""Where text comes from: documents of the standard library, of local files or of a hub data set, in a fixed order.

What is held out is decided by a document's content, so every source, order and machine agrees about it. Tokens belong
to `saelab.models.tokens`; nothing is downloaded to the disk here, hub data sets are streamed.
"""

import difflib
import glob
import hashlib
import os
import random
import re
import string
import sysconfig
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab.core.components import near_miss
from saelab.core.read import read_json_lines, text_of
from saelab.data.parquet import parquet_names, parquet_rows
from saelab.models.places import Place

SPLITS = ("all", "train", "held-out")
HELD_OUT_BELOW = 13  # of 256: about 5 %
PIECES_HELD = 50_000
ASCII_LETTERS, ASCII_RUNS = string.ascii_letters.encode(), re.compile("[\0-\x7f]+")
BLANK, JOINER, VARIANTS = re.compile(r"\s"), "\u200d", "\ufe0e\ufe0f"


@dataclass(frozen=True)
class Document:
    """One text with a name that says where it is from, e.g. `json/decoder.py` or `data.jsonl row 12`; see `places`."""

    name: str
    text: str


def read_text(source: str, split: str = "all", field: str = "text", seed: int = 0) -> Iterator[Document]:
    """Documents of a source, the same ones in the same order for the same arguments.

    Documents without any visible character are left out. Files are read in an order shuffled by `seed`, so that the
    first N tokens of the standard library or of a folder are a fair sample; the lines of a .jsonl, the rows of a
    .parquet and of a hub data set come in their own order.

    Args:
        source: `stdlib` (the Python files of this interpreter's library); a .txt, .md, .py, .jsonl, .jsonl.gz or
            .parquet file; a folder (all such files in it and below, hidden ones left out); a glob; or
            `hf:NAME[:CONFIG][@SPLIT]`, streamed from the hub (SPLIT is `train` unless given).
        split: `all`, `train`, or `held-out`: the about 5 % of documents whose sha256 begins with a byte below 13.
        field: which field of a JSON line, Parquet row or hub row is the text.
        seed: of the order of files.

    Raises:
        ValueError: for a source that does not exist or cannot be read, naming the file and what to do; some only
            when the document is reached.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split '{split}'{near_miss(split, SPLITS)}")
    if source == "stdlib":
        documents = _stdlib(seed)
    elif source.startswith("hf:"):
        documents = _hub(source, field)
    else:
        documents = _local(_found(source), field, seed)
    return _chosen(documents, source, split)


def is_held_out(text: str) -> bool:
    """Whether a document with this text belongs to the held-out split."""
    return hashlib.sha256(text.encode()).digest()[0] < HELD_OUT_BELOW


def _chosen(documents: Iterable[Document], source: str, split: str) -> Iterator[Document]:
    seen = kept = 0
    for document in documents:
        if not document.text.strip():
            continue
        seen += 1
        if split == "all" or is_held_out(document.text) == (split == "held-out"):
            kept += 1
            yield document
    if not seen:
        raise ValueError(f"'{source}' has no document with text in it: give another source")
    if not kept:
        raise ValueError(
            f"'{source}' has no document in the split '{split}' (it has {seen} in all; about 5 % are held out, by "
            "content): give more text or use the split 'all'"
        )


def in_pieces(documents: Iterable[Document], size: int, seed: int = 0) -> Iterator[Document]:
    """Documents cut into pieces of about `size` characters, in random order.

    A piece is whole lines, of at least `size` characters in all; only a line longer than that is cut, at the first
    blank from there on, or where there is none in as many characters again, between two characters.

    However few pieces are read, they are a sample of all the text; whole documents would be a few topics only. The
    order is random over PIECES_HELD pieces, which are held in memory. A piece is named after the place it
    begins at.

    Raises:
        ValueError: for a size below 1.
    """
    if size < 1:
        raise ValueError(f"a piece needs at least 1 character, got {size}")
    draw = random.Random(seed)
    held: list[Document] = []
    for document in documents:
        for piece in _cut(document, size):
            if len(held) < PIECES_HELD:
                held.append(piece)
            else:
                place = draw.randrange(len(held))
                yield held[place]
                held[place] = piece
    draw.shuffle(held)
    yield from held


def _cut(document: Document, size: int) -> Iterator[Document]:
    place, held, length = Place.of(document.name), [], 0
    for part in _parts(document.text, size):
        held.append(part)
        length += len(part)
        if length >= size:
            text = "".join(held)
            yield Document(place.name(), text)
            place, held, length = place.behind(text), [], 0
    if held:
        yield Document(place.name(), "".join(held))


def _parts(text: str, size: int) -> Iterator[str]:
    """Lines, and those of more than `size` characters in parts of about as many, cut in front of a blank."""
    for line in text.splitlines(keepends=True):
        start, end = 0, len(line.rstrip())
        while end - start > size:
            blank = BLANK.search(line, start + size, min(start + 2 * size, end))
            cut = blank.start() if blank else _between_characters(line, start + size)
            if cut >= end:
                break
            yield line[start:cut]
            start = cut
        yield line[start:]


def _between_characters(line: str, place: int) -> int:
    """The first place from `place` on with no mark behind it that belongs to the character in front of it."""
    while place < len(line) and (
        unicodedata.combining(line[place]) or JOINER in line[place - 1 : place + 1] or line[place] in VARIANTS
    ):
        place += 1
    return place


# ---- the standard library ----


def _stdlib(seed: int) -> Iterator[Document]:
    root = Path(sysconfig.get_paths()["stdlib"])
    names = sorted(_library_files(root))
    if not names:
        raise ValueError(f"{root} holds no .py files (a zipped library?): give a folder or a file of text instead")
    random.Random(seed).shuffle(names)
    seen: set[bytes] = set()
    for name in names:
        text = _library_text(root.joinpath(*name))
        if text is None or (digest := hashlib.sha256(text.encode()).digest()) in seen:
            continue
        seen.add(digest)
        yield Document("/".join(name), text)


def _library_files(root: Path) -> Iterator[tuple[str, ...]]:
    """Parts of the name of each .py file; never looks into installed packages, which can be many times as many."""
    # The filter is the one that made the bundled model's corpus: change it and its hold-out no longer matches.
    for folder, folders, files in os.walk(root):
        folders[:] = {*folders} - {"site-packages", "dist-packages", "__pycache__"}
        parts = Path(folder).relative_to(root).parts
        yield from ((*parts, file) for file in files if file.endswith(".py"))


def _library_text(path: Path) -> str | None:
    """The text of a library file, or None if it is not worth reading: not UTF-8, too short or long, tables of data."""
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return None
    if not 200 <= len(text) <= 300_000 or max(map(len, text.splitlines()), default=0) > 1000:
        return None
    return text if _letters(text) >= 0.35 * len(text) else None


def _letters(text: str) -> int:
    """How many characters are letters; the library is 30 MB, nearly all of it ASCII, and read again and again."""
    ascii = text.encode("ascii", "ignore")
    found = len(ascii) - len(ascii.translate(None, ASCII_LETTERS))
    return found if text.isascii() else found + sum(map(str.isalpha, ASCII_RUNS.sub("", text)))


# ---- local files ----


def _found(source: str) -> list[tuple[Path, str]]:
    """Files of a path, folder or glob with the names of their documents, sorted."""
    path = Path(source).expanduser()
    if path.is_dir():
        names = {file: file.relative_to(path) for file in path.rglob("*") if file.is_file() and _ending(file)}
        files = [(file, name.as_posix()) for file, name in sorted(names.items()) if not _is_hidden(name)]
        if not files:
            raise ValueError(f"the folder {path} holds no file that can be read; known are {', '.join(READERS)}")
        return files
    if path.exists():
        files = [(path, path.name)]
    elif glob.has_magic(source):
        found = [Path(file) for file in sorted(glob.glob(str(path), recursive=True)) if os.path.isfile(file)]
        if not found:
            raise ValueError(f"no file matches '{source}': check the pattern (** goes into folders)")
        root = os.path.commonpath([file.parent for file in found])
        files = [(file, file.relative_to(root).as_posix()) for file in found]
    else:
        raise ValueError(
            f"there is no file or folder '{source}'{_neighbour(path)}; a text source is stdlib, a file "
            f"({', '.join(READERS)}), a folder, a glob or hf:NAME"
        )
    for file, _ in files:
        if not _ending(file):
            raise ValueError(f"cannot read {file}: its ending is none of {', '.join(READERS)}")
    return files


def _is_hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)


def _neighbour(path: Path) -> str:
    names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, [*names, "stdlib"], n=1)
    return near_miss(path.name, close) if close else ""


def _ending(path: Path) -> str | None:
    return next((ending for ending in READERS if path.name.lower().endswith(ending)), None)


def _local(files: list[tuple[Path, str]], field: str, seed: int) -> Iterator[Document]:
    files = list(files)
    random.Random(seed).shuffle(files)
    for path, name in files:
        for place, text in READERS[_ending(path) or ""](path, field):
            yield Document(name + place, text)


def _plain(path: Path, field: str) -> Iterator[tuple[str, str]]:
    yield "", text_of(path, "convert it or move it away")


def _json_lines(path: Path, field: str) -> Iterator[tuple[str, str]]:
    for number, row in read_json_lines(path):
        yield f" row {number}", _field(row, field, f"{path}, line {number},")


def _parquet(path: Path, field: str) -> Iterator[tuple[str, str]]:
    _check_field(field, parquet_names(path), str(path))
    for number, row in enumerate(parquet_rows(path, [field]), 1):
        yield f" row {number}", _as_text(row[field], field, f"{path}, row {number},")


READERS: dict[str, Callable[[Path, str], Iterator[tuple[str, str]]]] = {
    ".txt": _plain,
    ".md": _plain,
    ".py": _plain,
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".parquet": _parquet,
}


# ---- the hub ----


def _hub(source: str, field: str) -> Iterator[Document]:
    path, _, hub_split = source.removeprefix("hf:").partition("@")
    name, _, config = path.partition(":")
    if not name:
        raise ValueError(f"'{source}' names no data set: write hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG@SPLIT")
    for number, row in enumerate(_hub_rows(source, name, config or None, hub_split or "train"), 1):
        yield Document(f"{name} row {number}", _field(row, field, f"row {number} of '{source}'"))


def _hub_rows(source: str, name: str, config: str | None, split: str) -> Iterator[dict[str, Any]]:
    import datasets

    number = 0
    try:
        for number, row in enumerate(datasets.load_dataset(name, config, split=split, streaming=True), 1):  # noqa: B007
            yield row
    except Exception as error:  # anything can go wrong on the way to a hub; all of it means the same to the user
        why = f"'{source}' stopped after {number} rows" if number else f"cannot stream '{source}' from the hub"
        advice = "check the name and the network, or give local text such as stdlib or a folder"
        raise ValueError(f"{why} ({type(error).__name__}: {_first_line(error)}): {advice}") from error


# ---- fields ----


def _field(row: dict[str, Any], field: str, where: str) -> str:
    _check_field(field, row, where)
    return _as_text(row[field], field, where)


def _check_field(field: str, fields: Iterable[str], where: str) -> None:
    fields = list(fields)
    if field not in fields:
        close = difflib.get_close_matches(field, fields, n=1, cutoff=0.5)
        hint = near_miss(field, close) if close else ""
        raise ValueError(f"{where} has no field '{field}'{hint}; its fields are: {', '.join(sorted(fields))}")


def _as_text(value: Any, field: str, where: str) -> str:
    if value is None:
        return ""  # an empty document, left out like any other
    if not isinstance(value, str):
        raise ValueError(f"{where} holds a {type(value).__name__} in the field '{field}', expected text")
    # JSON can spell half a surrogate pair, which is no text to a tokenizer.
    return value.encode("utf-8", "replace").decode()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no reason given"
