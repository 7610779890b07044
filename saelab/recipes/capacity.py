"""`saelab scaling allocate | diagnose`: where capacity goes if features are manifolds, and where an SAE's has gone."""

from pathlib import Path
from typing import Any

import numpy as np

from saelab.core.components import near_miss
from saelab.core.files import write_json
from saelab.scaling.allocate import Allocation, Allocator, frequencies, local_exponents
from saelab.scaling.curves import Discrete, LossCurve, Shift, Two
from saelab.scaling.theory import Regime


def allocate(
    alpha: float = 0.5,
    beta: float = 1.5,
    features: int = 1_000_000,
    latents: list[int] | None = None,
    discrete: float = 0.0,
    at_zero: str = "shift",
    out: str | None = None,
    figures: bool = False,
) -> None:
    """Share out latents among features of power-law frequencies in the best way, and compare with theory.

    Args:
        alpha: features fire with probability proportional to rank^-(1 + alpha).
        beta: a manifold's loss falls as n^-beta with its latents.
        features: how many there are.
        latents: numbers of latents N; by default powers of 10 up to a tenth of the features.
        discrete: share of features that are plain directions, served by one latent, evenly over the ranks.
        at_zero: the convention at n = 0: shift, (1 + n)^-beta, or two, L(0) = 2.
        out: a JSON file for the result.
        figures: also write an HTML file beside it.
    """
    kinds = {"shift": Shift, "two": Two}
    if at_zero not in kinds:
        raise ValueError(f"unknown at_zero '{at_zero}'{near_miss(at_zero, kinds)}")
    if not 0 <= discrete <= 1:
        raise ValueError(f"discrete must be a share from 0 to 1, got {discrete}")
    p = frequencies(features, alpha)
    ranks = np.arange(features)
    plain = np.floor((ranks + 1) * discrete) > np.floor(ranks * discrete)
    curves: list[LossCurve] = [kinds[at_zero](beta), Discrete()]
    allocator = Allocator(p, curves, plain.astype(np.int8))
    sizes = latents or [10**power for power in range(1, 8) if 10**power <= max(10, features // 10)]
    rows, last = [], None
    for count in sizes:
        last = allocator.allocate(count)
        tiling = int(last.count[~plain[last.feature]].sum())
        first = {"latents": count, "found": last.found, "first": int(last.count[0]), "loss": float(last.loss)}
        rows.append(first | {"share_on_manifolds": tiling / count, "spare": last.spare, "bound": float(last.bound)})
    assert last is not None
    settings = {"alpha": alpha, "beta": beta, "features": features, "discrete": discrete, "at_zero": at_zero}
    result = _allocation_file(settings, rows, Regime(alpha, beta), last)
    print("\n".join(_allocation_words(result)))
    if out:
        write_json(Path(out), result)
    if figures:
        from saelab.scaling.figures import allocation_figure, write_figure

        write_figure(Path(out or "allocation.json").with_suffix(".html"), allocation_figure(result))


def _allocation_file(
    settings: dict[str, Any], rows: list[dict[str, Any]], regime: Regime, last: Allocation
) -> dict[str, Any]:
    """The file of an allocation.

    {"format": 1, "kind": "allocation", "settings", "rows": [{"latents", "found", "first", "loss", "share_on_manifolds",
    "spare", "bound"}], "local_exponents": {"found", "loss"} between neighbouring rows, "theory": {"regime", "found",
    "loss", "n_i"}, "allocation": {"rank", "count"} of the last row}
    """
    sizes = [row["latents"] for row in rows]
    shown = np.unique(np.geomspace(1, last.found, 200).astype(int)) - 1
    return {
        "format": 1,
        "kind": "allocation",
        "settings": settings,
        "rows": rows,
        "local_exponents": {
            key: local_exponents(sizes, [row[key] for row in rows]).tolist() for key in ("found", "loss")
        },
        "theory": {"regime": regime.name, "found": regime.features, "loss": regime.loss, "n_i": regime.allocation},
        "allocation": {"rank": (last.feature[shown] + 1).tolist(), "count": last.count[shown].tolist()},
    }


def _allocation_words(result: dict[str, Any]) -> list[str]:
    theory, slopes = result["theory"], result["local_exponents"]
    exponents = f"D ~ N^{theory['found']:.3f}, L ~ N^{theory['loss']:.3f}, n_i ~ i^{theory['n_i']:.3f}"
    heads = ("N", "D", "n_1", "L", "dlnD/dlnN", "dlnL/dlnN", "on manifolds")
    lines = [f"{theory['regime']}: theory says {exponents}", "".join(f"{head:>13}" for head in heads)]
    for number, row in enumerate(result["rows"]):
        words = [f"{row[key]:>13,}" for key in ("latents", "found", "first")] + [f"{row['loss']:>13.4g}"]
        words += [f"{slopes[key][number - 1]:>13.3f}" if number else " " * 13 for key in ("found", "loss")]
        lines.append("".join(words) + f"{row['share_on_manifolds']:>13.1%}")
    return lines
