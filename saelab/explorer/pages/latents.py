"""The table of latents, and one latent."""

import time
from typing import Any

from saelab.explorer.database import NUMBERS
from saelab.explorer.pages.runs import row_scale
from saelab.explorer.route import Page, Route
from saelab.explorer.search import Query, filled, latents, place_of
from saelab.explorer.windows import label_of, windows
from saelab.explorer.workspace import Member, Workspace

SHOWN = {"top": 12, "random": 6, "silent": 4, "near": 4}
PER_INTERVAL = 3
OLDER = "an older saelab collected them without the model's own last norm: collect again with --recollect true"
ROUTES = (
    Page(
        "/run/{name}/latents", lambda w, r: table(w, r.name, r.query),
        name="latents", title="Latents", module="latents", in_copies=True,
    ),
    Page(
        "/run/{name}/latent/{latent}", lambda w, r: latent(w, r.name, r.latent, r.query),
        name="latent", parent="latents", module="latent", in_copies=True,
    ),
    Route(
        "/run/{name}/latent/{latent}/examples",
        lambda w, r: examples(w, r.name, r.latent, r.query.get("kind", "top"), r.number("offset", 0)),
    ),
    Route(
        "/run/{name}/latent/{latent}/context",
        lambda w, r: context(w, r.name, r.latent, r.number("row"), r.number("before", 100), r.number("after", 100)),
    ),
    Route(
        "/run/{name}/latent/{latent}/note", lambda w, r: note(w, r.name, r.latent, r.body, time.time()), "POST"
    ),
)  # fmt: skip


def table(workspace: Workspace, name: str, values: dict[str, str]) -> dict[str, Any]:
    """Rows of the table of latents."""
    member = workspace[name]
    meta = member.database.meta()
    return {
        "page": "latents",
        "title": f"Latents of {name}",
        "run": name,
        "rows_seen": meta["rows"],
        "unit": "tokens" if meta["has_text"] else "rows",
        "n_latents": meta["n_latents"],
        "columns": list(NUMBERS),
        "filled": filled(member.database),
        "table": latents(member.database, Query.parse(values)),
    }


def latent(workspace: Workspace, name: str, number: int, values: dict[str, str]) -> dict[str, Any]:
    """Everything about one latent; `values` say in which table order its neighbours on the keyboard are."""
    member = workspace[name]
    own = member.database.latent(number)
    if own is None:
        raise LookupError(f"{name} has no latent {number}")
    meta, details = member.database.meta(), member.database.details(number)
    top = abs(own["largest"] or 0)
    shown = {
        kind: windows(member, number, details.get(kind, [])[:most]) for kind, most in SHOWN.items() if kind != "near"
    }
    near = details.get("near", [])[: SHOWN["near"]]
    shown["near"] = windows(member, number, [row for row, _ in near])
    for window, (_, value) in zip(shown["near"], near, strict=True):
        window["would_be"] = value
    intervals = [
        {
            "low": top * place / len(details["intervals"]),
            "high": top * (place + 1) / len(details["intervals"]),
            "count": part["count"],
            "examples": windows(member, number, part["rows"][:PER_INTERVAL]),
        }
        for place, part in enumerate(details.get("intervals", []))
    ]
    return {
        "page": "latent",
        "title": f"Latent {number} of {name}",
        "run": name,
        "latent": number,
        "n_latents": meta["n_latents"],
        "rows_seen": meta["rows"],
        "has_text": meta["has_text"],
        "numbers": own,
        "scale": row_scale(member),
        "kept": {kind: len(details.get(kind, [])) for kind in SHOWN},
        "histogram": details.get("histogram", []),
        "examples": shown,
        "intervals": intervals[::-1],
        "tokens": [
            [label_of(member, token), share, count]
            for token, share, count in (details.get("tokens", []) if meta["has_text"] else [])
        ],
        "logits": _logits(member, details) if "logits" in meta else None,
        "why_no_logits": meta.get("logits", OLDER),
        "neighbours": _named(member, details.get("neighbours", [])),
        "correlated": _named(member, details.get("correlated", [])),
        "note": member.database.note(number),
        "steps": place_of(member.database, Query.parse({"sort": "id"} | values), number),
        "others": [other for other in workspace.members if other != name],
    }


def _logits(member: Member, details: dict[str, Any]) -> dict[str, Any] | None:
    if "logits_top" not in details:
        return None
    sides = {
        side: [[label_of(member, token), value] for token, value in details[f"logits_{side}"]]
        for side in ("top", "bottom")
    }
    return sides | {
        "histogram": details["logits_histogram"],
        "low": details["logits_bottom"][0][1],
        "high": details["logits_top"][0][1],
    }


def _named(member: Member, pairs: list[list[Any]]) -> list[dict[str, Any]]:
    """Other latents with what the table says about them."""
    found = []
    for number, *values in pairs:
        own = member.database.latent(number) or {}
        found.append(
            {"latent": number, "values": values}
            | {key: own.get(key) for key in ("tokens", "density", "explanation", "kind")}
        )
    return found


def examples(workspace: Workspace, name: str, number: int, kind: str, offset: int) -> dict[str, Any]:
    """More examples of a kind: those kept, and beyond them, of top ones, by size."""
    member = workspace[name]
    details = member.database.details(number)
    if kind not in ("top", "random", "silent"):
        raise ValueError(f"examples are top, random or silent, not '{kind}'")
    rows = details.get(kind, [])
    return {"examples": windows(member, number, rows[offset : offset + 20]), "total": len(rows)}


def context(workspace: Workspace, name: str, number: int, row: int, before: int, after: int) -> dict[str, Any]:
    """One example with more of its document."""
    member = workspace[name]
    rows = member.database.meta()["rows"]
    if not 0 <= row < rows:
        raise LookupError(f"there is no row {row}; there are {rows}")
    if before < 0 or after < 0:
        raise ValueError(f"before and after must be at least 0, got {before} and {after}")
    return {"example": windows(member, number, [row], before, after)[0]}


def note(workspace: Workspace, name: str, number: int, body: dict[str, Any], now: float) -> dict[str, Any]:
    """Keep a note and tags; ValueError for what is too long."""
    member = workspace[name]
    if member.database.latent(number) is None:
        raise LookupError(f"{name} has no latent {number}")
    text, tags = body.get("note", ""), body.get("tags", [])
    if not isinstance(text, str) or len(text) > 10_000:
        raise ValueError("note must be text of at most 10,000 characters")
    if not isinstance(tags, list) or len(tags) > 20 or not all(isinstance(tag, str) and _is_tag(tag) for tag in tags):
        raise ValueError("tags must be at most 20 words of at most 40 characters")
    member.database.write_note(number, text.strip(), tags, now)
    return member.database.note(number)


def _is_tag(tag: str) -> bool:
    return 0 < len(tag) <= 40 and not any(sign.isspace() for sign in tag)
