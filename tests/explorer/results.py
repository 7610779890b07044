"""Results of other commands, made by hand, for tests of the pages that show them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from saelab.scaling.files import write_fit
from saelab.scaling.fit import Points, fit
from saelab.scaling.laws.joint import JointLaw
from saelab.scaling.laws.tokens import TokensLaw

THETA = [-0.50, 0.26, -0.017, -0.042, -1.32, -0.085]
SPREAD = {"mean": 0.3, "p50": 0.3, "p90": 0.4, "p99": 0.5, "crowded": 0.1, "histogram": [0] * 24 + [30, 10] + [0] * 14}


def laws(folder: Path) -> Path:
    """A folder as `saelab scaling fit` and `plan` leave it."""
    x = np.array([(n, k) for n in (32, 64, 128, 256, 512) for k in (4, 8, 16)], float)
    y, names = JointLaw().value(THETA, x), [f"n{n:g}-k{k:g}" for n, k in x.tolist()]
    write_fit(
        folder / "law-joint.json", fit(JointLaw(), Points(x, y, names), x[:, 0] == 512, draws=6), notes=["a note"]
    )
    n = np.array([64.0, 128.0, 256.0, 512.0])[:, None]
    write_fit(folder / "law-tokens.json", fit(TokensLaw(), Points(n, 1e4 * n[:, 0] ** 0.6, list("abcd")), draws=6))
    row: dict[str, Any] = {"n": 4096, "k": 32.0, "tokens": 1.97e6, "tokens_low": 1.6e6, "tokens_high": 2.4e6}
    row |= {"fvu": 0.23, "fvu_low": 0.15, "fvu_high": 0.28, "lr": 0.004, "batch": 1024, "seconds": 420.0, "disk": 10**8}
    row |= {"memory": 5 * 10**7, "flops": 4e12, "limit": "the tokens", "notes": ["a guess: <b>far</b>"]}
    budget = {"tokens": 2e6, "seconds": None, "memory": None, "disk": None, "target_fvu": None}
    put(folder / "plan.json", {"format": 1, "kind": "plan", "budget": budget, "rows": [row]})
    return folder


def allocation(path: Path) -> Path:
    """A file as `saelab scaling allocate` writes it."""
    rows = [
        {"latents": n, "found": d, "first": f, "loss": 0.5 / n, "share_on_manifolds": 1.0, "spare": 0, "bound": 0.1}
        for n, d, f in ((100, 50, 10), (1000, 200, 300))
    ]
    about: dict[str, Any] = {"settings": {"alpha": 0.5, "at_zero": "shift"}, "rows": rows}
    about |= {"theory": {"regime": "pathological", "found": 0.75, "loss": -0.5, "n_i": -1.5}}
    about |= {"local_exponents": {"found": [0.6], "loss": [-1.0]}}
    own = {"rank": [1, 10, 100], "count": [300, 20, 1]}
    return put(path, {"format": 1, "kind": "allocation", **about, "allocation": own})


def diagnosis(path: Path, sae: str) -> Path:
    """A file as `saelab scaling diagnose` writes it, of an SAE of 48 latents."""
    ends = {"found": 60, "found_low": 50, "found_high": 70, "tiling": 30, "tiling_low": 20, "tiling_high": 40}
    cluster = {"latents": [1, 2, 3, 4, 5, 6], "density": 0.1, "dimension": 1.1, "participation": 2.0, "radial": 0.1}
    about: dict[str, Any] = {"sae": sae, "rows": 900, "n_latents": 48, "alive": 48, "typical_firings": 30.0}
    about |= {"alpha": {"value": 0.5, "low": 0.4, "high": 0.6, "why": ""}, "duplicates": 0, "share_in_clusters": 0.125}
    about |= {"frequencies": {"rank": [1, 2, 3], "density": [0.3, 0.2, 0.1], "from": 1, "to": 3}}
    about |= {"nearest": {"this": SPREAD, "random": SPREAD}, "predicted": [{"times": t, **ends} for t in (2, 10)]}
    about |= {"clusters": [cluster | {"beta": 1.8, "beta_low": 1.5, "beta_high": 2.1}]}
    about |= {"growth": {"median": 0.7, "low": 0.6, "high": 0.8, "benign": 0.0, "pathological": 0.95}}
    about |= {"verdict": "pathological", "why": ["12.5% of 48 live latents lie in 1 tiling cluster"]}
    return put(path, {"format": 1, "kind": "diagnosis", **about})


def put(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content))
    return path
