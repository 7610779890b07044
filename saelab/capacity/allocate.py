"""Where capacity goes: which features get how many of N latents, if training shares them out in the best way.

    minimise  L(N) = sum over features i of p_i L_i(n_i)      subject to  sum of n_i = N

The model of Michaud et al. 2025 (arXiv 2509.02565) after Brill 2024, as we read it: each latent serves one feature, and
losses of features add. For convex L_i the best choice takes the N largest gains p_i (L_i(n) - L_i(n + 1)), which is
what a heap would do one latent at a time; here a threshold on gains is bisected and only the gains near it are sorted,
so that ten million features and a million latents take about a second. Equal gains go to the first feature.

Curves that are not convex are served in steps of several latents (see `curves`). A last step that does not fit leaves
`spare` latents; `bound` is the loss that no allocation can beat.
"""

# Shape letters: F features, D features with a latent, G steps of a curve, C candidates near the threshold.

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saelab.capacity.curves import Array, CurveSteps, LossCurve

CANDIDATES = 200_000
"""Gains that are sorted at once; far fewer than N, far more than a bisection step needs."""
SMALLEST = 1e-290
"""Gains below this are none."""


@dataclass(frozen=True)
class Allocation:
    """Latents of each feature."""

    latents: int
    """N."""
    feature: Array
    """[D] int64, the features with a latent, most common first."""
    count: Array
    """[D] int64, their latents."""
    loss: float
    bound: float
    """Loss of the convex hull: no allocation is below it. Equal to `loss` for convex curves."""
    spare: int
    """Latents that no step could use."""

    @property
    def n_found(self) -> int:
        """D, the number of features with a latent."""
        return len(self.feature)

    def per_feature(self, n_features: int) -> Array:
        """Latents of every feature [F] int64."""
        counts = np.zeros(n_features, dtype=np.int64)
        counts[self.feature] = self.count
        return counts


def frequencies(n_features: int, alpha: float, total: float = 1.0) -> Array:
    """p_i proportional to i^-(1 + alpha), with this sum; [F] float64, in descending order."""
    if n_features < 1 or not -1 <= alpha < float("inf"):
        raise ValueError(f"need at least 1 feature and alpha of at least -1, got {n_features} and {alpha}")
    weights = np.arange(1, n_features + 1, dtype=float) ** -(1 + alpha)
    return weights * (total / weights.sum())


