"""Pieces of documents: nothing lost, cut at line ends, named by line, in a fixed random order."""

import pytest

from saelab.models import text
from saelab.models.text import Document, in_pieces

DOCUMENTS = [Document(f"{name}.py", "".join(f"{name} line {n}\n" for n in range(40))) for name in "abcde"]


def test_pieces_hold_every_line_once_and_are_named_after_their_first():
    pieces = list(in_pieces(DOCUMENTS, 100))
    by_place = sorted(pieces, key=lambda piece: (piece.name.split(":")[0], int(piece.name.split(":")[1])))
    for document in DOCUMENTS:
        own = [piece for piece in by_place if piece.name.startswith(document.name)]
        assert "".join(piece.text for piece in own) == document.text
        for piece in own:
            line = int(piece.name.split(":")[1])
            assert document.text.splitlines()[line - 1] == piece.text.splitlines()[0]


def test_pieces_are_as_long_as_asked_but_for_the_last_of_a_document():
    pieces = list(in_pieces(DOCUMENTS, 100))
    last = {document.text.splitlines()[-1] for document in DOCUMENTS}
    assert all(len(piece.text) >= 100 or piece.text.splitlines()[-1] in last for piece in pieces)
    assert all(len(piece.text) < 100 + len("a line 39\n") for piece in pieces)


def test_order_is_random_and_fixed_by_the_seed():
    order = [piece.name for piece in in_pieces(DOCUMENTS, 50)]
    assert order == [piece.name for piece in in_pieces(DOCUMENTS, 50)]
    assert order != [piece.name for piece in in_pieces(DOCUMENTS, 50, seed=1)]
    assert order != sorted(order)


def test_a_small_buffer_loses_nothing(monkeypatch):
    whole = sorted(piece.name for piece in in_pieces(DOCUMENTS, 50))
    monkeypatch.setattr(text, "PIECES_HELD", 3)
    assert sorted(piece.name for piece in in_pieces(DOCUMENTS, 50)) == whole


def test_a_piece_needs_a_character():
    with pytest.raises(ValueError, match="at least 1 character, got 0"):
        list(in_pieces(DOCUMENTS, 0))
