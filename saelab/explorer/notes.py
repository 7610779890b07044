"""What a person wrote about latents: a file beside the explorer's database, one JSON object a line.

    {"latent": 7, "note": "opens a quotation", "tags": ["checked"], "changed": 1764330000.0}

The last line about a latent counts, and one with neither note nor tags removes what was said before. Lines are only
ever added, and each is on the disk before its writing is acknowledged, so that a program killed at any moment loses no
note that it confirmed. Everything else that the explorer shows can be made again; this file cannot, and nothing here
removes any of it: a damaged line is named and left where it is.
"""

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from saelab.core.files import sync_folder
from saelab.core.read import parse_json

FILE = "explorer-notes.jsonl"
KIND = {"latent": int, "note": str, "tags": [str], "changed": float}


@dataclass(frozen=True)
class Note:
    """What was written about a latent, and when, in seconds of the epoch."""

    latent: int
    note: str
    tags: tuple[str, ...]
    changed: float


class Notes:
    """A file of notes, which several programs may write to at once.

    Args:
        path: of the file; it is made with the first note.
    """

    def __init__(self, path: Path):
        self.path = path

    def state(self) -> tuple[int, int]:
        """Which file it is and how long; (0, 0) where there is none."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return 0, 0
        return found.st_ino, found.st_size

    def add(self, notes: Iterable[Note]) -> None:
        """Add notes, all or none; they are on the disk when this returns.

        Raises:
            OSError: that says so if the file cannot be written to, or the disk is full.
        """
        lines = "".join(json.dumps(asdict(note), ensure_ascii=False, allow_nan=False) + "\n" for note in notes)
        try:
            self._add(lines.encode())
        except OSError as error:
            raise OSError(
                error.errno, f"nothing is kept: {self.path} cannot be written to ({error.strerror})"
            ) from None

    def _add(self, data: bytes) -> None:
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":
                data = b"\n" + data  # what a killed program left of a line stays, and is no part of ours
            try:
                while data:
                    data = data[os.write(file, data) :]
                os.fsync(file)
            except OSError:
                os.ftruncate(file, size)
                raise
            if not size:
                sync_folder(self.path.parent)
        finally:
            os.close(file)

    def since(self, place: int = 0) -> tuple[list[Note], int]:
        """The notes from a byte on, in order, and where the next ones will begin."""
        notes, _, end = self._read(place)
        return notes, end

    def complaints(self) -> list[str]:
        """A sentence for each damaged line."""
        return self._read(0)[1]

    def _read(self, place: int) -> tuple[list[Note], list[str], int]:
        if self.state() == (0, 0):
            return [], [], 0
        with self.path.open("rb") as file:
            file.seek(place)
            lines = file.read().split(b"\n")
        notes, complaints = [], []
        for number, line in enumerate(lines, 1):
            try:
                if line.strip():
                    remedy = "it is left out: mend the line"
                    found = parse_json(line, f"{self.path}: line {number}", KIND, remedy=remedy)
                    notes.append(Note(found["latent"], found["note"], tuple(found["tags"]), found["changed"]))
            except ValueError as error:
                if number < len(lines):  # the last one may still be being written
                    complaints.append(str(error))
        return notes, complaints, place + sum(len(line) + 1 for line in lines[:-1])


def notes_file(database: Path) -> Path:
    """The file of the notes that go with a database."""
    return database.with_name(FILE)


# ---- as tables of a database ----

TABLES = """
    DROP TABLE IF EXISTS temp.written;
    DROP TABLE IF EXISTS temp.written_words;
    CREATE TEMP TABLE written (latent INTEGER PRIMARY KEY, note TEXT, tags TEXT, changed REAL);
    CREATE VIRTUAL TABLE temp.written_words USING fts5(note, tags, tokenize='porter unicode61');
