"""Examples as what is shown: tokens around a row, each with the latent's value there."""

# Shape letters: n rows in which the latent is active, w tokens of a window.

from collections.abc import Sequence
from typing import Any

import numpy as np

from saelab.explorer.workspace import Member
from saelab.models.places import Place
from saelab.models.token_text import NO_TOKEN, Unit, strongest, unit_at, units

AROUND = 16
MOST_AROUND = 400


def windows(
    member: Member, latent: int, rows: Sequence[int], before: int = AROUND, after: int = AROUND
) -> list[dict[str, Any]]:
    """A window of tokens around each row, within its document.

    Returns:
        For each row: `row`, `document` and `line` it is in and both as a `place` for people, `value` there, the text
        in `tokens` that joined give it back (those that are parts of one character are one, text left out of the rows
        is another), the `values` of the latent at each of them, `focus` (which of them is the row's), and whether
        there is more text before and after. Of rows that stand for no text there is no more than the row itself.
    """
    at, values = member.database.activations(latent)
    if not member.has_text:
        return [_alone(member, int(row), at, values) for row in rows]
    return [_window(member, int(row), at, values, min(before, MOST_AROUND), min(after, MOST_AROUND)) for row in rows]


def _alone(member: Member, row: int, at: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    (document,) = member.database.corpus(row, row + 1)["document"].tolist()
    place = int(np.searchsorted(at, row))
    value = _rounded(float(values[place])) if place < len(at) and at[place] == row else 0.0
    name = member.database.document(document)["name"]
    about = {"row": row, "document": name, "line": 0, "place": name, "focus": 0, "value": value}
    return about | {"tokens": [f"row {row}"], "values": [value], "more": [False, False]}


def _window(member: Member, row: int, at: np.ndarray, values: np.ndarray, before: int, after: int) -> dict[str, Any]:
    first = max(0, row - before)
    corpus = member.database.corpus(first, row + after + 1)
    own = np.flatnonzero(corpus["document"] == corpus["document"][row - first])
    low, high = int(own[0]), int(own[-1]) + 1
    found = np.zeros(high - low, np.float32)
    inside = slice(np.searchsorted(at, first + low), np.searchsorted(at, first + high))
    found[at[inside] - first - low] = values[inside]
    document = member.database.document(int(corpus["document"][row - first]))
    shown = units_of(member, first + low, first + high)
    focus, line = row - first - low, int(corpus["line"][row - first])
    return {
        "row": row,
        "document": document["name"],
        "line": line,
        "place": _place(member, document, line),
        "focus": unit_at(focus, shown),
        "value": _rounded(float(found[focus])),
        "tokens": [unit.text for unit in shown],
        "values": [_rounded(value) for value in strongest(found.tolist(), shown)],
        "more": [first + low > document["first"], first + high < document["last"]],
    }


def units_of(member: Member, first: int, last: int) -> list[Unit]:
    """The text of the rows first <= r < last of one document, as it is shown."""
    found = member.database.text(first, last) if member.vocabulary else None
    if found is not None:
        return units(*found)
    # Collected before texts were kept, or rows that stand for no token.
    words = [label_of(member, token) for token in member.database.corpus(first, last)["token"].tolist()]
    ends = np.cumsum([len(word) for word in words]).tolist()
    return units("".join(words), [0, *ends[:-1]], ends)


def _place(member: Member, document: dict[str, Any], line: int) -> str:
    """Where in its source a line of a document is; of a row of a table, the row and, if it has several, the line."""
    if not document["name"]:
        return ""
    place = Place.of(document["name"])
    last = member.database.corpus(document["last"] - 1, document["last"])["line"]
    return place.shown(line, place.line > 1 or (len(last) > 0 and int(last[0]) > 1))


def label_of(member: Member, token: int) -> str:
    """A token by itself; a row that stands for no token is shown as a box."""
    return member.vocabulary[token] if 0 <= token < len(member.vocabulary) else NO_TOKEN


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
