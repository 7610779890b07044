"""Loss curves of single manifolds: how the loss on one feature falls with the latents that serve it.

For each number of latents the best of several seeds; then L_inf + c n^-beta is fitted to n >= d + 1 (d the dimension of
the feature's space), with and without L_inf, and beta is compared with 2 / m and the losses with the lasso's floors
(`saelab.capacity.theory`). Where the floor is known (hollow manifolds under an L1 penalty) beta is also fitted with it
held fixed, which takes one number less from the data.

A curve's file:

    {"format": 1, "kind": "loss-curve", "shape", "dims": d, "intrinsic": m, "radial", "recipe": {...}, "seeds",
     "nothing": loss without any latent,
     "rows": [{"n", "total", "error", "penalty", "l0", "alive", "nearest", "totals": [one a seed]}],
     "expected_beta": 2 / m, "floor": number or null, "beta": estimate, "beta_fixed_floor": estimate or null,
     "beta_no_floor": estimate, "limit": estimate of L_inf}

where an estimate is {"value", "low", "high", "why"}, null numbers where not identified.
"""

# Shape letters: B rows, D width.

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelab.capacity.curves import MeasuredCurve
from saelab.capacity.small import Recipe, Small, measure
from saelab.capacity.theory import lasso_floor, sphere_beta
from saelab.core.progress import progress
from saelab.data.source import generator_for
from saelab.data.synthetic.shapes import Shape, shape_named
from saelab.scaling.fit import Estimate, Points, fit
from saelab.scaling.laws.width import WidthLaw

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
HELD_OUT_ROWS = 16_384
PADDED = (8, 10**9)
"""Sizes up to each of these are trained together: padding is wasted work."""


def points_of(shape: Shape, radial: float, n: int, generator: torch.Generator) -> Tensor:
    """n points of a shape, with radii uniform between 1 - radial and 1 + radial; [n, D]."""
    points = shape.draw(n, generator)
    return points * (1 + radial * (1 - 2 * torch.rand(n, 1, generator=generator))) if radial else points


def loss_curve(
    shape: str, radial: float, recipe: Recipe, sizes: Sequence[int] = SIZES, seeds: int = 5, show: bool = True
) -> dict[str, Any]:
    """Train small SAEs on one manifold and fit how their loss falls.

    Args:
        shape: such as circle, sphere or sphere3 (see `saelab.data.synthetic.shapes`).
        radial: radii are uniform between 1 - radial and 1 + radial.
        recipe: how they are trained.
        sizes: numbers of latents.
        seeds: SAEs of each, of which the best counts.
        show: whether to show progress.

    Raises:
        ValueError: for an unknown shape, or a radial outside 0 to 1.
    """
    kind = shape_named(shape)
    if not 0 <= radial <= 1:
        raise ValueError(f"radial must be from 0 to 1, got {radial}")
    x = points_of(kind, radial, HELD_OUT_ROWS, generator_for(2, 19))
    rows, below = [], 0
    with progress(f"{shape} {recipe.activation} r{radial:g}", len(sizes), "sizes", show=show) as bar:
        for most in PADDED:
            own = [n for n in sorted(set(sizes)) if below < n <= most]
            below = most
            if own:
                rows += _best(kind, radial, recipe, own, seeds, x)
                bar.advance(len(own))
    found = {
        "format": 1, "kind": "loss-curve", "shape": shape, "dims": kind.dims, "intrinsic": kind.intrinsic,
        "radial": radial, "recipe": asdict(recipe), "seeds": seeds, "nothing": x.square().sum(1).mean().item(),
        "rows": rows, "floor": None, "expected_beta": sphere_beta(kind.intrinsic) if kind.intrinsic else None,
    }  # fmt: skip
    if recipe.activation == "relu":
        found["floor"] = lasso_floor(recipe.weight, x.norm(dim=1).numpy())
    return found | exponents(found)


def _best(shape: Shape, radial: float, recipe: Recipe, sizes: list[int], seeds: int, x: Tensor) -> list[dict[str, Any]]:
    """The best of the seeds at each size."""
    small = Small(shape.dims, [n for n in sizes for _ in range(seeds)], list(range(seeds)) * len(sizes), recipe)
    small.fit(lambda n, generator: points_of(shape, radial, n, generator))
    found = {key: value.view(len(sizes), seeds) for key, value in measure(small, x).items()}
    lines = []
    for number, n in enumerate(sizes):
        best = int(found["total"][number].argmin())
        line: dict[str, Any] = {key: value[number, best].item() for key, value in found.items()}
        line["nearest"] = line["nearest"] if np.isfinite(line["nearest"]) else None
        lines.append({"n": n} | line | {"totals": found["total"][number].tolist()})
    return lines


def exponents(curve: dict[str, Any]) -> dict[str, Any]:
    """The fits of a curve; see the file's format above."""
    rows = [row for row in curve["rows"] if row["n"] > curve["dims"]]
    points = Points(
        np.array([[row["n"]] for row in rows], float).reshape(-1, 1),
        np.array([row["total"] for row in rows], float),
        [f"n={row['n']}" for row in rows],
    )
    found: dict[str, Any] = {"beta": None, "limit": None, "beta_no_floor": None, "beta_fixed_floor": None}
    try:
        free = fit(WidthLaw(), points).estimates
        found["beta"], found["limit"] = _negated(free["b"]), vars(free["e"])
    except ValueError as error:
        found["beta"] = found["limit"] = vars(Estimate(None, None, None, str(error)))
    found["beta_no_floor"] = _exponent(points)
    if curve["floor"] is not None:
        excess = points.y - curve["floor"]
        found["beta_fixed_floor"] = _exponent(Points(points.x, excess, points.names))
    return found


def _exponent(points: Points) -> dict[str, Any]:
    try:
        return _negated(fit(WidthLaw(irreducible=False), points, rival=False).estimates["b"])
    except ValueError as error:
        return vars(Estimate(None, None, None, str(error)))


def _negated(estimate: Estimate) -> dict[str, Any]:
    """beta = -b."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return vars(estimate)
    return vars(Estimate(-estimate.value, -estimate.high, -estimate.low))


def as_curve(curve: dict[str, Any]) -> MeasuredCurve:
    """A measured curve for the allocator: the table, and its law beyond where beta and L_inf were identified."""
    sizes, losses = [0] + [row["n"] for row in curve["rows"]], [curve["nothing"]] + [r["total"] for r in curve["rows"]]
    floor, beta = curve["floor"], curve["beta_fixed_floor"]
    if floor is None or beta is None or beta["value"] is None:
        beta = curve["beta"]
        floor = curve["limit"]["value"] if curve["limit"] else None
    lowest = min(losses)
    if beta is None or beta["value"] is None or floor is None or not floor < lowest or beta["value"] <= 0:
        return MeasuredCurve(sizes, losses)
    return MeasuredCurve(sizes, losses, beta["value"], floor)
