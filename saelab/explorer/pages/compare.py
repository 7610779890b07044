"""Two SAEs side by side: which latents they share, what each adds, and how their scores differ.

    nearest      for each latent the most similar direction of the other SAE, by cosine in the data's units
    matched      each is the other's nearest, above a threshold; split: one here, several there point at it; merged: the
                 other way round; unique: nothing above the threshold

The threshold is the page's: it gets the cosines and sorts latents into classes itself. Where a result of `saelab match`
for the two is loaded, the classes are those of its graph of all close pairs, and pairs are one to one. What the
insertion test and the way from one SAE to the other say comes from a result of `saelab stitch`, where one is loaded.
"""

# Shape letters: A and B latents of the two SAEs, D width.

import base64
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saelab.analysis.match import KINDS, read_match
from saelab.analysis.stitch import read_stitch
from saelab.explorer.directions import directions_of
from saelab.explorer.route import Page, Route
from saelab.explorer.workspace import Member, Nearest, Workspace
from saelab.geometry import nearest

COUNTERPARTS = 3
ROUTES = (
    Page("/compare", lambda w, r: compare(w, r.query), name="compare", title="Compare", module="compare"),
    Route("/run/{name}/latent/{latent}/counterparts", lambda w, r: counterparts(w, r.name, r.latent)),
)


def compare(workspace: Workspace, values: dict[str, str]) -> dict[str, Any]:
    """Everything about a pair; without a choice, the first two SAEs."""
    names = [name for name, member in workspace.members.items() if member.is_trained]
    found: dict[str, Any] = {"page": "compare", "title": "Compare", "names": names}
    if len(names) < 2 and not values.get("a"):
        return found | {"why_not": "comparing needs two SAEs: saelab explore RUN OTHER"}
    a, b = workspace[values.get("a") or names[0]], workspace[values.get("b") or names[1]]
    found |= {"a": _side(a), "b": _side(b), "scores": _differences(a, b)}
    if a.sae.dictionary.directions().shape[1] != b.sae.dictionary.directions().shape[1]:
        return found | {"why_not": f"{a.name} and {b.name} write rows of different widths"}
    found |= {"nearest": dict(zip("ab", map(_packed, workspace.nearest(a, b)), strict=True))}
    return found | {"stitch": _stitched(workspace, a, b), "match": _matched(workspace, a, b)}


def _side(member: Member) -> dict[str, Any]:
    rows = member.database.all("SELECT id, tokens, density FROM latents ORDER BY id") if member.is_collected else []
    return {
        "name": member.name,
        "n_latents": member.sae.n_latents,
        "words": [(row["tokens"] or "").partition("\x1f")[0] for row in rows],
        "density": packed_numbers(np.array([row["density"] for row in rows], np.float32)),
    }


def packed_numbers(values: np.ndarray) -> str:
    """Numbers as base64 of their bytes, float32 or int32: JSON of a hundred thousand would be slow on both sides."""
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _packed(found: Nearest) -> dict[str, str]:
    types = (np.float32, np.int32)
    return {
        key: packed_numbers(part.astype(kind)) for (key, part), kind in zip(found._asdict().items(), types, strict=True)
    }


def _differences(a: Member, b: Member) -> list[dict[str, Any]]:
    """Scores of both, and whether their intervals lie apart."""
    ours, theirs = (member.saved.scores for member in (a, b))
    found = []
    for metric in dict.fromkeys([*ours, *theirs]):
        one, other = ours.get(metric), theirs.get(metric)
        line: dict[str, Any] = {"metric": metric, "a": one, "b": other}
        if one and other:
            line["difference"] = other["value"] - one["value"]
            if None not in (one["low"], one["high"], other["low"], other["high"]):
                # As if the two were independent, which makes the interval of a shared text too wide, never too narrow.
                spread = [((s["high"] - s["low"]) / 2) for s in (one, other)]
                line["margin"] = float(np.hypot(*spread))
        found.append(line)
    return found