"""


class Reader:
    """The newest notes as tables `temp.written` and `temp.written_words` of one connection, in its memory.

    Args:
        connection: to a database; notes that it holds itself, being older than the file of notes, come first.
        notes: the file.
    """

    def __init__(self, connection: sqlite3.Connection, notes: Notes):
        self.connection, self.notes = connection, notes
        self._file, self._size, self._end = -1, 0, 0

    def refresh(self) -> None:
        """Bring the tables up to date; quick where nothing was written."""
        file, size = self.notes.state()
        if (file, size) == (self._file, self._size):
            return
        self.connection.execute("PRAGMA query_only = OFF")
        try:
            if file != self._file or size < self._size:
                self.connection.execute("PRAGMA temp_store = MEMORY")
                self.connection.executescript(TABLES)
                self._end = 0
                with suppress(sqlite3.DatabaseError):
                    self._take(old_notes(self.connection))
            found, self._end = self.notes.since(self._end)
            self._take(found)
            self._file, self._size = file, size
        finally:
            self.connection.execute("PRAGMA query_only = ON")

    def _take(self, notes: Iterable[Note]) -> None:
        for note in notes:
            self.connection.execute("DELETE FROM temp.written WHERE latent = ?", (note.latent,))
            self.connection.execute("DELETE FROM temp.written_words WHERE rowid = ?", (note.latent,))
            if note.note or note.tags:
                values = (note.latent, note.note, " ".join(note.tags))
                self.connection.execute("INSERT INTO temp.written VALUES (?, ?, ?, ?)", (*values, note.changed))
                self.connection.execute("INSERT INTO temp.written_words (rowid, note, tags) VALUES (?, ?, ?)", values)


# ---- in databases made before notes had a file ----


def old_notes(connection: sqlite3.Connection) -> Iterator[Note]:
    """The notes in a database's own table; sqlite3.DatabaseError where that is missing or damaged."""
    for latent, note, tags, changed in connection.execute("SELECT latent, note, tags, changed FROM main.notes"):
        if (type(latent), type(note), type(tags), type(changed)) == (int, str, str, float):
            yield Note(latent, note, tuple(tags.split()), changed)


@contextmanager
def keep(database: Path) -> Iterator[None]:
    """Let something take a database's place inside: its own notes go into the file of notes first.

    Where they cannot all be read, the database is set aside instead of being replaced. Nobody else writes meanwhile.
    """
    if not database.exists():
        yield
        return
    connection = sqlite3.connect(database, timeout=60, isolation_level=None)
    try:
        try:
            connection.execute("BEGIN IMMEDIATE")  # which also rolls back what a killed program began
            whole = connection.execute("PRAGMA main.integrity_check(notes)").fetchone()[0] == "ok"
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
                raise ValueError(f"{database}: another program writes to it: try again in a moment") from None
            whole = False
        if whole:
            _copy(connection, database)
        else:
            set_aside(database)
        yield
    finally:
        connection.close()


def set_aside(database: Path) -> Path:
    """Give a damaged database another name, under which it stays; its notes are copied as far as they can be read."""
    connection = sqlite3.connect(database)
    try:
        _copy(connection, database)
    finally:
        connection.close()
    number, stem = 1, f"{database.stem}.damaged"
    while (place := database.with_name(f"{stem}{database.suffix}")).exists():
        number += 1
        stem = f"{database.stem}.damaged-{number}"
    journal = database.with_name(f"{database.name}-journal")
    if journal.exists():  # a database that took this one's place would be changed by it
        os.replace(journal, place.with_name(f"{place.name}-journal"))
    os.replace(database, place)
    return place


def _copy(connection: sqlite3.Connection, database: Path) -> None:
    """Copy into the file of notes those of latents that it does not know."""
    notes = Notes(notes_file(database))
    known = {note.latent for note in notes.since()[0]}
    found: list[Note] = []
    with suppress(sqlite3.DatabaseError):
        found.extend(note for note in old_notes(connection) if note.latent not in known)
    if found:
        notes.add(found)
