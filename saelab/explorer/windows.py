"""Examples as what is shown: tokens around a row, each with the latent's value there."""

# Shape letters: n rows in which the latent is active, w tokens of a window.

from collections.abc import Sequence
from typing import Any

import numpy as np

from saelab.explorer.workspace import Member

AROUND = 16
MOST_AROUND = 400


def windows(
    member: Member, latent: int, rows: Sequence[int], before: int = AROUND, after: int = AROUND
) -> list[dict[str, Any]]:
    """A window of tokens around each row, within its document.

    Returns:
        For each row: `row`, `document` and `line` it is in, `focus` (which of the tokens it is), `value` there, the
        `tokens`, the `values` of the latent at each of them, and whether there is more text before and after.
    """
    at, values = member.database.activations(latent)
    return [_window(member, int(row), at, values, min(before, MOST_AROUND), min(after, MOST_AROUND)) for row in rows]


def _window(member: Member, row: int, at: np.ndarray, values: np.ndarray, before: int, after: int) -> dict[str, Any]:
    first = max(0, row - before)
    corpus = member.database.corpus(first, row + after + 1)
    own = np.flatnonzero(corpus["document"] == corpus["document"][row - first])
    low, high = int(own[0]), int(own[-1]) + 1
    tokens = corpus["token"][low:high].tolist()
    found = np.zeros(high - low, np.float32)
    inside = slice(np.searchsorted(at, first + low), np.searchsorted(at, first + high))
    found[at[inside] - first - low] = values[inside]
    document = member.database.document(int(corpus["document"][row - first]))
    return {
        "row": row,
        "document": document["name"],
        "line": int(corpus["line"][row - first]),
        "focus": row - first - low,
        "value": _rounded(float(found[row - first - low])),
        "tokens": [text_of(member, token) for token in tokens],
        "values": [_rounded(value) for value in found.tolist()],
        "more": [first + low > document["first"], first + high < document["last"]],
    }


def text_of(member: Member, token: int) -> str:
    """A token's text; a row that stands for no token is shown as a box."""
    return member.vocabulary[token] if 0 <= token < len(member.vocabulary) else "\u25a1"


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
