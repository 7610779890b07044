"""Places: what names of documents say, those of before too, and where a piece of a document begins."""

import json

import pytest

from saelab.models.places import Place
from saelab.models.text import Document, in_pieces, read_text

WORDS = "once upon a time there was a little child who liked to play "


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("json/decoder.py", Place("json/decoder.py")),
        ("json/decoder.py:120", Place("json/decoder.py", line=120)),
        ("notes.txt:3:401", Place("notes.txt", line=3, column=401)),
        ("lines.jsonl row 32", Place("lines.jsonl", 32)),
        ("lines.jsonl row 32:7", Place("lines.jsonl", 32, 7)),
        ("a row 3.txt", Place("a row 3.txt")),
        ("org/set row 5", Place("org/set", 5)),
        # As rows were named before.
        ("lines.jsonl:32", Place("lines.jsonl", 32)),
        ("lines.jsonl:32:7", Place("lines.jsonl", 32, 7)),
        ("t.parquet:2", Place("t.parquet", 2)),
        ("org/set:5", Place("org/set", 5)),
        ("", Place("")),
    ],
)
def test_names_say_places(name, place):
    assert Place.of(name) == place


def test_a_row_is_shown_with_its_line_where_it_has_several():
    row = Place("lines.jsonl", 32)
    assert row.shown(7, has_lines=True) == "lines.jsonl row 32, line 7"
    assert row.shown(1, has_lines=False) == "lines.jsonl row 32"
    assert Place("a.py").shown(38, has_lines=True) == "a.py:38"


@pytest.mark.parametrize("name", ["a.txt", "t.jsonl row 4"])
@pytest.mark.parametrize("size", [7, 50, 200])
def test_a_long_line_is_cut_at_blanks_and_every_piece_knows_where_it_begins(name, size):
    text = f"first\n{WORDS * 60}\nlast\x0cpage\r\n{'x' * 900} end\n  \n"
    pieces = list(in_pieces([Document(name, text)], size))
    lines, found = text.split("\n"), {}
    for piece in pieces:
        place = Place.of(piece.name)
        assert (place.source, place.row) == (Place.of(name).source, Place.of(name).row)
        offset = sum(len(line) + 1 for line in lines[: place.line - 1]) + place.column - 1
        assert text[offset : offset + len(piece.text)] == piece.text
        found[offset] = piece.text
        if place.column > 1 and text[offset - 1] not in "x\x0c":
            assert text[offset] == " "
    assert "".join(found[offset] for offset in sorted(found)) == text
    # What is not a piece yet is shorter than one, and a part of a line at most twice as long.
    assert max(map(len, found.values())) <= 3 * size + len(" \r\n")


def test_one_long_line_gives_pieces_of_about_the_size_asked_for():
    text = (WORDS * 2500).strip()
    pieces = list(in_pieces([Document("one-line.jsonl row 1", text)], 200))
    assert len(text) > 149_000
    assert sum(len(piece.text) for piece in pieces) == len(text)
    assert sum(200 <= len(piece.text) <= 206 for piece in pieces) >= len(pieces) - 1
    assert all(len(piece.text) <= 206 for piece in pieces)
    assert sum(piece.text[0] != " " for piece in pieces) == 1  # that which begins the text


def test_without_blanks_no_character_is_cut_from_its_marks():
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
    for text in ("e\u0301" * 500, family * 200, "今日" * 500):
        for piece in in_pieces([Document("a.txt", text)], 10):
            assert piece.text[0] in "e今日\U0001f468"
            assert len(piece.text) < 20


def test_lines_that_fit_are_never_cut():
    text = "".join(f"line {n} of some words\n" for n in range(40))
    for piece in in_pieces([Document("a.txt", text)], 60):
        assert piece.text.endswith("\n")
        assert Place.of(piece.name).column == 1


def test_rows_of_a_table_are_named_as_rows(tmp_path):
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": f"a{n}\nb{n}"}) + "\n" for n in range(40)))
    names = {document.text: document.name for document in read_text(str(tmp_path / "t.jsonl"))}
    assert names["a31\nb31"] == "t.jsonl row 32"
