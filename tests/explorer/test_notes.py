"""Notes outlive whatever happens to the programs that write them and to the database beside them."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from explorer.planted import L, Model, Planted, sae

from saelab.explorer.collect import collect
from saelab.explorer.database import FILE, DamagedError, Database
from saelab.explorer.notes import FILE as NOTES
from saelab.explorer.notes import Note, Notes, set_aside
from saelab.explorer.search import Query, latents

HOT = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 2")
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE notes SET note = 'never acknowledged'")
connection.execute("CREATE TABLE spill (x)")
connection.executemany("INSERT INTO spill VALUES (?)", [("y" * 3000,)] * 500)
os.kill(os.getpid(), signal.SIGKILL)
"""
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from saelab.explorer.notes import Note, Notes

path, kills, chance = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
for trial in range(kills):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        for number in range(10**9):
            Notes(path).add([Note(number % 50, f"{trial} {number} " + "x" * chance.randrange(9000), ("a",), 1.0)])
            os.write(writing, f"{number}\\n".encode())
    time.sleep(chance.random() * 0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as said:
        acknowledged = said.read().split()
    held = {note.note.split()[1] for note in Notes(path).since()[0] if note.note.startswith(f"{trial} ")}
    assert set(acknowledged) <= held, (trial, set(acknowledged) - held)
    assert len(held) <= len(acknowledged) + 1
    print(len(acknowledged))
"""


def collected(folder: Path) -> Path:
    sae().save(folder)
    return collect(sae(), folder / "weights.safetensors", Planted(), Model(), folder, show=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return collected(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def path(made, tmp_path):
    """A database of its own."""
    shutil.copytree(made.parent, tmp_path / "run")
    return tmp_path / "run" / FILE


def put_old_note(path: Path, latent: int = 3, note: str = "platypuses") -> None:
    """As databases made before notes had a file of their own hold them."""
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO notes VALUES (?, ?, 'old tag', 1.0)", (latent, note))
        connection.execute("DELETE FROM said WHERE rowid = ?", (latent,))
        connection.execute("INSERT INTO said (rowid, explanation, note, tags) VALUES (?, '', ?, '')", (latent, note))


def found(path: Path, q: str) -> list[int]:
    return [row["id"] for row in latents(Database(path), Query(q=q))["rows"]]


def test_the_last_line_about_a_latent_counts_for_every_reader(path):
    one, other = Database(path), Database(path)
    one.write_note(3, "quokkas", ["odd", "checked"], 5.0)
    one.write_note(4, "wombats", [], 6.0)
    assert other.note(3) == {"note": "quokkas", "tags": ["odd", "checked"], "changed": 5.0}
    assert found(path, "quokka") == [3]
    other.write_note(3, "", [], 7.0)
    assert one.note(3) == {"note": "", "tags": [], "changed": None}
    assert found(path, "quokka") == []
    assert [row["id"] for row in latents(one, Query(noted=True))["rows"]] == [4]
    lines = [json.loads(line) for line in path.with_name(NOTES).read_text().splitlines()]
    assert [line["latent"] for line in lines] == [3, 4, 3]
    path.with_name(NOTES).write_text(json.dumps(lines[0]) + "\n")  # by hand
    assert one.note(3)["note"] == "quokkas"
    assert one.note(4)["note"] == ""


def test_notes_of_many_writers_are_all_kept(tmp_path):
    notes = Notes(tmp_path / NOTES)

    def write(number: int) -> None:
        Notes(tmp_path / NOTES).add([Note(number, f"n{number} " + "x" * (50 * number), (), 1.0)])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(80)))
    assert sorted(note.latent for note in notes.since()[0]) == list(range(80))
    assert notes.complaints() == []


def test_a_line_cut_short_or_damaged_costs_itself_alone(tmp_path):
    notes = Notes(tmp_path / NOTES)
    notes.add([Note(1, "one", (), 1.0)])
    with notes.path.open("ab") as file:
        file.write(b'{"latent": 2, "note": "cut sh')
    assert [note.note for note in notes.since()[0]] == ["one"]
    assert notes.complaints() == []  # it may be being written
    notes.add([Note(3, "three\nlines", ("a", "b"), 2.0)])
    assert notes.since()[0] == [Note(1, "one", (), 1.0), Note(3, "three\nlines", ("a", "b"), 2.0)]
    (complaint,) = notes.complaints()
    assert f"{NOTES}: line 2 is damaged" in complaint
    assert "mend the line" in complaint
    assert "remove" not in complaint
    with notes.path.open("ab") as file:
        file.write(b'{"latent": "x", "note": 5}\n\xff\n')
    assert len(notes.since()[0]) == 2
    assert len(notes.complaints()) == 3


def test_every_acknowledged_note_outlives_a_kill(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / NOTES), "20", "0"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sum(map(int, done.stdout.split())) > 0


def test_a_database_left_by_a_killed_writer_opens_with_its_notes(path):
    put_old_note(path)
    subprocess.run([sys.executable, "-c", HOT, str(path)], check=False)
    assert path.with_name(f"{FILE}-journal").exists()
    opened = Database(path)
    assert opened.note(3)["note"] == "platypuses"
    assert opened.meta()["n_latents"] == L
    assert not path.with_name(f"{FILE}-journal").exists()
    # And what kills a writer while a reader is there is rolled back by that reader.
    subprocess.run([sys.executable, "-c", HOT, str(path)], check=False)
    assert opened.note(3)["note"] == "platypuses"
    assert opened.all("SELECT count(*) FROM latents")[0][0] == L


def test_notes_of_an_old_database_are_shown_changed_and_outlive_collecting(path):
    put_old_note(path)
    put_old_note(path, 4, "echidnas")
    assert found(path, "platypus") == [3]
    opened = Database(path)
    assert opened.note(3) == {"note": "platypuses", "tags": ["old", "tag"], "changed": 1.0}
    opened.write_note(3, "wombats", [], 2.0)
    assert (found(path, "platypus"), found(path, "wombat"), found(path, "echidna")) == ([], [3], [4])
    collected(path.parent)
    assert (opened.note(3)["note"], opened.note(4)["note"]) == ("wombats", "echidnas")
    assert opened.note(4)["tags"] == ["old", "tag"]
    assert opened.all("SELECT count(*) FROM main.notes")[0][0] == 0


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("DROP TABLE latents", "no table latents"),
        ("DROP TABLE details", "no table details"),
        ("DELETE FROM meta WHERE key = 'n_latents'", "n_latents: expected a whole number, got nothing"),
        ("UPDATE meta SET value = 'x' WHERE key = 'rows'", "rows in its meta"),
        ("UPDATE meta SET value = x'ff' WHERE key = 'rows'", "rows in its meta"),
        ("UPDATE meta SET value = '\"9\"' WHERE key = 'rows'", "rows: expected a whole number, got"),
    ],
)  # fmt: skip
def test_a_damaged_database_says_what_is_wrong_and_its_notes_stay(path, statement, said):
    put_old_note(path)
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    with pytest.raises(DamagedError, match="makes it again and keeps the notes") as error:
        Database(path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert "remove" not in str(error.value)


def test_a_damaged_database_is_set_aside_and_its_notes_are_kept(path):
    put_old_note(path)
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE latents")
    aside = set_aside(path)
    assert aside.name == "explorer.damaged.sqlite"
    assert not path.exists()
    collected(path.parent)
    assert Database(path).note(3)["note"] == "platypuses"
    path.write_bytes(b"not a database at all " * 900)
    collected(path.parent)  # asked for again, it does not remove what may hold notes either
    assert path.with_name("explorer.damaged-2.sqlite").read_bytes().startswith(b"not a")
    assert Database(path).note(3)["note"] == "platypuses"


def test_damaged_columns_are_said_in_one_line(path):
    opened = Database(path)
    for statement, ask in (
        ("UPDATE details SET data = x'00'", lambda: opened.details(1)),
        ("UPDATE activations SET vals = x'0000ff'", lambda: opened.activations(1)),
        ("UPDATE corpus SET token = 'text'", lambda: opened.corpus(0, 5)),
        ("UPDATE blobs SET data = x'0001ff'", lambda: opened.array("pca")),
    ):
        with sqlite3.connect(path) as connection:
            connection.execute(statement)
        with pytest.raises(DamagedError, match="is damaged or not an explorer's database"):
            ask()


def test_two_cannot_collect_into_one_folder_at_once(path):
    from saelab.explorer.gather import alone

    with alone(path.parent), pytest.raises(ValueError, match="another explorer .*run now"):
        collected(path.parent)
    collected(path.parent)


@pytest.mark.skipif(os.getuid() != 0, reason="takes another user's rights, which only root may")
def test_a_folder_that_may_not_be_written_to_is_shown_and_takes_no_notes(made):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users
        _show_what_is_not_ours(Path(shutil.copytree(made.parent, Path(folder) / "run")) / FILE)


def _show_what_is_not_ours(path: Path) -> None:
    Database(path).write_note(3, "kept", [], 1.0)
    for one in (path.parent.parent, path.parent, *path.parent.iterdir()):
        one.chmod(0o755 if one.is_dir() else 0o644)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        said = ""
        try:
            os.setuid(65534)
            said = Database(path).note(3)["note"] + " "
            Database(path).write_note(3, "lost", [], 2.0)
        except OSError as error:
            said += str(error.strerror)
        except BaseException as error:
            said = repr(error)
        os.write(writing, said.encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as said:
        assert said.read() == f"kept nothing is kept: {path.with_name(NOTES)} cannot be written to (Permission denied)"
