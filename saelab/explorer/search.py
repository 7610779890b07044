"""The table of latents: which ones, in which order, as SQL that takes nothing from a user but values.

Filters are `column:low..high` with either end left out, joined by commas. A query in words goes to the full-text index:
every word must begin a word of the latent's top tokens and contexts, or of its explanation, or of its note and tags;
what has no letters or digits in it (`==`) is looked for among the top tokens as it stands.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from saelab.core.components import near_miss
from saelab.explorer.database import NUMBERS, WORDS, Database

KINDS = ("ordinary", "dense", "dead", "silent", "novel", "reconstruction")
MOST = 1000
"""Rows of one answer, at most."""
FILTERS = 20
"""Conditions of one query, at most."""
SHOWN = ("id", "count", "density", "mean", "largest", "norm", "cosine", "score", "probe_score", *WORDS)


@dataclass(frozen=True)
class Query:
    """What to show of the table.

    Raises:
        ValueError: that names the parameter, for a column, order or number that is none.
    """

    q: str = ""
    """Words."""
    sort: str = "id"
    desc: bool = False
    filters: tuple[tuple[str, float | None, float | None], ...] = ()
    """(column, least, most)."""
    kind: str = ""
    noted: bool = False
    """Whether only latents with a note or a tag are wanted."""
    offset: int = 0
    limit: int = field(default=100)

    def __post_init__(self) -> None:
        if self.sort not in ("id", *NUMBERS, *WORDS):
            raise ValueError(f"cannot sort by '{self.sort[:40]}'{near_miss(self.sort, ('id', *NUMBERS, *WORDS))}")
        if self.kind and self.kind not in KINDS:
            raise ValueError(f"unknown kind '{self.kind[:40]}'{near_miss(self.kind, KINDS)}")
        for name, _, _ in self.filters:
            if name not in ("id", *NUMBERS):
                raise ValueError(f"cannot filter by '{name[:40]}'{near_miss(name, ('id', *NUMBERS))}")
        if self.offset < 0 or not 0 <= self.limit <= MOST:
            raise ValueError(f"offset must be at least 0 and limit from 0 to {MOST}")

    @classmethod
    def parse(cls, values: dict[str, str]) -> "Query":
        """From the parameters of an address."""
        return cls(
            q=values.get("q", "")[:200],
            sort=values.get("sort", "id"),
            desc=values.get("desc", "") == "1",
            filters=parse_filters(values.get("filter", "")),
            kind=values.get("kind", ""),
            noted=values.get("noted", "") == "1",
            offset=whole_number("offset", values.get("offset", "0")),
            limit=whole_number("limit", values.get("limit", "100")),
        )

    def where(self, walk: bool = False) -> tuple[str, list[Any]]:
        """The condition and its values; with `walk`, written so that filters do not choose the index."""
        parts: list[str] = ["1"]
        values: list[Any] = []
        for name, least, most in self.filters:
            for sign, end in ((">=", least), ("<=", most)):
                if end is not None:
                    parts.append(f"{'+' if walk else ''}{name} {sign} ?")
                    values.append(end)
        if self.kind:
            parts.append(f"{'+' if walk else ''}kind = ?")
            values.append(self.kind)
        if self.noted:
            parts.append("id IN (SELECT latent FROM temp.written)")
        words = re.findall(r"\w+", self.q)
        if words:
            match = " ".join(f'"{word}"*' for word in words)
            parts.append(
                "id IN (SELECT rowid FROM words WHERE words MATCH ? UNION SELECT rowid FROM said WHERE said MATCH ? "
                "UNION SELECT rowid FROM temp.written_words WHERE written_words MATCH ?)"
            )
            values += [match, f"{{explanation}} : ({match})", match]
        elif self.q.strip():
            parts.append("instr(tokens, ?)")
            values.append(self.q.strip())
        return " AND ".join(parts), values


def parse_filters(text: str) -> tuple[tuple[str, float | None, float | None], ...]:
    """(column, least, most) from `density:0.001..0.1,cosine:0.9..`."""
    found = []
    given = [part for part in text.split(",") if part]
    if len(given) > FILTERS:
        raise ValueError(f"at most {FILTERS} filters are allowed, got {len(given):,}")
    for part in given:
        match = re.fullmatch(r"(\w+):([-+.\deE]*?)\.\.([-+.\deE]*)", part.strip())
        if not match:
            raise ValueError(f"a filter is column:least..most, such as density:0.001..0.1; got '{part[:40]}'")
        try:
            low, high = (float(end) if end else None for end in match.groups()[1:])
        except ValueError:
            raise ValueError(f"a filter's ends are numbers, got '{part[:40]}'") from None
        found.append((match[1], low, high))
    return tuple(found)


def whole_number(name: str, text: Any) -> int:
    """A number in an address; ValueError that names it for what is none, or has more than 63 bits."""
    try:
        number = int(text)
    except (TypeError, ValueError):
        number = None
    if number is None or abs(number) >= 1 << 63:
        raise ValueError(f"{name} must be a whole number of at most 63 bits, got '{str(text)[:40]}'")
    return number


def latents(database: Database, query: Query) -> dict[str, Any]:
    """Rows of the table, and how many there are in all."""
    where, values = query.where()
    order = f"{query.sort} {'DESC' if query.desc else 'ASC'}"
    # Rows without a value come last in either direction; an index serves the order either way.
    last = "" if query.sort == "id" else f"{query.sort} IS NULL, "
    if query.sort in ("id", "count", "density", "mean", "largest", "norm", "cosine"):
        last = ""
    (total,) = database.all(f"SELECT count(*) FROM latents WHERE {where}", values)[0]
    (all_,) = database.all("SELECT count(*) FROM latents")[0]
    # Where many rows pass the filters, going along the order until enough have passed beats sorting all that do.
    where, values = query.where(walk=20 * total > all_)
    rows = database.all(
        f"SELECT {', '.join(SHOWN)}, (SELECT tags FROM temp.written WHERE latent = id) AS tags FROM latents "
        f"WHERE {where} ORDER BY {last}{order}, id LIMIT ? OFFSET ?",
        [*values, query.limit, query.offset],
    )
    return {"total": total, "offset": query.offset, "rows": [dict(row) for row in rows]}


def filled(database: Database) -> list[str]:
    """Which of the columns that other commands fill hold anything, in whatever row."""
    tests = {"explanation": "score IS NOT NULL", "score": "score IS NOT NULL", "probe": "probe_score IS NOT NULL"}
    return [name for name, test in tests.items() if database.all(f"SELECT 1 FROM latents WHERE {test} LIMIT 1")]


def place_of(database: Database, query: Query, latent: int) -> dict[str, int | None]:
    """The latents before and after one in the table's order, for stepping from page to page."""
    found: dict[str, int | None] = {}
    where, values = query.where()
    own = database.all(f"SELECT {query.sort} FROM latents WHERE id = ?", (latent,))
    if not own:
        return {"previous": None, "next": None}
    for name, ahead in (("next", True), ("previous", False)):
        sign, way = ("<", "DESC") if query.desc == ahead else (">", "ASC")
        # Within equal values the table goes by number, whatever the direction.
        (step, turn) = (">", "ASC") if ahead else ("<", "DESC")
        if query.sort == "id":
            rows = database.all(
                f"SELECT id FROM latents WHERE {where} AND id {sign} ? ORDER BY id {way} LIMIT 1", [*values, latent]
            )
        else:
            rows = database.all(
                f"SELECT id FROM latents WHERE {where} AND {query.sort} = ? AND id {step} ? ORDER BY id {turn} LIMIT 1",
                [*values, own[0][0], latent],
            ) or database.all(
                f"SELECT id FROM latents WHERE {where} AND {query.sort} {sign} ? ORDER BY {query.sort} {way}, "
                f"id {turn} LIMIT 1",
                [*values, own[0][0]],
            )
        found[name] = rows[0][0] if rows else None
    return found
