"""The corpus as text: tokens, documents, and the line that each token is on."""

# Shape letters: N rows of the corpus.

from dataclasses import dataclass
from typing import Any

import numpy as np

from saelab.explorer.database import PIECE
from saelab.explorer.gather import names_of
from saelab.explorer.triples import Array, Triples
from saelab.models.language_model import LanguageModel


@dataclass(frozen=True)
class Text:
    """The corpus as text."""

    token: Array
    """[N] int32; -1 where a row stands for no token."""
    document: Array
    line: Array
    """Line of the document that each token's first visible character is on, from 1; [N] int32."""
    vocabulary: list[str]
    names: dict[int, str]

    def context(self, row: int, around: int) -> str:
        """The tokens around a row of the same document."""
        window = range(max(0, row - around), min(len(self.token), row + around + 1))
        own = self.document[row]
        return "".join(self.vocabulary[self.token[r]] for r in window if self.document[r] == own and self.token[r] >= 0)


def text_of(triples: Triples, model: LanguageModel | None) -> Text:
    """The corpus as text, from the parts' columns."""
    token, document = triples.column("token"), triples.column("document")
    names: dict[int, str] = {}
    for part in triples.columns("names"):
        names |= names_of(part)
    vocabulary = [] if model is None else [model.tokenizer.decode([number]) for number in range(len(model.tokenizer))]
    return Text(token, document, lines_of(token, document, vocabulary, names), vocabulary, names)


def lines_of(token: Array, document: Array, vocabulary: list[str], names: dict[int, str]) -> Array:
    """The line of each token, from 1; [N] int32.

    A document that is a piece of another, `name:line`, begins at that line. Where tokens were left out of the rows,
    line breaks in them are not counted.
    """
    if not vocabulary or not len(token):
        return np.zeros(len(token), np.int32)
    breaks = np.array([word.count("\n") for word in vocabulary])
    leading = np.array([word[: len(word) - len(word.lstrip())].count("\n") for word in vocabulary])
    here, safe = token >= 0, np.maximum(token, 0)
    before = np.cumsum(np.where(here, breaks[safe], 0))
    before = before - np.where(here, breaks[safe], 0)
    starts = np.flatnonzero(np.diff(document, prepend=document[0] - 1))
    length = np.diff(np.append(starts, len(document)))
    first = np.array([_first_line(names.get(int(document[place]), "")) for place in starts])
    line = before - np.repeat(before[starts], length) + np.where(here, leading[safe], 0) + np.repeat(first, length)
    return line.astype(np.int32)


def _first_line(name: str) -> int:
    number = name.rpartition(":")[2]
    return int(number) if number.isdigit() and ":" in name and len(number) < 9 else 1


def write_text(connection: Any, text: Text) -> None:
    """Fill the tables corpus and documents."""
    pieces = []
    for number, first in enumerate(range(0, len(text.token), PIECE)):
        columns = (column[first : first + PIECE].astype(np.int32) for column in (text.token, text.document, text.line))
        pieces.append((number, *(column.tobytes() for column in columns)))
    connection.executemany("INSERT INTO corpus VALUES (?, ?, ?, ?)", pieces)
    if not len(text.document):
        return
    starts = np.flatnonzero(np.diff(text.document, prepend=text.document[0] - 1))
    ends = np.append(starts[1:], len(text.document))
    documents = {}
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        number = int(text.document[start])
        documents[number] = (number, text.names.get(number, ""), start, end)
    connection.executemany("INSERT INTO documents VALUES (?, ?, ?, ?)", documents.values())
