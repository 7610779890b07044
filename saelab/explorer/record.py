"""What is found about a block of latents, and how it is written down."""

# Shape letters: l latents of a block, L latents.

from dataclasses import dataclass
from typing import Any

import numpy as np

from saelab.explorer import segments
from saelab.explorer.coactivation import Correlated
from saelab.explorer.contents import packed
from saelab.explorer.directions import Logits
from saelab.explorer.text import Text
from saelab.explorer.triples import Array, Block

TOP, RANDOM, PER_INTERVAL, SILENT, TOKENS = 20, 10, 5, 4, 6
"""Examples kept of each kind, and top tokens."""
APART = 8
"""Top examples are at least so many tokens apart."""
CONTEXTS, AROUND = 8, 10
"""Top examples whose contexts the full-text search knows, and tokens of each on either side."""
DENSE = 0.1
"""A latent active in more than this share of rows is dense."""
BETWEEN = "\x1f"
"""Stands between tokens in the table, because no token holds it."""


@dataclass(frozen=True)
class DictionaryNumbers:
    """What the dictionary alone tells, [L, ...] each."""

    norms: Array
    cosines: Array
    neighbours: Array
    logits: Logits | None
    correlated: Correlated
    near_row: Array
    near_value: Array


@dataclass(frozen=True)
class BlockNumbers:
    """What was found about a block's latents; rows [l, ...], -1 for none."""

    numbers: dict[str, Array]
    tokens: segments.TokenShares
    histogram: Array
    counts: Array
    """Entries by interval, [l, INTERVALS]."""
    rows: dict[str, Array]
    """Examples by kind."""


def look(block: Block, text: Text, rows: int) -> BlockNumbers:
    """Numbers and examples of all latents of a block, which saw `rows` rows."""
    of = segments.ranked(block)
    draw = np.random.default_rng((0, block.first))
    shares = segments.top_tokens(of, text.token, max(1, len(text.vocabulary)), TOKENS)
    intervals, counts = segments.interval_entries(of, PER_INTERVAL, draw)
    entries = {
        "top": segments.top_entries(of, TOP, APART),
        "intervals": intervals,
        "random": segments.random_entries(of, RANDOM, draw),
    }
    found = {}
    for name, entry in entries.items():
        found[name] = np.where(entry >= 0, block.row[np.maximum(entry, 0)] if len(block.row) else -1, -1)
    found["silent"] = segments.silent_on_token(block, shares, text.token, SILENT, draw)
    return BlockNumbers(segments.moments(of, rows), shares, segments.binned(of, segments.BINS), counts, found)


def write(connection: Any, block: Block, found: BlockNumbers, about: DictionaryNumbers, text: Text) -> None:
    """Write a block's rows of every table."""
    numbers = list(range(block.first, block.last))
    words = [
        [text.vocabulary[token] if text.vocabulary else "" for token in row if token >= 0]
        for row in found.tokens.token.tolist()
    ]
    _write_activations(connection, block, numbers)
    _write_numbers(connection, numbers, found, about, words)
    details = [(j, packed(_details(j, at, found, about))) for at, j in enumerate(numbers)]
    connection.executemany("INSERT INTO details VALUES (?, ?)", details)
    if text.vocabulary:
        contexts = []
        for at, j in enumerate(numbers):
            rows = [row for row in found.rows["top"][at, :CONTEXTS].tolist() if row >= 0]
            contexts.append((j, "\n".join(words[at]), "\n".join(text.context(row, AROUND) for row in rows)))
        connection.executemany("INSERT INTO words (rowid, tokens, contexts) VALUES (?, ?, ?)", contexts)


def _write_activations(connection: Any, block: Block, numbers: list[int]) -> None:
    bounds = block.offsets.tolist()
    stretches = zip(numbers, bounds[:-1], bounds[1:], strict=True)
    connection.executemany(
        "INSERT INTO activations VALUES (?, ?, ?)",
        ((j, block.row[a:b].tobytes(), block.value[a:b].tobytes()) for j, a, b in stretches),
    )


def _write_numbers(
    connection: Any, numbers: list[int], found: BlockNumbers, about: DictionaryNumbers, words: list[list[str]]
) -> None:
    columns = {name: column.tolist() for name, column in found.numbers.items()}
    fired = found.numbers["count"] > 0
    kinds = np.where(found.numbers["density"] > DENSE, "dense", np.where(fired, "ordinary", "silent")).tolist()
    alone = not about.cosines.shape[1]
    rows = []
    for at, j in enumerate(numbers):
        nearest = (None, None) if alone else (float(about.cosines[j, 0]), int(about.neighbours[j, 0]))
        own = (column[at] for column in columns.values())
        rows.append((j, *own, float(about.norms[j]), *nearest, BETWEEN.join(words[at]), kinds[at]))
    names = ["id", *columns, "norm", "cosine", "nearest", "tokens", "kind"]
    connection.executemany(f"INSERT INTO latents ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})", rows)


def _some(at: int, *columns: Array) -> list[list[Any]]:
    """Row `at` of columns [l, C] as tuples, as far as the first holds a number; others rounded."""
    rows = zip(*(column[at].tolist() for column in columns), strict=True)
    return [[first, *(round(value, 4) for value in others)] for first, *others in rows if first >= 0]


def _details(latent: int, at: int, found: BlockNumbers, about: DictionaryNumbers) -> dict[str, Any]:
    shares, friends = found.tokens, about.correlated
    parts = zip(found.counts[at].tolist(), found.rows["intervals"][at].tolist(), strict=True)
    details: dict[str, Any] = {
        "histogram": found.histogram[at].tolist(),
        "intervals": [{"count": count, "rows": [row for row in rows if row >= 0]} for count, rows in parts],
        "tokens": _some(at, shares.token, shares.share, shares.count),
        "neighbours": _some(latent, about.neighbours, about.cosines),
        "correlated": _some(latent, friends.number, friends.r, friends.share),
        "near": _some(latent, about.near_row, about.near_value),
    }
    for name in ("top", "random", "silent"):
        details[name] = [row for row in found.rows[name][at].tolist() if row >= 0]
    if about.logits is not None:
        logits = about.logits
        details["logits_top"] = _some(latent, logits.top.numpy(), logits.top_value.numpy())
        details["logits_bottom"] = _some(latent, logits.bottom.numpy(), logits.bottom_value.numpy())
        details["logits_histogram"] = logits.counts[latent].tolist()
    return details
