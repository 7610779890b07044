"""Fitting a law: robust least squares on the logarithm, with intervals, a test beyond the cells and a rival.

    minimise   sum over cells of  w_c (ln L_theta(x_c) - ln y_c)^2        w: Huber weights, found in turn with theta

by Levenberg-Marquardt from several starting points. Intervals are 95 %, from refits to the law with resampled residuals
(for a planned grid of cells that is kinder than resampling cells), each residual divided by sqrt(1 - leverage), and
widened for the degrees of freedom by Student's t. Of a parameter they reach equally far to both sides: as far as 95 %
of the refits, or as 95 % of |theta_b - theta| / se_b times se (the studentised bootstrap, se from the law's
derivatives), whichever is farther. On 100 planted joint laws of 25 cells with 1 % noise they held the parameters in
95 % of cases, the law itself in 95 %, and one more cell in 95 %.
The rival is the same law with the irreducible term left out, or put in; they are compared by AICc. Cells that are held
out are predicted by a fit that has not seen them.

A parameter that the cells do not determine is said to be so instead of given a number: an irreducible part that may as
well be zero, directions of theta along which nothing changes, an interval as wide as WIDEST allows at most.

What is left out: errors that differ from cell to cell, and correlations between cells of one seed.
"""

# Shape letters: C cells, V variables, P parameters, R refits, Q points asked for.

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from saelab.scaling.law import Array, Law

DRAWS = 200
HUBER = 1.345
WIDEST = 2.0
"""A 95 % interval wider than this, of an exponent or of the logarithm of an amplitude, is no number."""
LEAST_FREE = 0.05
"""Least share of a residual that is taken to be left where a cell alone decides a parameter."""
EXACT = 1e-9
"""Standard errors below this are rounding."""
PRESENT = 0.01
"""Below this share of the loss in every cell, an irreducible part counts as possibly zero."""
LEVEL = (2.5, 97.5)


@dataclass(frozen=True)
class Estimate:
    """A parameter, or why there is none: then value, low and high are None."""

    value: float | None
    low: float | None
    high: float | None
    why: str = ""

    @property
    def identified(self) -> bool:
        return self.value is not None


@dataclass(frozen=True)
class Points:
    """Cells as numbers: what was varied [C, V], what came out [C], and the cells' names."""

    x: Array
    y: Array
    names: list[str]

    def where(self, kept: Array) -> "Points":
        """Those of a mask [C]."""
        return Points(self.x[kept], self.y[kept], [name for name, keep in zip(self.names, kept, strict=True) if keep])


@dataclass
class Fit:
    """A fitted law; `saelab.scaling.files` writes it to JSON."""

    law: Law
    points: Points
    theta: Array
    """[P]."""
    draws: Array
    """[R, P], theta of the refits."""
    sigma: float
    """Standard deviation of ln y around the law."""
    weights: Array
    """[C] Huber's, 1 for a cell that fits."""
    aicc: float | None = None
    estimates: dict[str, Estimate] = field(default_factory=dict)
    rival: "Fit | None" = None
    held_out: dict[str, Any] | None = None
    reach: Array | None = None
    """[P], how far the studentised intervals reach to both sides; None for a fit that was read from its file."""

    @property
    def log_residuals(self) -> Array:
        """ln y - ln L of each cell [C]."""
        return np.log(self.points.y) - np.log(self.law.value(self.theta, self.points.x))

    @property
    def r2(self) -> float:
        """Share of the variance of ln y that the law explains."""
        spread = np.log(self.points.y).var()
        return float(1 - self.log_residuals.var() / spread) if spread else float("nan")

    @property
    def rival_holds(self) -> bool:
        """Whether the rival fits about as well: then predictions allow for both."""
        if self.rival is None or self.aicc is None or self.rival.aicc is None:
            return False
        return self.rival.aicc - self.aicc < 6

    def range(self) -> dict[str, tuple[float, float]]:
        """Smallest and largest value of each variable among the cells."""
        return {
            name: (float(column.min()), float(column.max()))
            for name, column in zip(self.law.variables, self.points.x.T, strict=True)
        }

    def beyond(self, x: Sequence[float]) -> dict[str, float]:
        """By which factor a point [V] lies outside the cells, for the variables in which it does."""
        found = {}
        for (name, (low, high)), value in zip(self.range().items(), x, strict=True):
            factor = max(value / high, low / value)
            if factor > 1 + 1e-9:
                found[name] = factor
        return found

    def predict(self, x: Array, cell: bool = False) -> tuple[Array, Array, Array]:
        """The law at points x [Q, V], and its 95 % interval; [Q] each.

        Args:
            x: the points.
            cell: whether the interval is for one more trained SAE, its own scatter included, and not for the law.
        """
        x = np.asarray(x, float)
        value, (low, high) = self.law.value(self.theta, x), self._interval(x, cell)
        if self.rival_holds and self.rival is not None:
            other_low, other_high = self.rival._interval(x, cell)
            low, high = np.minimum(low, other_low), np.maximum(high, other_high)
        return value, np.minimum(low, value), np.maximum(high, value)

    def _interval(self, x: Array, cell: bool) -> tuple[Array, Array]:
        features = self.law.features(x)
        logs = np.stack([self.law.log_value(theta, features) for theta in self.draws])
        if cell:
            logs = np.tile(logs, (8, 1))  # scatter is drawn more often than laws are
            free = max(1, len(self.points.y) - len(self.theta))
            logs = logs + self.sigma * np.random.default_rng(0).standard_t(free, logs.shape)
        low, high = np.percentile(np.exp(logs), LEVEL, axis=0)
        return low, high


