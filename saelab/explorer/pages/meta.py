"""Meta-latents: what the directions of an SAE are made of, and which of its latents a meta-latent goes through.

Read from a result of `saelab meta` (see `saelab.analysis.meta`) whose `sae` is this one's name.
"""

# Shape letters: M meta-latents, L latents of the SAE, D width.

from typing import Any

import torch

from saelab.explorer.directions import head_of
from saelab.explorer.meta_result import MetaResult
from saelab.explorer.route import Page, Route
from saelab.explorer.workspace import Member, Workspace

BOOSTED, BASE, LIST_BASE, BINS = 10, 24, 4, 24


ROUTES = (
    Page("/run/{name}/meta", lambda w, r: meta(w, r.name), name="meta", title="Meta", module="meta"),
    Page(
        "/run/{name}/meta/{latent}", lambda w, r: meta_latent(w, r.name, r.latent),
        name="meta_latent", parent="meta", module="meta",
    ),
    Route("/run/{name}/latent/{latent}/meta", lambda w, r: of_latent(w, r.name, r.latent)),
)  # fmt: skip


def meta(workspace: Workspace, name: str) -> dict[str, Any]:
    """All meta-latents of an SAE."""
    member = workspace[name]
    page = {"page": "meta", "title": f"Meta-latents of {name}", "run": name}
    result = workspace.meta(member)
    if result is None:
        return page | {"why_not": f"no meta-SAE of {name} is loaded: add the folder that `saelab meta` wrote"}
    metas = result.content["metas"]
    lines = [
        {
            "meta": number,
            "count": len(result.latents.get(number, [])),
            "mean": round(float(mean), 4),
            "base": [_base(member, *pair) for pair in result.latents.get(number, [])[:LIST_BASE]],
        }
        for number, mean in zip(metas["meta"].tolist(), _plain(metas["mean"]), strict=True)
    ]
    about = {
        key: result.content.get(key) for key in ("n_latents", "n_alive", "n_meta", "k", "explained", "l0", "controls")
    }
    return page | {"metas": sorted(lines, key=lambda line: -line["count"]), "about": about}


def _plain(values: Any) -> list[float]:
    numbers = values.tolist() if isinstance(values, torch.Tensor) else list(values)
    return [0.0 if value is None or value != value else float(value) for value in numbers]


def _base(member: Member, latent: int, value: float) -> dict[str, Any]:
    row = member.database.latent(latent) if member.is_collected else None
    about = {key: row[key] for key in ("tokens", "density", "explanation")} if row else {}
    return {"latent": latent, "value": round(value, 4)} | about


def meta_latent(workspace: Workspace, name: str, number: int) -> dict[str, Any]:
    """One meta-latent: its base latents, a histogram of its values, the tokens that it boosts."""
    member = workspace[name]
    result = workspace.meta(member)
    if result is None:
        others = [f"{one.folder / 'meta.json'} is of '{one.sae_name}'" for one in workspace.meta_results()]
        raise LookupError(", ".join([f"{name} has no meta-latent {number}", *others]))
    if not 0 <= number < result.n_meta:
        raise LookupError(f"{name} has no meta-latent {number}: {result.folder} has {result.n_meta}")
    pairs = result.latents.get(number, [])
    values = torch.tensor([value for _, value in pairs])
    most = float(values.max()) if len(values) else 1.0
    counts = torch.histc(values, BINS, 0, most).int().tolist() if len(values) else [0] * BINS
    return {
        "page": "meta_latent",
        "title": f"Meta-latent {number} of {name}",
        "run": name,
        "meta": number,
        "n_meta": result.n_meta,
        "count": len(pairs),
        "histogram": {"counts": counts, "high": most},
        "base": [_base(member, *pair) for pair in pairs[:BASE]],
        **_boosted(workspace, member, result, number),
        "tree": [of_latent(workspace, name, latent) for latent, _ in pairs[:6]],
    }


def _boosted(workspace: Workspace, member: Member, result: MetaResult, number: int) -> dict[str, Any]:
    """Tokens along the meta-latent's own direction, `boosted`, or why there are none, `why_not_boosted`."""
    if not member.vocabulary:
        return {"boosted": [], "why_not_boosted": "these rows are of no language model"}
    direction = result.directions[number]
    head, why_not = head_of(workspace.model(member), len(direction))
    if head is None:
        return {"boosted": [], "why_not_boosted": why_not}
    best = head.promoted_by(direction[None])[0].topk(min(BOOSTED, head.vocabulary))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return {"boosted": [[member.vocabulary[token], round(value, 3)] for token, value in pairs], "why_not_boosted": None}


def of_latent(workspace: Workspace, name: str, latent: int) -> dict[str, Any]:
    """A latent's meta-latents, each with the other latents it goes through most."""
    member = workspace[name]
    result = workspace.meta(member)
    if result is None:
        return {"latent": latent, "metas": []}
    return _base(member, latent, 1.0) | {
        "metas": [
            {
                "meta": number,
                "value": round(value, 4),
                "base": [_base(member, *pair) for pair in result.latents[number] if pair[0] != latent][:5],
            }
            for number, value in result.metas(latent)[:6]
        ]
    }
