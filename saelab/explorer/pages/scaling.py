"""Loss against size over the loaded runs, with a fit; and the norms of codes against those of rows (ZF plot).

    ln FVU  =  a + b ln n + c ln k         least squares over the runs, where they vary in both or either

A first look: `saelab scaling` fits laws with an irreducible part, intervals and tests. Its results stand below where
its folder or files are loaded (`ladder`).
"""

# Shape letters: C runs.

from typing import Any

import numpy as np

from saelab.core.read import fits
from saelab.explorer.pages.ladder import ladder
from saelab.explorer.route import Page, Route
from saelab.explorer.windows import label_of
from saelab.explorer.workspace import Workspace
from saelab.sae.files import read_config

PASSAGES, PASSAGE = 12, 96
ROUTES = (
    Page("/scaling", lambda w, r: scaling(w), name="scaling", title="Scaling", module="scaling"),
    Route("/run/{name}/norms", lambda w, r: norms(w, r.name)),
)


def scaling(workspace: Workspace) -> dict[str, Any]:
    """The runs as points, and the fit."""
    points = []
    for member in workspace.members.values():
        if not member.is_trained or not member.saved.is_run:
            continue
        config = read_config(member.saved.sae_folder)
        scores, log = member.saved.scores, member.saved.training_log
        score = scores.get("fvu")
        l0 = scores.get("l0", {}).get("value") or (log[-1]["l0"] if log else None)
        loss = score or ({"value": log[-1]["fvu"], "low": None, "high": None} if log else None)
        if not loss or not loss["value"]:
            continue
        k = config.get("activation", {}).get("k")
        k = k if fits(k, float) and k > 0 else l0
        if "n_latents" not in config:
            continue  # an ensemble
        points.append({
            "name": member.name, "n": config["n_latents"], "k": k, "loss": loss["value"], "low": loss["low"],
            "high": loss["high"], "measured": bool(score), "rows": log[-1]["rows"] if log else None,
        })  # fmt: skip
    names = [
        name
        for name, member in workspace.members.items()
        if member.is_collected and member.saved.subject and member.has_text
    ]
    found = {"page": "scaling", "title": "Scaling", "points": points, "fit": fit(points), "zf": names}
    return found | {"results": ladder(workspace)}


def fit(points: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Exponents over the variables that vary; None where the points do not determine them."""
    usable = [point for point in points if point["k"] and point["loss"] > 0]
    varied = [name for name in ("n", "k") if len({point[name] for point in usable}) > 1]
    if not varied or len(usable) <= len(varied) + 1:
        return None
    design = np.array([[1.0, *(np.log(point[name]) for name in varied)] for point in usable])
    target = np.log([point["loss"] for point in usable])
    theta, _, rank, _ = np.linalg.lstsq(design, target, rcond=None)
    if rank < design.shape[1]:
        return None
    rest = target - design @ theta
    spread = float(np.sqrt((rest**2).sum() / (len(usable) - design.shape[1])))
    error = spread * np.sqrt(np.diag(np.linalg.inv(design.T @ design)))
    return {
        "constant": float(theta[0]),
        "exponents": {name: float(value) for name, value in zip(varied, theta[1:], strict=True)},
        "standard_errors": {name: float(value) for name, value in zip(varied, error[1:], strict=True)},
        "residual": spread,
    }


def norms(workspace: Workspace, name: str) -> dict[str, Any]:
    """For passages spread over the corpus: each row's norm, its codes' norm, and its token with its place.

    In units of the SAE's scaled input, which may be each row's own. Where directions are nearly orthogonal, the two are
    equal.
    """
    member = workspace[name]
    member.need_text()
    lens = workspace.lens(member)
    rows, points = member.database.meta()["rows"], []
    for first in np.linspace(0, max(0, rows - PASSAGE), PASSAGES).astype(int).tolist():
        corpus = member.database.corpus(first, first + PASSAGE)
        own = corpus["document"] == corpus["document"][0]
        tokens = corpus["token"][own].tolist()
        ids = lens.with_first_token(tokens)
        activations, codes = lens.read(ids)
        x = lens.sae.scale.apply_to(activations[:, : lens.sae.d_in]) - lens.sae.dictionary.bias()[: lens.sae.d_in]
        z, f = x.norm(dim=1).tolist(), codes.values.norm(dim=1).tolist()
        for at, token in enumerate(tokens):
            place = at + lens.start()
            points.append([round(z[place], 3), round(f[place], 3), first + at, label_of(member, token)])
    return {"run": name, "points": points}
