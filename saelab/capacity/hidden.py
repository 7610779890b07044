"""What a diagnosis would have seen, and what it may have missed: hypotheses about the world behind an SAE, weighed.

A hypothesis is a world of features p_i ~ i^-(1 + alpha), some of which are manifolds S^m with beta = 2 / m, and latents
shared out as theory says. For each we work out what the diagnosis would see of it, with blind spots:

    tiles     n of them, even over S^m, lie theta apart: n cap(theta / 2) = density of the best packing of m dimensions,
              a little less as they are not that even. They are joined where cos theta > CLOSE: not below some n
    firing    a pair of neighbours must fire together ENOUGH times in the rows that were looked at, and more often than
              by chance; tiles of which one at a time fires are never joined
    spectrum  tiles that are not joined stay among the latents whose frequencies are fitted, and bend the exponent

and weigh it by how near that comes to what was seen (approximate Bayesian computation). What the hypotheses that are
left say about growth, with their weights, is the verdict's probability. So "no cluster was seen" counts for as much as
clusters would have been seen, and no more; hypotheses are what we hold possible beforehand, and `prior` says what. The
probabilities were checked on planted worlds (benchmarks/diagnosis.py, docs/scaling.md). All of it is our choice.
"""

# Shape letters: K manifolds, B bins of ranks, H hypotheses.

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from saelab.capacity.curves import Array

PACKING = (1.0, 0.9069, 0.7405, 0.6169, 0.4653, 0.3729, 0.2953, 0.2537)
"""Densities of the best packings known in 1 to 8 dimensions (lattices)."""
UNEVEN, CLOSER = 0.1, (0.91, 0.02)
"""Spread of the distances between neighbouring tiles, as a share, and by which factor tiles that were spread by
clustering are closer than the best packing's: the first less m times the second (measured for S^1 to S^7)."""
_JOINED = np.linspace(1e-6, 0.9999, 400)
GIANT = (np.append(-np.log1p(-_JOINED) / _JOINED, 1e3), np.append(_JOINED, 1.0))
"""Links of a point, and the share of points that are then in one cluster: s = 1 - exp(-links s), of random graphs."""
ENOUGH, LIFT = 5, 2.0
"""Times that two latents must fire together, and how many times more often than by chance."""
ALONE, GROUPS, BINS = 30, 120, 119
"""Manifolds of a hypothesis that are followed one by one, groups that later ones are in, bins of the other ranks."""
EDGES = np.concatenate([np.arange(1, ALONE), np.geomspace(ALONE, 1e9, GROUPS)])
"""Numbers of the manifolds with which groups begin."""
STEPS = np.linspace(0, 1, BINS + 1)
DRAWS, ENOUGH_DRAWS, MOST_DRAWS = 1000, 100, 5000
"""Hypotheses are drawn in these numbers until so many would be equally good, or there are so many."""
WIDTHS, FEW_DRAWS = (0.05, 0.075, 0.12), 25
"""Distances (of roots of shares) that count as one unit: the first that leaves this many equally good hypotheses."""
FARTHEST = -12.0
"""Logarithm of the best weight below which no hypothesis looks like what was seen."""
FLATTER = 0.85
"""The estimate of a dimension m is about m to this power: seen on planted worlds, where tiles are few."""
BENT = 0.25
"""Standard error of alpha for what bends spectra besides tiling: trained SAEs of worlds without any were off by 0.2."""
SUREST = 0.97
"""No probability above this is given: there are too few planted worlds to confirm more."""
LATER = (1.0, 2.0, 10.0)
"""Widths at which D is worked out, as multiples of what there is."""


@dataclass(frozen=True)
class Sight:
    """How the diagnosis looks.

    Args:
        rows: rows it looks at.
        close: cosine from which tiles may be joined.
        least: latents of a cluster.
        middle: ranks, as shares of the latents, between which the spectrum is fitted.
        firings: times a latent must have fired to be in that fit.
    """

    rows: int
    close: float
    least: int
    middle: tuple[float, float]
    firings: int


