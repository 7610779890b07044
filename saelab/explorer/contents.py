"""What an explorer's database has to hold: checks of what SQLite itself takes as it comes.

SQLite keeps a text or bytes in a column of numbers, and knows nothing of how rows of one table go with those of others.
`tables_fault` looks at whole tables once, when a database is opened; the others at what is read for one page. Each
returns what is wrong in a few words, None where nothing is.
"""

# Shape letters: n rows in which a latent is active, L latents, R rows of the corpus.

import json
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from saelab.core.read import Row, parse_json

DETAILS = {
    **{key: [float] for key in ("histogram", "logits_histogram?")},
    **{key: [int] for key in ("top", "random", "silent")},
    **{key: [Row(int, float)] for key in ("neighbours", "near", "logits_top?", "logits_bottom?")},
    **{key: [Row(int, float, float)] for key in ("tokens", "correlated")},
    "intervals": [{"count": int, "rows": [int]}],
}  # fmt: skip
"""What a latent's page shows beyond its row of the table."""
LOGITS = ("logits_top", "logits_bottom", "logits_histogram")
ENTRIES = {"pca": None, "umap": None, "density": 1, "cosines": None, "neighbours": None}
"""Arrays with as many numbers for each latent; None is any number."""
LARGEST = 1e308

Ask = Callable[[str], list[Any]]


def tables_fault(ask: Ask, meta: dict[str, Any], numbers: tuple[str, ...], words: tuple[str, ...], piece: int) -> Any:
    """What is wrong with the tables of latents, documents and the corpus.

    Args:
        ask: answers a query with rows.
        meta: of the database.
        numbers: columns of latents that hold numbers or nothing.
        words: columns of latents that hold texts or nothing.
        piece: rows of a piece of the corpus.
    """
    ends = ask("SELECT count(*), coalesce(min(id), 0), coalesce(max(id), -1) FROM latents")[0]
    if tuple(ends) != (meta["n_latents"], 0, meta["n_latents"] - 1):
        return f"its meta says {meta['n_latents']} latents, the table has {ends[0]}"
    pieces = -(-meta["rows"] // piece)
    if tuple(ask("SELECT count(*), coalesce(max(piece), -1) FROM corpus")[0]) != (pieces, pieces - 1):
        return f"its meta says {meta['rows']} rows, which are {pieces} pieces of its corpus; there are others"
    wrong = [f"(typeof({name}) NOT IN ('integer', 'real', 'null') OR abs({name}) > {LARGEST})" for name in numbers]
    wrong += [f"typeof({name}) NOT IN ('text', 'null')" for name in words]
    wrong.append("typeof(nearest) NOT IN ('integer', 'null')")
    if found := ask(f"SELECT id FROM latents WHERE {' OR '.join(wrong)} LIMIT 1"):
        return f"latent {found[0][0]} in the table has a value of a wrong kind"
    ints = " OR ".join(f"typeof({name}) != 'integer'" for name in ("first", "last"))
    if found := ask(f"SELECT number FROM documents WHERE typeof(name) NOT IN ('text', 'null') OR {ints} LIMIT 1"):
        return f"document {found[0][0]} has a value of a wrong kind"
    return None


def details_fault(details: dict[str, Any], rows: int) -> str | None:
    """What is wrong with a latent's details beside their kinds: rows that are not of the corpus, half of the logits."""
    named = [row for kind in ("top", "random", "silent") for row in details[kind]]
    named += [row for row, _ in details["near"]] + [row for part in details["intervals"] for row in part["rows"]]
    if named and not 0 <= min(named) <= max(named) < rows:
        return f"an example in a row that is none of {rows}"
    held = [bool(details.get(name)) for name in LOGITS]
    return "a part of its logits is missing" if any(held) and not all(held) else None


def activations_fault(at: np.ndarray, values: np.ndarray, rows: int) -> str | None:
    """What is wrong with a latent's rows [n], which rise and are of the corpus, and its values there [n]."""
    if len(at) != len(values):
        return f"{len(at)} rows with {len(values)} values"
    if len(at) and not (at[0] >= 0 and at[-1] < rows and (np.diff(at) > 0).all() and np.isfinite(values).all()):
        return "its rows do not rise or are none of the corpus, or a value is no number"
    return None


def array_fault(name: str, found: np.ndarray, n_latents: int) -> str | None:
    """What is wrong with a named array of the dictionary."""
    entries = ENTRIES.get(name)
    if name in ENTRIES and (len(found) % max(1, n_latents) or (entries and len(found) != entries * n_latents)):
        return f"{name}: {len(found)} numbers for {n_latents} latents"
    if name == "neighbours" and len(found) and not 0 <= found.min() <= found.max() < n_latents:
        return f"{name}: a latent that is none of {n_latents}"
    if name != "neighbours" and not np.isfinite(found).all():
        return f"{name}: a value that is no number"
    return None


def packed(value: Any) -> bytes:
    """JSON, compressed."""
    return zlib.compress(json.dumps(value, allow_nan=False, separators=(",", ":")).encode(), 1)


def unpacked(data: bytes) -> Any:
    """The other way round."""
    return parse_json(zlib.decompress(data), "it", Any, remedy="")
