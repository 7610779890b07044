"""The explorer's database: one SQLite file beside a run, with everything its pages show.

    meta         what was collected, when, from what; JSON values by key
    latents      a row of numbers per latent, for the table
    details      what a latent's page shows beyond that, compressed JSON
    activations  every row in which a latent is active, and its value there
    corpus       token, document and line of every row, and where in the text it stands, in pieces with their text
    documents    names
    blobs        the vocabulary; places on the maps, neighbours and their cosines as raw numbers
    words        full text: top tokens and contexts of each latent (FTS5, without its own copy of the text)
    said         full text: explanations
    notes        what a person wrote, in databases made before 2026-11-28; now it stands in a file beside this one

The schema has a version (`PRAGMA user_version`), and MIGRATIONS[v] leads from version v to v + 1. Collecting writes a
new file, which takes the old one's place, so that readers see the one or the other, whole. Everything in it can be made
again; the notes cannot, and stay in their file (`saelab.explorer.notes`) whatever becomes of this one.

A program that is killed while it writes leaves a journal, which whoever opens the database next rolls back; that is why
readers open it for writing, and then write nothing.
"""

# Shape letters: N rows of the corpus, n rows of one latent.

import os
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from saelab.core.files import PART
from saelab.core.read import expect, parse_json
from saelab.explorer.contents import DETAILS, activations_fault, array_fault, details_fault, tables_fault, unpacked
from saelab.explorer.notes import Note, Notes, Reader, keep, notes_file

FILE = "explorer.sqlite"
PIECE = 1 << 14
"""Rows of a piece of the corpus."""
PIECES_HELD = 256
"""Pieces held in memory: 80 MiB and their text."""

NUMBERS = (
    "count", "density", "mean", "median", "mean_square", "skew", "kurtosis", "largest", "negative", "norm", "cosine",
    "score", "probe_score",
)  # fmt: skip
"""Columns of `latents` that hold numbers; the table sorts and filters by them."""
WORDS = ("tokens", "kind", "explanation", "probe")
"""Columns of `latents` that hold text."""

