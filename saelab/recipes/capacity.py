"""`saelab scaling allocate | diagnose`: where capacity goes if features are manifolds, and where an SAE's has gone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from saelab.capacity.allocate import Allocation, Allocator, frequencies, local_exponents
from saelab.capacity.curves import DiscreteCurve, LossCurve, ShiftCurve, TwoCurve
from saelab.capacity.diagnose import diagnose as diagnosed
from saelab.capacity.theory import Regime
from saelab.core.components import near_miss
from saelab.core.files import write_json
from saelab.data.store import StoreSource
from saelab.data.synthetic.world import World
from saelab.metrics.evaluation import TextEvaluation
from saelab.runs import SavedRun, open_runs
from saelab.sae.autoencoder import Autoencoder


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
    """Allocate latents optimally among features with power-law frequencies, and compare with theory.

    Args:
        alpha: features fire with probability proportional to rank^-(1 + alpha).
        beta: a manifold's loss falls as n^-beta with its latents.
        features: number of features.
        latents: numbers of latents N; by default powers of 10 up to a tenth of the features.
        discrete: share of features that are plain directions, served by one latent, evenly over the ranks.
        at_zero: the convention at n = 0: shift, (1 + n)^-beta, or two, L(0) = 2.
        out: a JSON file for the result.
        figures: also draw the allocation and the growth of features found, beside it.
    """
    _check_out(out)
    if latents == []:
        raise ValueError("latents must name at least one number")
    kinds = {"shift": ShiftCurve, "two": TwoCurve}
    if at_zero not in kinds:
        raise ValueError(f"unknown at_zero '{at_zero}'{near_miss(at_zero, kinds)}")
    if not 0 <= discrete <= 1:
        raise ValueError(f"discrete must be a share from 0 to 1, got {discrete}")
    if not -1 < alpha < float("inf"):
        raise ValueError(f"alpha must be above -1, where all features fire alike, and finite; got {alpha}")
    p = frequencies(features, alpha)
    ranks = np.arange(features)
    plain = np.floor((ranks + 1) * discrete) > np.floor(ranks * discrete)
    curves: list[LossCurve] = [kinds[at_zero](beta), DiscreteCurve()]
    allocator = Allocator(p, curves, plain.astype(np.int8))
    sizes = latents or [10**power for power in range(1, 8) if 10**power <= max(10, features // 10)]
    rows, last = [], None
    for count in sizes:
        last = allocator.allocate(count)
        tiling = int(last.count[~plain[last.feature]].sum())
        first = {"latents": count, "found": last.n_found, "first": int(last.count[0]), "loss": float(last.loss)}
        rows.append(first | {"share_on_manifolds": tiling / count, "spare": last.spare, "bound": float(last.bound)})
    assert last is not None
    settings = {"alpha": alpha, "beta": beta, "features": features, "discrete": discrete, "at_zero": at_zero}
    result = _allocation_file(settings, rows, Regime(alpha, beta), last)
    print("\n".join(_allocation_words(result)))
    if out:
        write_json(Path(out), result)
    if figures:
        from saelab.figures.scaling import allocation_figure, growth_figure, write_figure

        path, name = Path(out or "allocation.json"), f"alpha = {alpha:g}, beta = {beta:g}"
        write_figure(path, allocation_figure({name: result}))
        if len(rows) > 1:
            write_figure(path.with_stem(f"{path.stem}-growth"), growth_figure({name: result}))


def _allocation_file(
    settings: dict[str, Any], rows: list[dict[str, Any]], regime: Regime, last: Allocation
) -> dict[str, Any]:
    """The file of an allocation.

    {"format": 1, "kind": "allocation", "settings", "rows": [{"latents", "found", "first", "loss", "share_on_manifolds",
    "spare", "bound"}], "local_exponents": {"found", "loss"} between neighbouring rows, "theory": {"regime", "found",
    "loss", "n_i"}, "allocation": {"rank", "count"} of the last row}
    """
    sizes = [row["latents"] for row in rows]
    shown = np.unique(np.geomspace(1, last.n_found, 200).astype(int)) - 1
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


# ---- diagnose ----


def diagnose(
    runs: list[str], rows: int = 65_536, store: str | None = None, out: str | None = None, figures: bool = False
) -> None:
    """Diagnose whether an SAE spends its latents on tiling a few manifolds, with the probability.

    Args:
        runs: runs or saved SAEs of one ladder; the widest is diagnosed, the others are compared with it.
        rows: rows to look at.
        store: take rows from this store; by default from what the widest run was trained on (its held-out part).
        out: a JSON file for the result.
        figures: also draw a panel and its parts, as HTML and SVG, beside it.
    """
    _check_out(out)
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}")
    opened = {run.title: run for run in open_runs(runs) if run.is_trained}
    if not opened:
        raise ValueError(f"none of {', '.join(runs)} has a trained SAE yet")
    saes = {name: run.load() for name, run in opened.items()}
    widest = max(saes, key=lambda name: saes[name].n_latents)
    others = {name: sae for name, sae in saes.items() if sae.n_latents < saes[widest].n_latents}
    for name, sae in others.items():
        if sae.d_in != saes[widest].d_in:
            raise ValueError(f"{name} reads rows {sae.d_in} wide, {widest} {saes[widest].d_in}: not of one ladder")
    found = {"sae": widest} | diagnosed(
        saes[widest], _rows_for(opened[widest], saes[widest], rows, store), _narrower(others)
    )
    print(f"{widest}: {found['verdict']}")
    for line in found["why"]:
        print(f"  {line}")
    for name, spread in found["nearest"].items():
        words = f"mean {spread['mean']:.3f}, 99 % below {spread['p99']:.3f}, crowded {spread['crowded']:.1%}"
        print(f"  nearest cosine, {name}: {words}")
    if out:
        write_json(Path(out), found)
    if figures:
        from saelab.figures.scaling import write_panel

        write_panel(Path(out or "diagnosis.json"), found)


def _check_out(out: str | None) -> None:
    if out and Path(out).is_dir():
        raise ValueError(f"out must be a JSON file, {out} is a folder")


def _narrower(saes: dict[str, Autoencoder]) -> dict[str, Autoencoder]:
    """One SAE of each width, for comparison."""
    return {f"n={sae.n_latents}": sae for _, sae in sorted(saes.items(), key=lambda item: item[1].n_latents)}


def _rows_for(run: SavedRun, sae: Autoencoder, rows: int, store: str | None) -> Iterator[Tensor]:
    """Chunks of rows of a store, of the run's world, or of the held-out part of its text."""
    if store:
        source = StoreSource(store)
        if source.d_in != sae.d_in:
            raise ValueError(f"{store} holds rows {source.d_in} wide, {run.folder} reads {sae.d_in}")
        return iter([source.sample(rows)])
    if "world" in run.origin:
        world = World.build(run.origin["world"])
        count = -(-rows // world.window_rows)
        return (world.window(World.HELD_OUT + number)[: rows - number * world.window_rows] for number in range(count))
    return (chunk.x for chunk in TextEvaluation(run.needed_subject(), rows).chunks(need_logits=False))