class Allocator:
    """Allocates latents to features.

    Args:
        p: how often each feature is active [F], positive.
        curves: the kinds of features.
        kinds: the kind of each feature [F], a place in `curves`; by default all are of the first.

    Raises:
        ValueError: for frequencies that are not positive, or kinds that there are none of.
    """

    def __init__(self, p: Array, curves: Sequence[LossCurve] | LossCurve, kinds: Array | None = None):
        self.p, self.curves = np.asarray(p, float), [curves] if isinstance(curves, LossCurve) else list(curves)
        self.kinds = np.zeros(len(self.p), dtype=np.int8) if kinds is None else np.asarray(kinds)
        if not len(self.p) or not (self.p > 0).all():
            raise ValueError("every feature needs a frequency above 0")
        if self.kinds.shape != self.p.shape or self.kinds.min() < 0 or self.kinds.max() >= len(self.curves):
            raise ValueError(f"kinds must name one of {len(self.curves)} curves for each of {len(self.p)} features")
        order = np.arange(len(self.p))
        if (np.diff(self.p) > 0).any():
            order = np.argsort(-self.p, kind="stable")
        self._members = [order[self.kinds[order] == kind] for kind in range(len(self.curves))]
        self._frequencies = [self.p[members] for members in self._members]
        zero = np.array([0])
        starts = [float(curve.loss(zero)[0]) for curve in self.curves]
        self._nothing = sum(own.sum() * start for own, start in zip(self._frequencies, starts, strict=True))

    def allocate(self, latents: int) -> Allocation:
        """Share out this many latents.

        Raises:
            ValueError: for fewer than 1.
        """
        if latents < 1:
            raise ValueError(f"there must be at least 1 latent to allocate, got {latents}")
        steps = [curve.steps(latents) for curve in self.curves]
        totals = [np.concatenate([[0], step.width.cumsum()]) for step in steps]
        high, low = self._bracket(steps, totals, latents)
        taken = [self._taken(kind, steps[kind], high) for kind in range(len(steps))]
        used = sum(int(total[own].sum()) for total, own in zip(totals, taken, strict=True))
        left, slack = self._fill(steps, taken, low, latents - used, None)
        while left and low > SMALLEST:  # a step did not fit: smaller ones may
            low *= 1e-3
            left, slack = self._fill(steps, taken, low, left, slack)
        return self._result(steps, totals, taken, latents, left, slack or 0.0)

    def _taken(self, kind: int, steps: CurveSteps, threshold: float) -> Array:
        """How many steps of each feature of a kind gain at least `threshold`; of the first features that have any."""
        own = self._frequencies[kind]
        if not len(steps.gain) or not steps.gain[0] > 0:
            return np.zeros(0, dtype=np.int64)
        have = len(own) - int(np.searchsorted(own[::-1], threshold / steps.gain[0], side="left"))
        return np.searchsorted(-steps.gain, -threshold / own[:have], side="right")

    def _used(self, steps: list[CurveSteps], totals: list[Array], threshold: float) -> int:
        return sum(int(totals[kind][self._taken(kind, steps[kind], threshold)].sum()) for kind in range(len(steps)))

    def _bracket(self, steps: list[CurveSteps], totals: list[Array], latents: int) -> tuple[float, float]:
        """Thresholds between which the last gains lie: `high` uses at most N latents, `low` at least N if it can."""
        pairs = [(own[0] * step.gain[0]) for own, step in zip(self._frequencies, steps, strict=True) if len(own)]
        high = 2 * max(pairs)
        low, least, most = high / 4, 0, 0
        while (most := self._used(steps, totals, low)) < latents and low > SMALLEST:
            high, least, low = low, most, low * min(0.5, (max(most, 1) / latents) ** 2)
        while most - least > CANDIDATES and high / low > 1 + 1e-12:
            middle = (high * low) ** 0.5
            used = self._used(steps, totals, middle)
            if used <= latents:
                high, least = middle, used
            else:
                low, most = middle, used
        return high, low * (1 - 1e-12)

    def _fill(
        self, steps: list[CurveSteps], taken: list[Array], low: float, left: int, slack: float | None
    ) -> tuple[int, float | None]:
        """Take the best steps that gain at least `low` while they fit.

        Args:
            steps: of the kinds.
            taken: steps taken of each feature so far; changed.
            low: the least gain.
            left: latents to give.
            slack: how far the loss may be from the bound; None while every step has fitted.

        Returns:
            The latents and the slack that are left.
        """
        events = self._events(steps, taken, low)
        for kind, place, number, gain in zip(*(part.tolist() for part in events), strict=True):
            if not left:
                break
            width = int(steps[kind].width[number])
            if width > left:
                slack = left * gain if slack is None else slack  # what a part of this step would gain
            elif taken[kind][place] == number:
                taken[kind][place] += 1
                left -= width
                slack = None if slack is None else max(0.0, slack - width * gain)
        return left, slack

    def _events(self, steps: list[CurveSteps], taken: list[Array], low: float) -> tuple[Array, Array, Array, Array]:
        """Steps not yet taken that gain at least `low`, best first: kind, place in the kind, number, gain a latent."""
        parts = []
        for kind, step in enumerate(steps):
            further = self._taken(kind, step, low)
            before = np.zeros(max(len(further), len(taken[kind])), dtype=np.int64)
            before[: len(taken[kind])] = taken[kind]
            taken[kind] = before
            more = np.maximum(further - before[: len(further)], 0)
            place = np.repeat(np.arange(len(more)), more)
            number = before[place] + np.arange(len(place)) - np.repeat(more.cumsum() - more, more)
            gain = self._frequencies[kind][place] * step.gain[number]
            parts.append((np.full(len(place), kind), place, number, gain, self._members[kind][place]))
        kinds, places, numbers, gains, features = (np.concatenate(part) for part in zip(*parts, strict=True))
        order = np.lexsort((numbers, features, -gains))
        return kinds[order], places[order], numbers[order], gains[order]

    def _result(
        self, steps: list[CurveSteps], totals: list[Array], taken: list[Array], latents: int, spare: int, slack: float
    ) -> Allocation:
        features, counts, saved = [], [], 0.0
        for kind, (total, own) in enumerate(zip(totals, taken, strict=True)):
            gained = np.concatenate([[0.0], (steps[kind].gain * steps[kind].width).cumsum()])
            saved += float((self._frequencies[kind][: len(own)] * gained[own]).sum())
            has = own > 0
            features.append(self._members[kind][: len(own)][has])
            counts.append(total[own[has]])
        feature, count = np.concatenate(features), np.concatenate(counts)
        order = np.argsort(-self.p[feature], kind="stable")
        loss = self._nothing - saved
        return Allocation(latents, feature[order], count[order], loss, loss - slack, spare)


def local_exponents(n: Sequence[float] | Array, values: Sequence[float] | Array) -> Array:
    """d ln value / d ln n between neighbouring n; one fewer than given."""
    return np.diff(np.log(np.asarray(values, float))) / np.diff(np.log(np.asarray(n, float)))