def _stitched(workspace: Workspace, a: Member, b: Member) -> dict[str, Any] | None:
    """The pair's part of a stitching result that knows both by name."""
    for folder in workspace.results["stitch"]:
        result = read_stitch(folder)
        for number, pair in enumerate(result["pairs"]):
            names = [bare_name(pair["small"]), bare_name(pair["large"])]
            if sorted(names) != sorted([bare_name(str(a.folder)), bare_name(str(b.folder))]):
                continue
            large = {key: _column(value) for key, value in pair["large_latents"].items()}
            path = {key: _column(value) for key, value in result["path"].items()}
            own = [place for place, which in enumerate(path["pair"]) if which == number]
            return {
                "large": "a" if names[1] == bare_name(str(a.folder)) else "b",
                "counts": pair["counts"],
                "rule": pair.get("rule"),
                "latents": {key: large[key] for key in ("latent", "class", "delta_mse", "low", "high", "cosine")},
                "path": {key: [column[place] for place in own] for key, column in path.items()},
            }
    return None


def _matched(workspace: Workspace, a: Member, b: Member) -> dict[str, Any] | None:
    """A result of matching that knows both by name and size, with the page's A as `a`."""
    wanted = [(bare_name(str(member.folder)), member.sae.n_latents) for member in (a, b)]
    for folder in workspace.results["match"]:
        result = read_match(folder)
        sides = [(bare_name(result[name]), result[f"n_{name}"]) for name in ("a", "b")]
        if sides in (wanted, wanted[::-1]):
            turned = sides != wanted
            kept = ("by", "threshold", "bound", "mean_cosine", "median_cosine", "share_matched", "random_cosine")
            found = {key: result[key] for key in (*kept, "curve")} | {
                "kinds": KINDS,
                "curve_of": "b" if turned else "a",
            }
            tables = [_match_side(result[f"latents_{name}"]) for name in ("a", "b")]
            return found | dict(zip("ba" if turned else "ab", tables, strict=True))
    return None


def _match_side(table: dict[str, Any]) -> dict[str, str]:
    """A side's columns as packed numbers; kinds are numbers in KINDS, cosines of none are NaN."""
    columns = {key: np.asarray(table[key], np.int32) for key in ("partner", "nearest", "group")}
    columns |= {key: np.asarray(table[key], np.float32) for key in ("cosine", "nearest_cosine")}
    columns["kind"] = np.array([KINDS.index(kind) for kind in table["kind"]], np.int32)
    return {key: packed_numbers(column) for key, column in columns.items()}


def bare_name(name: str) -> str:
    return Path(name).resolve().name if "/" in name else name


def _column(values: Any) -> list[Any]:
    """A column as JSON: no NaN."""
    plain = values.tolist() if isinstance(values, torch.Tensor) else list(values)
    return [None if isinstance(value, float) and not np.isfinite(value) else value for value in plain]


def counterparts(workspace: Workspace, name: str, number: int) -> dict[str, Any]:
    """The nearest latents in each of the other SAEs."""
    member = workspace[name]
    if not 0 <= number < member.sae.n_latents:
        raise LookupError(f"{name} has no latent {number}")
    own = directions_of(member.sae)[number : number + 1]
    found = {}
    for other in workspace.members.values():
        if other.name == name or not other.is_trained or other.sae.dictionary.directions().shape[1] != own.shape[1]:
            continue
        cosines, numbers = nearest(own, directions_of(other.sae), COUNTERPARTS)
        found[other.name] = [
            {"latent": near, "values": [round(cosine, 4)]} | _about(other, near)
            for near, cosine in zip(numbers[0].tolist(), cosines[0].tolist(), strict=True)
        ]
    return {"counterparts": found}


def _about(member: Member, number: int) -> dict[str, Any]:
    row = member.database.latent(number) if member.is_collected else None
    return {key: row[key] for key in ("tokens", "density", "explanation", "kind")} if row else {}
