"""Result files: a folder of JSON and Parquet that `saelab scaling fit` writes and plans, figures and explorers read.

    FOLDER/
      cells.parquet, curves.parquet    see `saelab.scaling.cells`
      law-joint.json, law-width-k32.json, law-compute-k32.json, law-tokens-k32.json, law-rate.json, law-subject-k32.json

A law's file:

    {"format": 1, "kind": "law", "law": "JointLaw", "irreducible": true, "k": null or the k it is for,
     "parameters": {name: {"value", "low", "high": numbers, or null where not identified, "why": ""}},
     "theta": [P], "draws": [[P] ...]      in the order of the law's parameters, amplitudes as logarithms
     "sigma": spread of ln y around the law, "r2", "aicc": number or null,
     "range": {variable: [lowest, highest]},
     "cells": [{"name", variables..., "y", "fitted", "weight"} ...],
     "held_out": null or {"cells": [{"name", "y", "predicted", "low", "high"}], "mean_abs_log_error",
                          "mean_log_error", "inside", "estimates": as parameters},
     "rival": null or a law's file without a rival: the same with or without the irreducible term,
     "rival_holds": whether predictions allow for the rival too,
     "notes": [lines]}

Intervals are 95 %.
"""

from pathlib import Path
from typing import Any

import numpy as np

from saelab.core.files import write_json
from saelab.core.read import Row, check_format, expect, read_json
from saelab.scaling.fit import Estimate, Fit, Points
from saelab.scaling.law import Law

FORMAT = 1
FIT_AGAIN = "restore it from a copy or fit again"
ESTIMATE = {"value": (float, None), "low": (float, None), "high": (float, None), "why": str}
HELD_OUT = {
    "cells": [{"name": str, "y": float, "predicted": float, "low": float, "high": float}], "inside": int,
    "mean_abs_log_error": float, "mean_log_error": float, "estimates": {str: ESTIMATE},
}  # fmt: skip
LAW = {
    "law": str, "irreducible": bool, "k": (float, None), "parameters": {str: ESTIMATE}, "theta": [float],
    "draws": [[float]], "sigma": float, "r2": (float, None), "aicc": (float, None), "range": {str: Row(float, float)},
    "cells": [{"name": str, "y": float, "fitted": float, "weight": float}], "held_out": (HELD_OUT, None),
    "rival": (dict, None), "rival_holds": bool, "notes": [str],
}  # fmt: skip
"""A law's file; its own variables and parameters are looked at besides."""


def as_json(fit: Fit, k: float | None = None, notes: list[str] | None = None) -> dict[str, Any]:
    """A fit as its file says it."""
    fitted = fit.law.value(fit.theta, fit.points.x)
    return {
        "format": FORMAT,
        "kind": "law",
        "law": type(fit.law).__name__,
        "irreducible": fit.law.irreducible,
        "k": k,
        "parameters": {name: vars(estimate) for name, estimate in fit.estimates.items()},
        "theta": fit.theta.tolist(),
        "draws": fit.draws.tolist(),
        "sigma": fit.sigma,
        "r2": fit.r2 if np.isfinite(fit.r2) else None,
        "aicc": fit.aicc,
        "range": {name: list(ends) for name, ends in fit.range().items()},
        "cells": [
            {"name": name, **dict(zip(fit.law.variables, x, strict=True)), "y": y, "fitted": f, "weight": w}
            for name, x, y, f, w in zip(
                fit.points.names, fit.points.x.tolist(), fit.points.y.tolist(), fitted.tolist(), fit.weights.tolist(),
                strict=True,
            )
        ],
        "held_out": fit.held_out,
        "rival": as_json(fit.rival) if fit.rival else None,
        "rival_holds": fit.rival_holds,
        "notes": notes or [],
    }  # fmt: skip


def write_fit(path: str | Path, fit: Fit, k: float | None = None, notes: list[str] | None = None) -> Path:
    """Write a law's file; returns its path."""
    write_json(Path(path), as_json(fit, k, notes))
    return Path(path)


def read_fit(path: str | Path) -> Fit:
    """A fit from its file; ValueError that names the file if it is none."""
    path = Path(path)
    found = read_json(path)
    check_format(path, found.get("format"), FORMAT)
    if found.get("kind") != "law":
        raise ValueError(f"{path} is not a fitted law; `saelab scaling fit` writes one")
    return _fit(found, path)


def _fit(found: dict[str, Any], path: Path) -> Fit:
    expect(found, LAW, path, FIT_AGAIN)
    law = Law.named(found["law"])(irreducible=found["irreducible"])
    cells, names = found["cells"], [parameter.shown or parameter.name for parameter in law.parameters]
    expect(found["range"], dict.fromkeys(law.variables, Row(float, float)), f"{path}: range", FIT_AGAIN)
    expect(cells, [dict.fromkeys(law.variables, float)], f"{path}: cells", FIT_AGAIN)
    expect(found["parameters"], dict.fromkeys(names, ESTIMATE), f"{path}: parameters", FIT_AGAIN)
    for theta in (found["theta"], *found["draws"]):
        if len(theta) != len(names):
            raise ValueError(f"{path}: theta and draws: expected {len(names)} numbers, got {len(theta)}; {FIT_AGAIN}")
    if not cells or any(value <= 0 for cell in cells for value in (cell["y"], *(cell[name] for name in law.variables))):
        raise ValueError(f"{path}: cells: expected numbers above 0; {FIT_AGAIN}")
    x = np.array([[cell[name] for name in law.variables] for cell in cells], float)
    points = Points(x, np.array([cell["y"] for cell in cells], float), [cell["name"] for cell in cells])
    return Fit(
        law,
        points,
        np.array(found["theta"], float),
        np.array(found["draws"], float).reshape(-1, len(names)),
        found["sigma"],
        np.array([cell["weight"] for cell in cells]),
        found["aicc"],
        {name: Estimate(**estimate) for name, estimate in found["parameters"].items()},
        _fit(found["rival"], path) if found["rival"] else None,
        found["held_out"],
    )
