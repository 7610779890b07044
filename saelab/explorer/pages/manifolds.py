"""Maps of decoder directions, clusters of close ones, and what a cluster reconstructs as a cloud of points.

A cluster is a connected component of the graph of latents that are among each other's nearest and have a cosine of at
least a threshold. Its cloud is sum_j f_j d_j over its latents, for rows in which any of them is active, along its first
three principal components: a ring or a curve is a manifold that several latents tile. What clusters are, by when their
latents fire, comes from a result of `saelab manifolds`, where one is loaded.
"""

# Shape letters: L latents, C neighbours kept of each, n rows of a cloud, l latents of a cluster, D width.

from typing import Any

import numpy as np
import scipy.sparse.csgraph  # noqa: F401 - clusters need it, and the first page shall not wait for it
import torch

from saelab.analysis.manifolds import read_manifolds
from saelab.explorer.directions import directions_of, principal
from saelab.explorer.pages.compare import bare_name, packed_numbers
from saelab.explorer.route import Page, Route
from saelab.explorer.windows import units_of
from saelab.explorer.workspace import Member, Workspace
from saelab.geometry import components, participation_ratio
from saelab.models.token_text import unit_at

THRESHOLD = 0.6
CLUSTERS, CLUSTER_LATENTS, CLOUD_ROWS = 60, 64, 1500
"""Clusters listed, latents of a cluster that are shown, rows of a cloud; at most."""
CONTEXT = 6
LINKED = 0.15
"""Cosine from which on two latents are joined in the force graph."""
ROUTES = (
    Page(
        "/run/{name}/manifolds", lambda w, r: manifolds(w, r.name, r.query),
        name="manifolds", title="Manifolds", module="manifolds",
    ),
    Route("/run/{name}/map", lambda w, r: places(w, r.name, r.query.get("map", "umap"), r.query)),
    Route("/run/{name}/around", lambda w, r: around(w, r.name, r.latent)),
    Route("/run/{name}/cloud", lambda w, r: cloud(w, r.name, r.query)),
)  # fmt: skip


def manifolds(workspace: Workspace, name: str, values: dict[str, str]) -> dict[str, Any]:
    """The clusters above a threshold; the map itself is asked for apart (`places`)."""
    member = workspace[name]
    threshold = threshold_of(values, member)
    count = member.database.meta()["n_latents"]
    left, right, _ = edges(member, threshold)
    found, number = clusters(count, left, right)
    return {
        "page": "manifolds",
        "title": f"Manifolds of {name}",
        "run": name,
        "threshold": threshold,
        "n_latents": count,
        "share": [round(float(value), 4) for value in member.database.array("share")],
        "clusters": [_cluster(member, part) for part in found[:CLUSTERS]],
        "n_clusters": number,
        "edges": len(left),
        "told": _told(workspace, member),
    }


def _told(workspace: Workspace, member: Member) -> dict[str, Any] | None:
    """The clusters of a result of `saelab manifolds` that knows the SAE by name and size, the largest first."""
    for folder in workspace.results["manifolds"]:
        result = read_manifolds(folder)
        of = result["latents"]["cluster"]
        if (bare_name(result["sae"]), len(of)) != (bare_name(str(member.folder)), member.sae.n_latents):
            continue
        lines = []
        for line in result["clusters"][:CLUSTERS]:
            latents = (of == line["cluster"]).nonzero().squeeze(1)[:CLUSTER_LATENTS].tolist()
            kept = {key: line.get(key) for key in ("size", "kind", "jaccard", "participation", "two_nearest")}
            lines.append(kept | {"latents": latents})
        return {"threshold": result["settings"]["threshold"], "clusters": lines, "n": len(result["clusters"])}
    return None


def clusters(count: int, left: np.ndarray, right: np.ndarray) -> tuple[list[np.ndarray], int]:
    """The largest clusters of two latents or more, largest first, at most CLUSTERS; and how many there are in all."""
    labels = components(count, torch.from_numpy(left), torch.from_numpy(right)).numpy()
    sizes = np.bincount(labels, minlength=1)
    chosen = np.argsort(-sizes, kind="stable")[:CLUSTERS]
    rank = np.full(len(sizes), -1)
    rank[chosen] = np.arange(len(chosen))
    inside = np.flatnonzero(rank[labels] >= 0)
    inside = inside[np.argsort(rank[labels[inside]], kind="stable")]
    parts = np.split(inside, np.cumsum(sizes[chosen])[:-1]) if count else []
    return [part for part in parts if len(part) > 1], int((sizes > 1).sum())


def _cluster(member: Member, part: np.ndarray) -> dict[str, Any]:
    chosen = part[:CLUSTER_LATENTS].tolist()
    words = [((member.database.latent(latent) or {})["tokens"] or "").partition("\x1f")[0] for latent in chosen[:8]]
    return {"size": len(part), "latents": chosen, "words": words}


def places(workspace: Workspace, name: str, kind: str, values: dict[str, str]) -> dict[str, Any]:
    """A map's places, every latent's density, and the number of its cluster, -1 for none."""
    if kind not in ("umap", "pca"):
        raise ValueError(f"map must be umap or pca, got '{kind[:20]}'")
    member = workspace[name]
    count = member.database.meta()["n_latents"]
    left, right, _ = edges(member, threshold_of(values, member))
    cluster = np.full(count, -1, np.int32)
    for number, part in enumerate(clusters(count, left, right)[0]):
        cluster[part] = number
    place = member.database.array(kind).reshape(count, -1)
    return {
        "x": packed_numbers(place[:, 0]),
        "y": packed_numbers(place[:, -1] if kind == "umap" else place[:, 1]),
        "density": packed_numbers(member.database.array("density")),
        "cluster": packed_numbers(cluster),
    }


