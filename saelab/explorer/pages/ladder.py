"""What `saelab scaling` wrote, for the Scaling page: fitted laws, plans, allocations and diagnoses.

    law          its cells, its value and 95 % interval over its first variable (a line for each setting of the others),
                 eight times beyond the cells; parameters with intervals, the fit without the widest cells, the rival
    plan         as its file has it
    allocation   as its file has it, with the line that theory expects
    diagnosis    verdict and reasons, nearest cosines, firing frequencies, prediction, clusters with their run's name

Files are read when the page is asked for, so that a fit that was made again is shown at once. One that is damaged is
named on the page, and the others are shown.
"""

# Shape letters: X points of a line.

import math
from pathlib import Path
from typing import Any

import numpy as np

from saelab.core.read import expect, read_json
from saelab.explorer.workspace import SCALING, Workspace, scaling_files
from saelab.figures.scaling import BEYOND, MIDDLES
from saelab.sae.files import read_config
from saelab.scaling.files import ESTIMATE, read_fit
from saelab.scaling.fit import Fit

AGAIN = "restore it from a copy or make it again"
MAYBE = (float, None)
PLANNED = {"n": int, "batch": int, "limit": str, "notes": [str]} | dict.fromkeys(
    ("k", "tokens", "tokens_low", "tokens_high", "fvu", "fvu_low", "fvu_high", "lr", "seconds", "memory", "disk"), float
)
ALLOCATED = {"latents": int, "found": int, "first": int, "loss": float, "share_on_manifolds": float}
PREDICTED = dict.fromkeys(("times", "found", "found_low", "found_high", "tiling", "tiling_low", "tiling_high"), float)
SPREAD = {"mean": float, "p50": float, "p90": float, "p99": float, "crowded": float, "histogram": [float]}
CLUSTER = {"latents": [int], "density": float} | dict.fromkeys(
    ("beta", "beta_low", "beta_high", "dimension", "participation", "radial"), MAYBE
)
KINDS: dict[str, Any] = {
    "law": dict,  # `read_fit` looks at it
    "plan": {"budget": {str: MAYBE}, "rows": [PLANNED]},
    "allocation": {
        "settings": {"alpha": float, "at_zero": str}, "rows": [ALLOCATED],
        "local_exponents": {"found": [float], "loss": [float]}, "allocation": {"rank": [int], "count": [int]},
        "theory": {"regime": str, "found": float, "loss": float, "n_i": float},
    },
    "diagnosis": {
        **dict.fromkeys(("rows", "n_latents", "alive", "duplicates"), int), "sae?": (str, None), "alpha": ESTIMATE,
        "frequencies": {"rank": [float], "density": [float], "from": float, "to": float}, "nearest": {str: SPREAD},
        "share_in_clusters": float, "growth": {str: MAYBE}, "predicted": [PREDICTED], "verdict": str, "why": [str],
        "clusters": [CLUSTER],
    },
}  # fmt: skip
"""What the page reads of each kind of file."""
POINTS = 33
"""Of a line."""
CLUSTERS = 40
"""Of a diagnosis, at most."""


def ladder(workspace: Workspace) -> dict[str, Any]:
    """Everything in the results of scaling that are loaded, by kind; each with the name of its file."""
    found: dict[str, Any] = {"law": [], "plan": [], "allocation": [], "diagnosis": [], "damaged": []}
    paths = [path for given in workspace.results["scaling"] for path in scaling_files(given)]
    stems = [path.stem for path in paths]
    for path in paths:
        name = path.stem if stems.count(path.stem) == 1 else f"{path.parent.name}/{path.stem}"
        try:
            content = read_json(path, {"kind": SCALING})
            kind = content["kind"]
            expect(content, KINDS[kind], path, AGAIN)
            found[kind].append({"name": name} | _plain(_READ[kind](workspace, path, content)))
        except ValueError as error:
            found["damaged"].append({"name": name, "error": str(error)})
    return found


def _law(workspace: Workspace, path: Path, content: dict[str, Any]) -> dict[str, Any]:
    fit = read_fit(path)
    rival = content["rival"]
    return {
        "law": content["law"], "k": content["k"], "variables": list(fit.law.variables), "target": fit.law.target,
        "parameters": content["parameters"], "sigma": fit.sigma, "r2": content["r2"], "aicc": fit.aicc,
        "irreducible": content["irreducible"], "rival_aicc": rival["aicc"] if rival else None,
        "rival_holds": content["rival_holds"], "held_out": fit.held_out, "notes": content["notes"],
        "cells": content["cells"], "lines": _lines(fit),
    }  # fmt: skip


def _lines(fit: Fit) -> list[dict[str, Any]]:
    """The law over its first variable, for each setting of the others that was tried."""
    low, high = fit.range()[fit.law.variables[0]]
    x = np.unique([*np.geomspace(low, high, POINTS), *np.geomspace(high, BEYOND * high, POINTS)])
    found = []
    for others in sorted({tuple(row[1:]) for row in fit.points.x.tolist()}):
        value, down, up = fit.predict(np.array([[at, *others] for at in x]))
        parts = {"x": x, "y": value, "low": down, "high": up}
        found.append({"others": list(others), "seen_to": high} | {key: part.tolist() for key, part in parts.items()})
    return found


def _plan(workspace: Workspace, path: Path, content: dict[str, Any]) -> dict[str, Any]:
    return {"budget": content["budget"], "rows": content["rows"]}


def _allocation(workspace: Workspace, path: Path, content: dict[str, Any]) -> dict[str, Any]:
    own = content["allocation"]
    if not own["rank"] or len(own["rank"]) != len(own["count"]) or min(own["rank"]) < 1:
        raise ValueError(f"{path}: allocation: expected as many ranks, from 1 on, as counts; {AGAIN}")
    with np.errstate(all="ignore"):
        law = np.array(own["rank"], float) ** content["theory"]["n_i"]
        expected = (own["count"][0] / law[0] * law).tolist()
    kept = ("settings", "rows", "local_exponents", "theory")
    return {key: content[key] for key in kept} | {"allocation": own | {"expected": expected}}


def _diagnosis(workspace: Workspace, path: Path, content: dict[str, Any]) -> dict[str, Any]:
    kept = (
        "rows", "n_latents", "alive", "alpha", "frequencies", "nearest", "share_in_clusters", "duplicates", "growth",
        "predicted", "verdict", "why",
    )  # fmt: skip
    sae = content.get("sae") or ""
    found = {key: content[key] for key in kept} | {"sae": sae, "run": _run(workspace, sae, content["n_latents"])}
    return found | {"clusters": content["clusters"][:CLUSTERS], "middles": MIDDLES}


def _run(workspace: Workspace, folder: str, n_latents: int) -> str | None:
    """The loaded SAE that a diagnosis is of: that of the folder, or if it was moved, the one of its name and size."""
    trained = [member for member in workspace.members.values() if folder and member.is_trained]
    there = [member.name for member in trained if member.folder.resolve() == Path(folder).resolve()]
    alike = [member for member in trained if member.folder.resolve().name == Path(folder).name]
    sized = [one.name for one in alike if read_config(one.saved.sae_folder).get("n_latents") == n_latents]
    return next(iter(there or (sized if len(sized) == 1 else [])), None)


_READ = {"law": _law, "plan": _plan, "allocation": _allocation, "diagnosis": _diagnosis}


def _plain(value: Any) -> Any:
    """The same without numbers that JSON has none for."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