@dataclass(frozen=True)
class HypotheticalWorld:
    """One hypothesis."""

    alpha: float
    m: int
    """Dimension of the manifolds; 0 where there are none."""
    share: float
    """Of the features that are manifolds."""
    count: float
    """Most manifolds there are."""
    boost: float
    """How much more a manifold counts than a discrete feature of its rank: it is common, or of great norm."""
    common: float
    """How much of that boost is frequency; from 0 to 1."""
    start: float
    """Where the first manifold lies, as a share of the distance between two."""
    together: int
    """Tiles of a manifold that fire together."""

    @property
    def gamma(self) -> float:
        """n_i ~ (D / i)^gamma."""
        return (1 + self.alpha) / (1 + 2 / self.m) if self.m else 0.0

    @cached_property
    def manifolds(self) -> tuple[Array, Array]:
        """Ranks of the manifolds and how many have about that rank; [K] each. The first ones are alone."""
        if not self.m:
            return np.zeros(0), np.zeros(0)
        edges = np.append(EDGES[self.count >= EDGES], self.count + 1) if self.count < 1e9 else EDGES
        number = np.where(edges[:-1] < ALONE, edges[:-1], np.sqrt(edges[:-1] * edges[1:]))
        return np.maximum(1.0, (number - self.start) / self.share), np.diff(edges)

    @cached_property
    def _pull(self) -> Array:
        """(boost / rank)^gamma of the manifolds [K]."""
        return (self.boost / self.manifolds[0]) ** self.gamma

    def tiles(self, found: float) -> Array:
        """Tiles [K] of the manifolds when this many features have a latent; 1 where one suffices, 0 beyond them."""
        there = self.manifolds[0] <= max(found, 1)
        return np.maximum(1.0, self._pull * found**self.gamma) * there

    def latents(self, found: float) -> float:
        """N, when there are latents for this many features."""
        if not self.m:
            return found
        return found + float(np.maximum(self.tiles(found) - 1, 0) @ self.manifolds[1])

    def tiling(self, found: float) -> float:
        """Share of the latents that are one of several on a manifold, when there are latents for `found` features."""
        tiles = self.tiles(found)
        return float((tiles * self.manifolds[1])[tiles > 1].sum()) / self.latents(found)

    def features_found(self, latents: float) -> float:
        """D of N, to 1e-4, by the secant rule in ln N against ln D between bounds."""
        if not self.m:
            return latents
        low, high = (math.log(1e-3), math.log(self.latents(1e-3))), (math.log(latents), math.log(self.latents(latents)))
        target = math.log(latents)
        for turn in range(40):
            share = (target - low[1]) / max(high[1] - low[1], 1e-12) if turn % 3 < 2 else 0.5
            middle = low[0] + (high[0] - low[0]) * min(max(share, 0.01), 0.99)
            value = math.log(self.latents(math.exp(middle)))
            if abs(value - target) < 1e-4 or high[0] - low[0] < 1e-4:
                break
            low, high = ((middle, value), high) if value < target else (low, (middle, value))
        return math.exp(middle)


@dataclass(frozen=True)
class DiagnosisView:
    """What would be seen of a world, or what was."""

    seen: float
    """Share of the latents in clusters."""
    largest: float
    """Share of the latents in the largest."""
    near: float
    """Share of the latents with a neighbour above `close`, whether or not they fire together."""
    alpha: float | None
    """Exponent of the frequencies of the other latents; None where too few fired often enough."""
    error: float
    """Its standard error."""
    dimension: float | None
    """Of the clusters; None where there are none, or it is not known."""


def neighbour_angle(n: Array | float, m: int) -> Array:
    """Angle between neighbours of n tiles that lie evenly over S^m, at most a half circle."""
    from scipy.special import betaincinv

    cap = np.minimum(PACKING[min(m, len(PACKING)) - 1] / np.maximum(np.asarray(n, float), 2), 0.5)
    return 2 * np.arcsin(np.sqrt(betaincinv(m / 2, 0.5, 2 * cap)))


def near_share(n: Array, m: int, close: float) -> Array:
    """Share of a manifold's n tiles [K] with a neighbour above a cosine `close`."""
    from scipy.special import ndtr

    angle = neighbour_angle(n, m) * (CLOSER[0] - CLOSER[1] * m)
    return ndtr((math.acos(close) / angle - 1) / UNEVEN) * (n >= 2)