def threshold_of(values: dict[str, str], member: Member) -> float:
    """The least cosine of an edge; ValueError for what is none.

    By default THRESHOLD or, where hardly any direction has so close a neighbour, what 3 % of them have.
    """
    if not values.get("threshold"):
        count = member.database.meta()["n_latents"]
        closest = member.database.array("cosines").reshape(count, -1)[:, :1]
        return max(0.1, min(THRESHOLD, round(float(np.quantile(closest, 0.97)), 2))) if closest.size else THRESHOLD
    try:
        threshold = float(values["threshold"])
    except ValueError:
        raise ValueError(f"threshold must be a number, got '{values['threshold'][:40]}'") from None
    if not 0.1 <= threshold <= 1:
        raise ValueError(f"threshold must be from 0.1 to 1, got {threshold:g}")
    return threshold


def edges(member: Member, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs i < j, once each, with their cosines."""
    count = member.database.meta()["n_latents"]
    near = member.database.array("neighbours").reshape(count, -1).astype(np.int64)
    cosine = member.database.array("cosines").reshape(count, -1)
    i, place = np.nonzero(cosine >= threshold)
    j = near[i, place]
    keys, first = np.unique(np.minimum(i, j) * count + np.maximum(i, j), return_index=True)
    return keys // count, keys % count, cosine[i, place][first]


def cloud(workspace: Workspace, name: str, values: dict[str, str]) -> dict[str, Any]:
    """The cloud and the graph of some latents, `?latents=1,2,3`."""
    member = workspace[name]
    chosen = _numbers(values.get("latents", ""), member.sae.n_latents)
    entries = [member.database.activations(latent) for latent in chosen]
    rows = np.unique(np.concatenate([row for row, _ in entries]))
    if len(rows) > CLOUD_ROWS:
        rows = rows[np.linspace(0, len(rows) - 1, CLOUD_ROWS).astype(np.int64)]
    codes = np.zeros((len(rows), len(chosen)), np.float32)
    for at, (row, value) in enumerate(entries):
        place = np.minimum(np.searchsorted(rows, row), max(len(rows) - 1, 0))
        here = rows[place] == row if len(rows) else np.zeros(0, bool)
        codes[place[here], at] = value[here]
    directions = directions_of(member.sae)[chosen]
    points = torch.from_numpy(codes) @ directions
    place3, share = principal(points, 3) if len(rows) > 3 else (torch.zeros(len(rows), 3), torch.zeros(3))
    found = [_context(member, int(row)) for row in rows.tolist()]
    words = [(member.database.latent(latent) or {}).get("tokens") or "" for latent in chosen]
    return {
        "latents": [{"latent": j, "word": word.partition("\x1f")[0]} for j, word in zip(chosen, words, strict=True)],
        "points": [[round(value, 3) for value in point] for point in place3.tolist()],
        "share": [round(value, 4) for value in share.tolist()],
        "dimension": round(participation_ratio(points), 2) if len(rows) > 3 and len(chosen) > 1 else None,
        "strongest": [chosen[at] for at in np.abs(codes).argmax(1).tolist()] if len(rows) else [],
        "tokens": [token for token, _, _ in found],
        "contexts": [context for _, context, _ in found],
        "places": [place for _, _, place in found],
        "rows": rows.tolist(),
        "unit": "tokens" if member.has_text else "rows",
        "graph": _graph(chosen, directions),
    }


def around(workspace: Workspace, name: str, latent: int) -> dict[str, Any]:
    """A latent and those nearest to it, to look at as a cluster."""
    member = workspace[name]
    if member.database.latent(latent) is None:
        raise LookupError(f"{name} has no latent {latent}")
    near = [number for number, _ in member.database.details(latent)["neighbours"]]
    return {"latents": [latent, *near[:7]]}


def _numbers(text: str, count: int) -> list[int]:
    parts = [part for part in text.split(",") if part]
    if not parts or len(parts) > CLUSTER_LATENTS or not all(part.isdigit() and int(part) < count for part in parts):
        raise ValueError(f"latents must be 1 to {CLUSTER_LATENTS} numbers below {count}, joined by commas")
    return list(dict.fromkeys(int(part) for part in parts))


def _context(member: Member, row: int) -> tuple[str, str, int]:
    """A row's token, the text around it, and how far into its document it stands; of no text, its number alone."""
    if not member.has_text:
        return f"row {row}", "", row
    first = max(0, row - CONTEXT)
    corpus = member.database.corpus(first, row + CONTEXT + 1)
    own = corpus["document"] == corpus["document"][row - first]
    rows = first + np.flatnonzero(own)
    shown = units_of(member, int(rows[0]), int(rows[-1]) + 1)
    document = member.database.document(int(corpus["document"][row - first]))
    at = shown[unit_at(row - int(rows[0]), shown)].text if shown else ""
    return at, "".join(unit.text for unit in shown), row - document["first"]


def _graph(chosen: list[int], directions: torch.Tensor) -> list[list[float]]:
    """Edges of the force graph: places in `chosen` and the cosine, for pairs from LINKED on."""
    cosines = directions @ directions.T
    i, j = (cosines >= LINKED).triu(1).nonzero().unbind(1)
    return [[a, b, round(c, 3)] for a, b, c in zip(i.tolist(), j.tolist(), cosines[i, j].tolist(), strict=True)]
