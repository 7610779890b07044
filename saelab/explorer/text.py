"""The corpus as text: its tokens, its documents, where in the text each token stands, and on which line.

The text is the source where that is at hand, and what the tokens stand for otherwise (rows of a store). Tokens that
have no row are in the source all the same; of a store's rows only their place is known, and shown as GAP.
"""

# Shape letters: N rows of the corpus, n rows of a document, V vocabulary.

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from saelab.explorer.database import PIECE
from saelab.explorer.gather import by_document
from saelab.explorer.triples import Array, Triples
from saelab.models.language_model import LanguageModel
from saelab.models.places import Place
from saelab.models.token_text import TokenText

GAP = "\u2026"
"""Stands for tokens that are known to have been left out, but not which."""


@dataclass(frozen=True)
class Text:
    """The corpus as text."""

    token: Array
    """[N] int32; -1 where a row stands for no token."""
    document: Array
    line: Array
    """Line of the document that each token's first visible character is on, from 1; [N] int32."""
    vocabulary: list[str]
    """What each token stands for by itself, [V]; empty where rows stand for none."""
    names: dict[int, str]
    text: str = ""
    """All documents, one after another, each up to its last row's token."""
    start: Array = field(default_factory=lambda: np.empty(0, np.int64))
    """Where in the text each row's token begins, [N] int64."""
    end: Array = field(default_factory=lambda: np.empty(0, np.int64))

    def context(self, row: int, around: int) -> str:
        """The text from so many tokens before a row to so many behind it, in the same document."""
        first, last = max(0, row - around), min(len(self.token), row + around + 1)
        own = first + np.flatnonzero(self.document[first:last] == self.document[row])
        return self.text[self.start[own[0]] : self.end[own[-1]]]


def text_of(triples: Triples, model: LanguageModel | None) -> Text:
    """The corpus as text, from the parts' columns."""
    token, document = triples.column("token"), triples.column("document")
    names = by_document(triples.columns("names"))
    if model is None or not len(token):
        nothing = np.zeros(len(token), np.int64)
        return Text(token, document, nothing.astype(np.int32), [], names, "", nothing, nothing)
    spans, texts = triples.columns("spans"), by_document(triples.columns("texts"))
    known = np.concatenate(spans) if spans else None
    position = triples.column("position")
    parts: list[str] = []
    start, end, line = np.zeros(len(token), np.int64), np.zeros(len(token), np.int64), np.zeros(len(token), np.int32)
    done = 0
    for first, last in runs(document):
        own, number = slice(first, last), int(document[first])
        if known is not None and number in texts:
            begin, stop = known[own].astype(np.int64).T
            text = texts[number][: stop.max()]
        else:
            text, begin, stop = spelled(token[own], position[own], model.token_text)
        line[own] = lines_of(text, begin, names.get(number, ""))
        start[own], end[own] = begin + done, stop + done
        parts.append(text)
        done += len(text)
    return Text(token, document, line, model.token_text.labels, names, "".join(parts), start, end)


def runs(document: Array) -> Iterator[tuple[int, int]]:
    """First row and the one behind the last of each document of the corpus."""
    starts = np.flatnonzero(np.diff(document, prepend=document[0] - 1)) if len(document) else np.empty(0, np.int64)
    return zip(starts.tolist(), [*starts[1:].tolist(), len(document)], strict=True)


def spelled(token: Array, position: Array, spelling: TokenText) -> tuple[str, Array, Array]:
    """Text of a document's tokens [n], and where in it each begins and ends, [n] int64."""
    is_behind_gap = (np.diff(position) > 1) & (token[1:] >= 0) & (token[:-1] >= 0)
    edges = [0, *(np.flatnonzero(is_behind_gap) + 1).tolist(), len(token)]
    parts, start, end, done = [], [], [], 0
    for first, last in pairwise(edges):
        found = spelling.of_ids(token[first:last].tolist(), begins=int(position[first]) == 0)
        parts.append(GAP * bool(first) + found.text)
        begin = done + bool(first)
        start.append(found.start + begin)
        end.append(found.end + begin)
        done += len(parts[-1])
    return "".join(parts), np.concatenate(start), np.concatenate(end)


def lines_of(text: str, start: Array, name: str) -> Array:
    """The line of each place of a document's text, [n] int32, counted from where its name says that it begins."""
    breaks = np.flatnonzero(np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32) == ord("\n"))
    line: Array = (Place.of(name).line + np.searchsorted(breaks, start)).astype(np.int32)
    return line


def write_text(connection: Any, text: Text) -> None:
    """Fill the tables corpus and documents."""
    pieces = []
    # A piece has the text from the end of the row before it to that of its last.
    behind = np.concatenate([[0], text.end])
    for number, first in enumerate(range(0, len(text.token), PIECE)):
        last = min(first + PIECE, len(text.token))
        begin, stop = int(behind[first]), int(behind[last])
        columns = (text.token, text.document, text.line, text.start - begin, text.end - begin)
        blobs = (column[first:last].astype(np.int32).tobytes() for column in columns)
        own = text.text[begin:stop].encode("utf-8", "surrogatepass") if text.vocabulary else None
        pieces.append((number, *blobs, own))
    connection.executemany(
        "INSERT INTO corpus (piece, token, document, line, start, stop, text) VALUES (?, ?, ?, ?, ?, ?, ?)", pieces
    )
    documents = {}
    for start, end in runs(text.document):
        number = int(text.document[start])
        documents[number] = (number, text.names.get(number, ""), start, end)
    connection.executemany("INSERT INTO documents VALUES (?, ?, ?, ?)", documents.values())