def joined_share(n: Array, m: int, density: Array, together: int, sight: Sight, near: Array | None = None) -> Array:
    """Share of a manifold's tiles [K] that the diagnosis joins to a cluster: its power.

    Args:
        n: tiles [K].
        m: dimension.
        density: how often the manifold is there [K].
        together: tiles that fire together.
        sight: how the diagnosis looks.
        near: `near_share` of them, where it is known already.
    """
    from scipy.special import pdtrc

    active = np.minimum(together, n)
    pairs = active * (active - 1) / 2  # that fire together in a row; about m n pairs are neighbours
    rate = density * np.minimum(pairs / (np.maximum(n, 1) * m), 1.0)
    often = pdtrc(ENOUGH - 1, sight.rows * rate)
    chance = (density * active / np.maximum(n, 1)) ** 2
    link = (near_share(n, m, sight.close) if near is None else near) * often * (rate >= LIFT * chance)
    # A ring breaks where a link is missing; in more dimensions a tile has 2 m neighbours or more, and few suffice.
    joined = link**3 if m == 1 else np.interp(2 * m * link, *GIANT)
    return joined * (n >= sight.least)


def view(world: HypotheticalWorld, latents: int, l0: float, sight: Sight) -> DiagnosisView:
    """What the diagnosis would see of a world, in an SAE of so many live latents, l0 of them active."""
    found = world.features_found(latents)
    (ranks, several), tiles = world.manifolds, world.tiles(found)
    ranks, several, tiles = (part[tiles > 1] for part in (ranks, several, tiles))
    edges = np.exp(STEPS * math.log(max(found, 2)))
    held = np.searchsorted(edges[1:], ranks).clip(max=BINS - 1)
    bins = np.maximum(np.diff(edges) - np.bincount(held, several, BINS), 0.0)
    plain = np.sqrt(edges[1:] * edges[:-1]) ** -(1 + world.alpha)
    own = ranks ** -(1 + world.alpha) * max(world.boost, 1.0) ** world.common
    active = np.minimum(world.together, tiles)
    # The scale of frequencies, so that as many latents are active as there are.
    scale = 1.0
    for _ in range(6):
        now = np.minimum(scale * plain, 0.9) @ bins + np.minimum(scale * own, 0.9) @ (several * active)
        scale, last = scale * l0 / float(now), scale
    plain, own = np.minimum(last * plain, 0.9), np.minimum(last * own, 0.9)
    close = near_share(tiles, world.m, sight.close) if len(tiles) else tiles
    joined = joined_share(tiles, world.m, own, world.together, sight, close) if len(tiles) else tiles
    clusters = tiles * joined * several
    density = np.concatenate([plain, own * active / tiles])
    weight = np.concatenate([bins, tiles * (1 - joined) * several])
    near = float((tiles * several) @ close)
    return DiagnosisView(
        seen=min(1.0, float(clusters.sum()) / latents),
        largest=min(1.0, float((tiles * joined).max(initial=0.0)) / latents),
        near=min(1.0, near / latents),
        alpha=_exponent(density, weight, sight),
        error=0.0,
        dimension=float(world.m) if clusters.sum() > 0 else None,
    )


def _exponent(density: Array, weight: Array, sight: Sight) -> float | None:
    """alpha of a spectrum: latents [B] of equal density, so many of each."""
    order = np.argsort(-density)
    rank, ordered = weight[order].cumsum(), density[order]
    first, last = sight.middle[0] * rank[-1], sight.middle[1] * rank[-1]
    enough = rank[ordered * sight.rows >= sight.firings]
    last = min(last, enough[-1] if len(enough) else 0.0)
    if last < 2 * max(first, 1):
        return None
    at = np.linspace(max(first, 1), last, 40)  # ranks are fitted one by one, so evenly
    x, y = np.log(at), np.log(np.interp(at, rank, ordered))
    x -= x.mean()
    return -float(x @ y / (x @ x)) - 1


def prior(generator: np.random.Generator) -> HypotheticalWorld:
    """A world as likely as we hold it beforehand: a third without manifolds, else few or many of 1 to 8 dimensions."""
    alpha = generator.uniform(-0.8, 1.8)
    if generator.random() < 1 / 3:
        return HypotheticalWorld(alpha, 0, 0.0, 0.0, 1.0, 0.0, 0.0, 1)
    few = generator.random() < 0.5
    return HypotheticalWorld(
        alpha=alpha,
        m=int(generator.integers(1, 9)),
        share=float(np.exp(generator.uniform(math.log(0.01), 0.0))),
        count=float(generator.choice([1, 2, 5, 20])) if few else math.inf,
        boost=float(np.exp(generator.uniform(math.log(0.3), math.log(300.0 if few else 3.0)))),
        common=generator.random(),
        start=generator.random(),
        together=int(generator.choice([1, 2, 3, 4, 8], p=[0.15, 0.3, 0.2, 0.2, 0.15])),
    )