MIGRATIONS: list[str] = [
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE latents (
        id INTEGER PRIMARY KEY, count INTEGER, density REAL, mean REAL, median REAL, mean_square REAL, skew REAL,
        kurtosis REAL, largest REAL, negative REAL, norm REAL, cosine REAL, nearest INTEGER, score REAL,
        probe_score REAL, tokens TEXT, kind TEXT, explanation TEXT, probe TEXT
    );
    CREATE TABLE details (id INTEGER PRIMARY KEY, data BLOB NOT NULL);
    CREATE TABLE activations (id INTEGER PRIMARY KEY, rows BLOB NOT NULL, vals BLOB NOT NULL);
    CREATE TABLE corpus (piece INTEGER PRIMARY KEY, token BLOB, document BLOB, line BLOB);
    CREATE TABLE documents (number INTEGER PRIMARY KEY, name TEXT, first INTEGER, last INTEGER);
    CREATE TABLE blobs (name TEXT PRIMARY KEY, data BLOB NOT NULL);
    CREATE TABLE notes (latent INTEGER PRIMARY KEY, note TEXT NOT NULL, tags TEXT NOT NULL, changed REAL NOT NULL);
    CREATE VIRTUAL TABLE words USING fts5(tokens, contexts, content='', tokenize="unicode61 tokenchars '_'");
    CREATE VIRTUAL TABLE said USING fts5(explanation, note, tags, tokenize='porter unicode61');
    """,
    "".join(f"CREATE INDEX latents_{name} ON latents ({name}, id);" for name in NUMBERS)
    + "CREATE INDEX latents_kind ON latents (kind, id);",
    # What was collected before has no text: it is shown by the vocabulary.
    "".join(f"ALTER TABLE corpus ADD COLUMN {name} BLOB;" for name in ("start", "stop", "text")),
]


BUSY = 10.0
"""Seconds to wait for another program that writes to the database."""
TABLES = ("meta", "latents", "details", "activations", "corpus", "documents", "blobs", "words", "said")
META = {"n_latents": int, "rows": int, "collected": float, "has_text": bool, "config": dict, "corpus": dict}
"""What `meta` holds at the least."""
ELSEWHERE = {
    sqlite3.SQLITE_BUSY: "another program writes to it: try again in a moment",
    sqlite3.SQLITE_LOCKED: "another program writes to it: try again in a moment",
    sqlite3.SQLITE_READONLY: "it cannot be written to, nor what a killed program began be rolled back: copy its folder",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened: look at the permissions of the file and its folder",
    sqlite3.SQLITE_PERM: "it cannot be opened: look at the permissions of the file and its folder",
    sqlite3.SQLITE_FULL: "the disk is full: free some space and try again",
    sqlite3.SQLITE_IOERR: "the disk does not answer: try again",
}
"""What is wrong, by SQLite's code, where nothing is wrong with the database."""


class DamagedError(ValueError):
    """A database that cannot be read; what it holds can be collected again."""


class Database:
    """An explorer database.

    Args:
        path: of the file.
        write: whether it may be written, and is made where there is none.

    Raises:
        DamagedError: if it is damaged or not an explorer's database.
        ValueError: if there is no such file, it is one of a newer saelab, or another program keeps it from being read.
    """

    def __init__(self, path: str | Path, write: bool = False):
        self.path, self.write = Path(path), write
        self.notes = Notes(notes_file(self.path))
        self._own = threading.local()
        self._held_file: int | None = None
        self._pieces: dict[int, tuple[np.ndarray, str | None]] = {}
        self._documents: dict[int, dict[str, Any]] = {}
        self._meta: dict[str, Any] = {}
        if not write and not self.path.exists():
            raise ValueError(f"there is no {self.path}; `saelab explore {self.path.parent}` makes it")
        version = self._one("PRAGMA user_version")[0]
        if version > len(MIGRATIONS):
            raise ValueError(f"{path} has version {version}, newer than {len(MIGRATIONS)}; update saelab")
        if version < len(MIGRATIONS):
            self._migrate(version)
        if not write:
            self._check()

    def damaged(self, why: object) -> DamagedError:
        """The complaint about what is wrong."""
        again = f"`saelab explore {self.path.parent} --recollect true` makes it again and keeps the notes"
        return DamagedError(f"{self.path} is damaged or not an explorer's database ({why}); {again}")

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Say in one line what is wrong where SQLite complains."""
        try:
            yield
        except OverflowError:
            raise ValueError("a number has more than 63 bits") from None
        except sqlite3.Error as error:
            elsewhere = ELSEWHERE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
            if elsewhere:
                raise ValueError(f"{self.path}: {elsewhere}") from None
            raise self.damaged(error) from None

    @contextmanager
    def _decoding(self) -> Iterator[None]:
        """Say in one line that what was read is not what was written."""
        try:
            yield
        except (zlib.error, TypeError, ValueError) as error:
            raise self.damaged(" ".join(str(error).split())[:200].removesuffix(";")) from None

    def _check(self) -> None:
        """DamagedError unless every table and every key of `meta` is there."""
        held = {name for (name,) in self.all("SELECT name FROM main.sqlite_master")}
        if missing := [name for name in TABLES if name not in held]:
            raise self.damaged(f"no table {missing[0]}")
        self._refuse(tables_fault(self.all, self.meta(), NUMBERS, WORDS, PIECE))

    def _refuse(self, fault: str | None) -> None:
        """DamagedError if something is wrong."""
        if fault:
            raise self.damaged(fault)

    @property
    def connection(self) -> sqlite3.Connection:
        """This thread's connection, to the file that stands at the path now."""
        try:
            file = self.path.stat().st_ino
        except FileNotFoundError:
            file = None
            if not self.write:
                self.close()
                raise ValueError(f"there is no {self.path} any more; `saelab explore {self.path.parent}`") from None
        if getattr(self._own, "file", None) != file:
            self.close()
        if not hasattr(self._own, "connection"):
            place = f"{self.path.resolve().as_uri()}?mode={'rwc' if self.write else 'rw'}"
            self._own.connection = sqlite3.connect(place, uri=True, timeout=BUSY)
            self._own.connection.row_factory = sqlite3.Row
            self._own.reader = Reader(self._own.connection, self.notes)
            self._own.connection.execute("PRAGMA mmap_size = 1073741824")
            if not self.write:
                # Readers open no transaction, and write nothing but what rolls a killed program's journal back.
                self._own.connection.isolation_level = None
                self._own.connection.execute("PRAGMA query_only = ON")
            self._own.file = self.path.stat().st_ino
        if not self.write:
            self._own.reader.refresh()
        connection: sqlite3.Connection = self._own.connection
        return connection

    def close(self) -> None:
        """Close this thread's connection."""
        if hasattr(self._own, "connection"):
            self._own.connection.close()
            del self._own.connection

    def _migrate(self, version: int) -> None:
        if not self.write:
            # Versions from 1 on can be read as they are, for instance from a medium that is read-only.
            if version == 0 or (os.access(self.path, os.W_OK) and os.access(self.path.parent, os.W_OK)):
                Database(self.path, write=True).close()
            return
        with self._asking():
            if version == 0:
                self.connection.execute("PRAGMA page_size = 16384")
            for number, script in enumerate(MIGRATIONS[version:], version + 1):
                # One transaction each, so that a killed migration leaves the version before.
                self.connection.executescript(f"BEGIN; {script}; PRAGMA user_version = {number}; COMMIT;")

    def _one(self, query: str, values: Sequence[Any] = ()) -> Any:
        with self._asking():
            return self.connection.execute(query, values).fetchone()

    def all(self, query: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """All rows of a query."""
        with self._asking():
            return self.connection.execute(query, values).fetchall()

    # ---- writing ----

    def change(self, act: Callable[[sqlite3.Connection], None]) -> None:
        """Do all that `act` does to the database, or nothing."""
        writer = Database(self.path, write=True)
        try:
            with writer._asking(), writer.connection as connection:
                act(connection)
        finally:
            writer.close()

    def write_note(self, latent: int, note: str, tags: Sequence[str], now: float) -> None:
        """Keep a note and tags of a latent; empty ones are removed. It is on the disk when this returns."""
        self.notes.add([Note(latent, note, tuple(tags), now)])

    # ---- reading ----

    def meta(self) -> dict[str, Any]:
        """What was collected."""
        self._refresh()
        if not self._meta:
            rows = self.all("SELECT key, value FROM meta")
            with self._decoding():
                found = {key: parse_json(value, f"{key} in its meta", Any, remedy="") for key, value in rows}
                self._meta = expect(found, META, "its meta", remedy="")
        return self._meta

    def vocabulary(self) -> list[str]:
        """The text of every token; empty where rows stand for none."""
        data = self._held("blobs", "name", "vocabulary")["data"]
        with self._decoding():
            found: list[str] = expect(unpacked(data), [str], "its vocabulary", "")
        return found

    def array(self, name: str) -> np.ndarray:
        """A named array's numbers, flat."""
        data = self._held("blobs", "name", name)["data"]
        with self._decoding():
            found = np.frombuffer(data, np.int32 if name == "neighbours" else np.float32)
        self._refuse(array_fault(name, found, self.meta()["n_latents"]))
        return found

    def _held(self, table: str, key: str, value: int | str) -> Any:
        """The row of a table that has to have it."""
        found = self._one(f"SELECT * FROM {table} WHERE {key} = ?", (value,))
        self._refuse(f"{table} lacks {value}" if found is None else None)
        return found

    def latent(self, number: int) -> dict[str, Any] | None:
        """The table's row of a latent."""
        found = self._one("SELECT * FROM latents WHERE id = ?", (number,))
        return dict(found) if found else None

    def details(self, number: int) -> dict[str, Any]:
        """What a latent's page shows beyond its row; LookupError if there is no such latent."""
        self._look_up(number)
        data = self._held("details", "id", number)["data"]
        with self._decoding():
            found: dict[str, Any] = expect(unpacked(data), DETAILS, f"details of latent {number}", "")
        self._refuse(details_fault(found, self.meta()["rows"]))
        return found

    def _look_up(self, number: int) -> None:
        if self.latent(number) is None:
            raise LookupError(f"there is no latent {number}")

    def activations(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows [n] int32, rising, in which a latent is active, its values there [n] float32; LookupError if none is."""
        self._look_up(number)
        held = self._held("activations", "id", number)
        with self._decoding():
            found = np.frombuffer(held["rows"], np.int32), np.frombuffer(held["vals"], np.float32)
        self._refuse(activations_fault(*found, self.meta()["rows"]))
        return found

    def corpus(self, first: int, last: int) -> dict[str, np.ndarray]:
        """Token, document and line of the rows first <= r < last, as far as there are any."""
        first = max(0, first)
        parts = [self._piece(number) for number in range(first // PIECE, (last - 1) // PIECE + 1)]
        begin = first // PIECE * PIECE
        found = np.concatenate([part[0] for part in parts if part is not None] or [np.empty((5, 0), np.int32)], axis=1)
        return dict(zip(("token", "document", "line"), found[:3, first - begin : last - begin], strict=True))

    def text(self, first: int, last: int) -> tuple[str, list[int], list[int]] | None:
        """The text of the rows first <= r < last of one document, with what stands between the row before and the
        first; and where in it each begins and ends. None where the database has none."""
        parts, texts, done = [], [], 0
        for number in range(first // PIECE, (last - 1) // PIECE + 1):
            part = self._piece(number)
            if part is None or part[1] is None:
                return None
            parts.append(part[0][3:].astype(np.int64) + done)
            texts.append(part[1])
            done += len(part[1])
        begin = first // PIECE * PIECE
        starts, ends = np.concatenate(parts, axis=1)
        lead = int(ends[first - begin - 1]) if first > begin else 0
        starts, ends = starts[first - begin : last - begin], ends[first - begin : last - begin]
        lead = max(0, min(lead, int(starts[0])))
        return "".join(texts)[lead : int(ends[-1])], (starts - lead).tolist(), (ends - lead).tolist()

    def _piece(self, number: int) -> tuple[np.ndarray, str | None] | None:
        """A piece of the corpus, [5, n] and its text; the latest ones are held, as a page asks for the same again."""
        self._refresh()
        if number not in self._pieces:
            row = self._one("SELECT * FROM corpus WHERE piece = ?", (number,))
            if row is None:
                return None
            while len(self._pieces) >= PIECES_HELD:
                self._pieces.pop(next(iter(self._pieces)), None)
            with self._decoding():
                found, none = dict(row), bytes(len(row["token"]))
                columns = [found.get(name) or none for name in ("token", "document", "line", "start", "stop")]
                text = found.get("text")
                numbers = np.stack([np.frombuffer(column, np.int32) for column in columns])
                text = None if text is None else str(text, "utf-8", "surrogatepass")
            if numbers.shape[1] != min(PIECE, self.meta()["rows"] - number * PIECE):
                raise self.damaged(f"piece {number} of its corpus has {numbers.shape[1]} rows")
            self._pieces[number] = numbers, text
        return self._pieces[number]

    def document(self, number: int) -> dict[str, Any]:
        """Name and rows of a document."""
        self._refresh()
        if number not in self._documents:
            if len(self._documents) > 10_000:
                self._documents.clear()
            self._documents[number] = dict(self._held("documents", "number", number))
        return self._documents[number]

    def _refresh(self) -> None:
        """Forget what is held once another file has taken this one's place."""
        file = self.path.stat().st_ino if self.path.exists() else None
        if file != self._held_file:
            self._held_file, self._pieces, self._documents, self._meta = file, {}, {}, {}

    def note(self, number: int) -> dict[str, Any]:
        """Note and tags of a latent."""
        found = self._one("SELECT note, tags, changed FROM temp.written WHERE latent = ?", (number,))
        if not found:
            return {"note": "", "tags": [], "changed": None}
        return {"note": found["note"], "tags": found["tags"].split(), "changed": found["changed"]}


@contextmanager
def replacing(path: Path) -> Iterator[sqlite3.Connection]:
    """A new database, which takes the place of the one at `path` once the block is through."""
    temporary = path.parent / f".{path.name}{PART}"
    temporary.unlink(missing_ok=True)
    new = Database(temporary, write=True)
    connection = new.connection
    try:
        # Nobody else sees this file, and after a crash it is made again: no journal, no waiting for the disk.
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        yield connection
        connection.commit()
        connection.execute("ANALYZE")
        new.close()
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        with keep(path):
            os.replace(temporary, path)
    finally:
        new.close()
        temporary.unlink(missing_ok=True)


def index_explanations(connection: sqlite3.Connection, latents: Iterable[int]) -> None:
    """Bring the full-text index of explanations up to date for some latents."""
    for latent in latents:
        connection.execute("DELETE FROM said WHERE rowid = ?", (latent,))
        connection.execute(
            "INSERT INTO said (rowid, explanation) SELECT id, explanation FROM latents "
            "WHERE id = ? AND explanation IS NOT NULL",
            (latent,),
        )