def fit(law: Law, points: Points, held_out: Array | None = None, draws: int = DRAWS, rival: bool = True) -> Fit:
    """Fit a law to cells.

    Args:
        law: which.
        points: the cells; x in the order of the law's variables.
        held_out: mask [C] of cells that are only predicted.
        draws: refits for the intervals.
        rival: whether to fit the law with and without its irreducible term and compare.

    Raises:
        ValueError: for too few cells or levels, or values that are not positive numbers.
    """
    check(law, points)
    best = _fitted(law, points, draws)
    if rival and law.floor:
        other = type(law)(irreducible=not law.irreducible)
        if len(points.y) > len(other.parameters) + 1:
            best.rival = _fitted(other, points, draws // 2)
    if held_out is not None and held_out.any():
        best.held_out = _tested(law, points, held_out, draws // 2)
    return best


def check(law: Law, points: Points) -> None:
    """ValueError unless there are cells enough for a law."""
    name, least = type(law).__name__, len(law.parameters) + 2
    if not (np.isfinite(points.y).all() and (points.y > 0).all() and (points.x > 0).all()):
        raise ValueError(f"{name} needs positive numbers; look at {_not_positive(points)}")
    if len(points.y) < least:
        raise ValueError(f"{name} has {len(law.parameters)} parameters and needs {least} cells, got {len(points.y)}")
    for variable, column in zip(law.variables, points.x.T, strict=True):
        levels, wanted = len(np.unique(column)), law.grid.levels.get(variable, 1)
        wanted += bool(law.floor) and not law.irreducible and -1  # one number less to find
        if levels < wanted:
            raise ValueError(f"{name} needs {wanted} different values of {variable}, the cells have {levels}")


def _not_positive(points: Points) -> str:
    bad = ~(np.isfinite(points.y) & (points.y > 0) & (points.x > 0).all(1))
    return ", ".join(name for name, wrong in zip(points.names, bad, strict=True) if wrong)


def _fitted(law: Law, points: Points, draws: int) -> Fit:
    features, target = law.features(points.x), np.log(points.y)
    theta, weights = _robust(law, features, target)
    log_value = law.log_value(theta, features)
    residuals, free = target - log_value, len(target) - len(theta)
    sigma = float(np.sqrt((weights * residuals**2).sum() / free))
    refits, reach = _refits(law, features, theta, weights, residuals, draws)
    found = Fit(law, points, theta, refits, sigma, weights, _aicc(residuals, weights, len(theta)), reach=reach)
    found.estimates = estimates(found)
    return found


def _robust(law: Law, features: Sequence[Array], target: Array) -> tuple[Array, Array]:
    """theta [P] and Huber's weights [C]."""
    starts, weights = law.starts(features, np.exp(target)), np.ones(len(target))
    theta = _least_squares(law, features, target, weights, starts)
    for _ in range(3):
        residuals = target - law.log_value(theta, features)
        free = max(1, len(target) - len(theta))
        scale = 1.4826 * np.median(np.abs(residuals)) * np.sqrt(len(target) / free)
        if scale < 1e-9:
            break
        weights = np.minimum(1.0, HUBER * scale / np.maximum(np.abs(residuals), 1e-300))
        theta = _least_squares(law, features, target, weights, [theta, *starts])
    return theta, weights


def _least_squares(
    law: Law, features: Sequence[Array], target: Array, weights: Array, starts: Sequence[Array], exact: float = 1e-13
) -> Array:
    """The best theta [P] that any start leads to."""
    from scipy.optimize import leastsq  # takes long to import, and only this needs it

    root = np.sqrt(weights)

    def residuals(theta: Array) -> Array:
        return root * (law.log_value(theta, features) - target)

    def jacobian(theta: Array) -> Array:
        return root[:, None] * law.jacobian(theta, features)

    if len(features) == 1:  # linear in theta
        return np.linalg.lstsq(root[:, None] * features[0], root * target, rcond=None)[0]
    best, lowest = np.asarray(starts[0], float), np.inf
    for start in starts:
        theta = leastsq(residuals, start, Dfun=jacobian, full_output=True, ftol=exact, xtol=exact, maxfev=400)[0]
        cost = float((residuals(theta) ** 2).sum())
        if cost < lowest - 1e-18:
            best, lowest = theta, cost
    return best


def _refits(
    law: Law, features: Sequence[Array], theta: Array, weights: Array, residuals: Array, draws: int
) -> tuple[Array, Array]:
    """theta [R, P] of fits to the law with resampled residuals, and how far studentised intervals reach [P]."""
    from scipy.stats import t

    log_value, count, free = law.log_value(theta, features), len(residuals), len(residuals) - len(theta)
    slopes = law.jacobian(theta, features)
    leverage = np.einsum("ij,ji->i", slopes, np.linalg.pinv(slopes))
    even = residuals / np.sqrt(np.clip(1 - leverage, LEAST_FREE, 1.0))
    widened = (even - even.mean()) * t.ppf(0.975, free) / t.ppf(0.975, 1e9)
    generator = np.random.default_rng(0)
    targets = [log_value + generator.choice(widened, count) for _ in range(draws)]
    refits = np.array([_least_squares(law, features, target, weights, [theta], 1e-9) for target in targets])
    errors = np.array([_errors(law, features, own, target) for own, target in zip(refits, targets, strict=True)])
    far = np.percentile(np.abs(refits - theta) / np.maximum(errors, EXACT), LEVEL[1] - LEVEL[0], axis=0)
    return refits, far * _errors(law, features, theta, log_value + residuals)


def _errors(law: Law, features: Sequence[Array], theta: Array, target: Array) -> Array:
    """Standard errors [P] of a fit, from the law's derivatives."""
    slopes, residuals = law.jacobian(theta, features), target - law.log_value(theta, features)
    covariance = np.linalg.pinv(slopes.T @ slopes)
    return np.sqrt(np.maximum(covariance.diagonal(), 0) * (residuals**2).sum() / (len(target) - len(theta)))


def _aicc(residuals: Array, weights: Array, count: int) -> float | None:
    """Akaike's criterion for small samples; None where there are too few cells for it."""
    cells, numbers = len(residuals), count + 1
    if cells - numbers - 1 <= 0:
        return None
    rss = max(float((weights * residuals**2).sum()), 1e-30)
    return cells * float(np.log(rss / cells)) + 2 * numbers + 2 * numbers * (numbers + 1) / (cells - numbers - 1)


def estimates(found: Fit) -> dict[str, Estimate]:
    """Each parameter with its interval, or why it is not identified."""
    law, result = found.law, {}
    reasons = _undetermined(found)
    for number, parameter in enumerate(law.parameters):
        value, (low, high) = found.theta[number], np.percentile(found.draws[:, number], LEVEL)
        reach = max(high - value, value - low)  # refits of skewed laws lean to one side: the wider one on both
        reach = max(reach, float(found.reach[number])) if found.reach is not None else reach
        low, high = value - reach, value + reach
        why = reasons.get(number, "")
        if not why and high - low > WIDEST:
            why = f"the cells leave {parameter.name} anywhere between {low:.3g} and {high:.3g}"
        if parameter.shown and not why:
            value, low, high = np.exp([value, low, high])
        found_it = Estimate(None, None, None, why) if why else Estimate(float(value), float(low), float(high))
        result[parameter.shown or parameter.name] = found_it
    return result


def _undetermined(found: Fit) -> dict[int, str]:
    """Numbers of the parameters that the cells cannot determine, and why."""
    law, features = found.law, found.law.features(found.points.x)
    reasons: dict[int, str] = {}
    columns = law.jacobian(found.theta, features)
    norms = np.linalg.norm(columns, axis=0)
    _, sizes, vectors = np.linalg.svd(columns / np.where(norms > 0, norms, 1), full_matrices=False)
    for vector in vectors[sizes < 1e-6 * sizes[0]]:
        for number in np.nonzero(np.abs(vector) > 0.1)[0].tolist():
            reasons[number] = "these cells cannot tell it from other parameters: more values of a variable would"
    if len(law.terms) == 2:
        split = len(law.reducible)
        floors = np.exp(np.stack([features[1] @ theta[split:] for theta in found.draws]))
        shares = floors / np.exp(np.stack([law.log_value(theta, features) for theta in found.draws]))
        low, _ = np.percentile(shares, LEVEL, axis=0)
        if low.max() < PRESENT:
            most = float(np.percentile(floors.max(1), LEVEL[1]))
            for number in range(split, len(law.parameters)):
                reasons[number] = (
                    f"no irreducible part, and any up to {most:.3g}, fit about as well: wider SAEs would tell"
                )
    return reasons


def _tested(law: Law, points: Points, held_out: Array, draws: int) -> dict[str, Any]:
    """How a fit to the other cells predicts those held out."""
    rest = points.where(~held_out)
    try:
        seen = fit(law, rest, draws=draws)
    except ValueError as error:
        raise ValueError(f"too few cells are left when {int(held_out.sum())} are held out: {error}") from None
    cells = points.where(held_out)
    value, low, high = seen.predict(cells.x, cell=True)
    errors = np.log(cells.y) - np.log(value)
    return {
        "cells": [
            {"name": name, "y": float(y), "predicted": float(v), "low": float(a), "high": float(b)}
            for name, y, v, a, b in zip(cells.names, cells.y, value, low, high, strict=True)
        ],
        "mean_abs_log_error": float(np.abs(errors).mean()),
        "mean_log_error": float(errors.mean()),
        "inside": int(((cells.y >= low) & (cells.y <= high)).sum()),
        "estimates": {name: vars(estimate) for name, estimate in seen.estimates.items()},
    }