@dataclass(frozen=True)
class Weighed:
    """Hypotheses and how well each agrees with what was seen."""

    worlds: list[HypotheticalWorld]
    views: list[DiagnosisView]
    weight: Array
    """[H], sums to 1; all zero where none agrees."""
    latents: int

    @property
    def effective(self) -> float:
        """How many equally good hypotheses that amounts to."""
        total = float((self.weight**2).sum())
        return 1 / total if total else 0.0

    def share(self, those: Array) -> float:
        """The weight of some [H], drawn towards a third (there are three answers) as hypotheses are not many."""
        return min(SUREST, (self.effective * float(self.weight[those].sum()) + 1) / (self.effective + 3))

    def later(self) -> tuple[Array, Array]:
        """D and the share of latents on manifolds with several, at LATER; [H, 3] each."""
        found = np.array([[world.features_found(self.latents * times) for times in LATER] for world in self.worlds])
        tiling = np.array([[world.tiling(d) for d in line] for world, line in zip(self.worlds, found, strict=True)])
        return found.reshape(-1, len(LATER)), tiling.reshape(-1, len(LATER))


def weigh(seen: DiagnosisView, latents: int, l0: float, sight: Sight, generator: np.random.Generator) -> Weighed:
    """Draw hypotheses from the prior and weigh them by what the diagnosis would have seen of each."""
    worlds, views = list[HypotheticalWorld](), list[DiagnosisView]()
    found = Weighed([], [], np.zeros(0), latents)
    for width in WIDTHS:
        while len(worlds) < MOST_DRAWS:
            worlds += [prior(generator) for _ in range(DRAWS)]
            views += [view(world, latents, l0, sight) for world in worlds[len(views) :]]
            found = _kept(worlds, views, np.array([_agreement(seen, own, width) for own in views]), latents)
            if found.effective >= ENOUGH_DRAWS:
                return found
        found = _kept(worlds, views, np.array([_agreement(seen, own, width) for own in views]), latents)
        if found.effective >= FEW_DRAWS:
            break
    return found


def _kept(worlds: list[HypotheticalWorld], views: list[DiagnosisView], logs: Array, latents: int) -> Weighed:
    weight = np.exp(logs - logs.max()) if logs.max() > FARTHEST else np.zeros(len(logs))
    kept = weight > 1e-4
    own = [worlds[place] for place in np.nonzero(kept)[0]]
    seen = [views[place] for place in np.nonzero(kept)[0]]
    return Weighed(own, seen, weight[kept] / max(weight[kept].sum(), 1e-300), latents)


def _agreement(seen: DiagnosisView, own: DiagnosisView, width: float) -> float:
    """Logarithm of a weight, at most 0: distances in what is seen, each in units of what such a world would vary by."""

    def apart(a: float, b: float, units: float) -> float:
        return ((math.sqrt(a) - math.sqrt(b)) / units) ** 2

    total = apart(seen.seen, own.seen, width) + apart(seen.largest, own.largest, width)
    total += apart(min(seen.near, own.near), own.near, 2 * width)  # crowding has other causes: more is no objection
    if seen.dimension is not None and own.dimension is not None:
        total += (math.log(seen.dimension / own.dimension**FLATTER) / 0.3) ** 2
    if seen.alpha is not None and own.alpha is not None:
        total += (seen.alpha - own.alpha) ** 2 / (seen.error**2 + (2 * width) ** 2 + BENT**2)
    elif (seen.alpha is None) != (own.alpha is None):
        total += 4.0
    return -total / 2


def would_show(weighed: Weighed, among: Array, l0: float, sight: Sight, times: float, rows: float) -> float:
    """How many of the hypotheses `among` [H] an SAE `times` as wide, and `rows` times the rows, would show.

    That is the share of their weight whose clusters would then hold at least a tenth more of the latents than now.
    """
    wide = Sight(int(sight.rows * rows), sight.close, sight.least, sight.middle, sight.firings)
    shown = total = 0.0
    for place in np.argsort(-weighed.weight * among)[:150]:
        if not among[place]:
            continue
        later = view(weighed.worlds[place], int(weighed.latents * times), l0, wide)
        shown += float(weighed.weight[place]) * (later.seen >= weighed.views[place].seen + 0.1)
        total += float(weighed.weight[place])
    return shown / total if total else 0.0
