"""Is this SAE spending its latents on tiling a few manifolds?

    1  firing frequencies of latents outside the clusters of step 3: slope of ln density against ln rank in the middle
       of the spectrum; alpha = -slope - 1
    2  nearest-neighbour cosines, against a random dictionary of the same size and against narrower SAEs
    3  tiling clusters: latents joined by a cosine above CLOSE *and* firing together more often than by chance, but not
       always (those are duplicates); chains of neighbours, as tiles of one manifold are. Absorption makes pairs that
       are close and never fire together: they are not joined
    4  beta of a cluster: 2 / m, with m the intrinsic dimension (two nearest neighbours) of its unit reconstructions
    5  D(N) at 2 and 10 times the width: at the frontier a discrete feature of rank D gains p_D ~ D^-(1 + alpha), and a
       cluster's next tile as much, so that  n_c ~ D^((1 + alpha) / (1 + beta_c))  and  N = D + sum of n_c,  both
       calibrated by what this SAE has now

Uncertainty is carried through by drawing alpha, the betas and the threshold CLOSE at random from what the data allow.
The verdict is about growth: g = ln(D(10 N) / D(N)) / ln 10. Benign: g >= 0.9 in 90 % of the draws. Pathological:
g < 0.8 in 90 % of them. Otherwise it cannot be told, and what would tell is said. (Model after Michaud et al. 2025,
arXiv 2509.02565, as we read it; steps 3 to 5 and all thresholds are our choice.)

What it cannot see: circles of fewer than six tiles (their cosines are below one half), tiles that never fire together
(k = 1), and that latent frequencies are not feature frequencies: absorption and splitting bend the spectrum.

The file: {"format": 1, "kind": "diagnosis", "rows", "n_latents", "alive", "alpha": estimate, "frequencies": {"rank",
"density", "from", "to"}, "nearest": {name: {"mean", "p50", "p90", "p99", "crowded", "histogram": [40 counts from -1 to
1]}} with names "this", "random" and those of narrower SAEs, "typical_firings": median over live latents, "clusters":
[{"latents", "density", "beta", "beta_low", "beta_high", "dimension", "participation", "radial"}] largest first,
"share_in_clusters", "duplicates", "growth": {"median", "low", "high", "benign", "pathological"} with shares of draws,
"predicted": [{"times", "found", "found_low", "found_high", "tiling", "tiling_low", "tiling_high"}], "verdict", "why":
[lines]}.
"""

# Shape letters: B rows, D width, L latents, N pairs, R draws, C clusters.

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from saelab.metrics.geometry import Coactivation, components, members, nearest, pairs_above, participation_ratio
from saelab.metrics.geometry.dimension import two_nearest
from saelab.sae.sae import SAE

CLOSE = (0.4, 0.5, 0.6)
"""Cosines from which two latents may be neighbouring tiles; the middle one is what is listed."""
LEAST_LIFT, DUPLICATE = 2.0, 0.9
"""Neighbours fire together this many times more often than by chance; from that Jaccard on they are duplicates."""
LEAST_SIZE, LARGEST = 6, 8
"""Latents of a cluster; how many clusters get a beta of their own."""
POINTS, CHUNK = 1000, 2048
DRAWS = 200
BENIGN, PATHOLOGICAL, SURE = 0.9, 0.8, 0.9
MIDDLE = (0.02, 0.5)
"""Ranks, as shares of the live latents, between which the spectrum is fitted."""
LEAST_ALIVE, LEAST_FIRINGS, LEAST_RANKS = 50, 10, 20
TYPICAL_FIRINGS = 20
"""If half of the live latents fired less often than this, neighbours that fire together cannot be seen."""


@dataclass
class Seen:
    """What one pass over rows leaves."""

    together: Coactivation
    sample: Tensor
    """Rows [B, D] kept for the clouds of clusters."""

    @property
    def alive(self) -> Tensor:
        """Latents that fired; [n] int64."""
        return (self.together.left > 0).nonzero().squeeze(1)


@torch.no_grad()
def diagnose(
    sae: SAE, rows: Iterable[Tensor], narrower: Mapping[str, SAE] | None = None, seed: int = 0
) -> dict[str, Any]:
    """Diagnose an SAE from its weights and its codes of some rows.

    Args:
        sae: whole, one that reconstructs what it reads.
        rows: chunks [B, D]; 50,000 rows or more.
        narrower: SAEs of the same ladder by name, for comparison.
        seed: of the draws.

    Raises:
        ValueError: for a transcoder, or an SAE of which too few latents fire to say anything.
    """
    if sae.d_out:
        raise ValueError("a transcoder's directions are not where its rows are: diagnose an SAE")
    seen = _look(sae, rows)
    alive = seen.alive
    if len(alive) < LEAST_ALIVE:
        raise ValueError(
            f"only {len(alive)} latents fired in {seen.together.rows:,} rows; nothing can be said below {LEAST_ALIVE}"
        )
    directions = F.normalize(sae.dictionary.directions().float(), dim=1)
    generator = np.random.default_rng(seed)
    clusterings = [_clusters(directions, seen, alive, close) for close in CLOSE]
    apart = alive[~torch.isin(alive, torch.cat([*clusterings[1][0], alive[:0]]))]
    spectrum = frequency_exponent(seen.together.left[apart].double().numpy() / seen.together.rows, seen.together.rows)
    clouds = {
        tuple(c.tolist()): _cloud(sae, directions, seen.sample, c) for found in clusterings for c in found[0][:LARGEST]
    }
    tiled = [[(len(c), clouds.get(tuple(c.tolist()))) for c in found[0]] for found in clusterings]
    growth, predicted = _predict(len(alive), tiled, spectrum, generator)
    listed, duplicates = clusterings[1]
    result: dict[str, Any] = {
        "format": 1, "kind": "diagnosis", "rows": seen.together.rows, "n_latents": sae.n_latents, "alive": len(alive),
        "alpha": spectrum["alpha"], "frequencies": spectrum["shown"],
        "nearest": _neighbours(directions[alive], narrower or {}, seed),
        "clusters": [_line(c, seen, clouds.get(tuple(c.tolist()))) for c in listed],
        "typical_firings": float(seen.together.left[alive].double().median()),
        "share_in_clusters": sum(map(len, listed)) / len(alive), "duplicates": duplicates,
        "growth": growth, "predicted": predicted,
    }  # fmt: skip
    return result | verdict(result)


def _look(sae: SAE, rows: Iterable[Tensor]) -> Seen:
    together, kept = Coactivation(sae.n_latents), list[Tensor]()
    for block in rows:
        for x in block.split(CHUNK):
            together.update(sae.encode(x.to(sae.scale.mean)))
            if sum(len(part) for part in kept) < 20 * POINTS:
                kept.append(x.float())
    if not together.rows:
        raise ValueError("there are no rows to look at")
    return Seen(together, torch.cat(kept))


def frequency_exponent(density: np.ndarray, rows: int) -> dict[str, Any]:
    """alpha with its interval from densities [n] of live latents, and the spectrum to show.

    The interval is over latents drawn with replacement and over where the middle begins and ends.
    """
    ordered = np.sort(density)[::-1]
    enough = int((ordered * rows >= LEAST_FIRINGS).sum())
    generator, slopes = np.random.default_rng(0), []
    for number in range(DRAWS):
        drawn = ordered if not number else np.sort(generator.choice(ordered, len(ordered)))[::-1]
        stretch = (1.0, 1.0) if not number else np.exp(generator.uniform(-0.5, 0.5, 2))
        first = max(1, int(MIDDLE[0] * stretch[0] * len(drawn)))
        last = min(enough, int(min(0.9, MIDDLE[1] * stretch[1]) * len(drawn)))
        if last - first >= LEAST_RANKS:
            rank = np.arange(first, last) + 1
            slopes.append(np.polyfit(np.log(rank), np.log(drawn[first:last]), 1)[0])
    shown = np.unique(np.geomspace(1, len(ordered), 200).astype(int)) - 1
    spectrum = {"rank": (shown + 1).tolist(), "density": ordered[shown].tolist()}
    spectrum |= {"from": max(1, int(MIDDLE[0] * len(ordered))) + 1, "to": min(enough, int(MIDDLE[1] * len(ordered)))}
    if len(slopes) < DRAWS // 2:
        why = f"fewer than {LEAST_RANKS} latents in the middle fired {LEAST_FIRINGS} times: more rows would tell"
        return {"alpha": {"value": None, "low": None, "high": None, "why": why}, "draws": None, "shown": spectrum}
    alphas = -np.array(slopes) - 1
    low, high = np.percentile(alphas, (2.5, 97.5))
    alpha = {"value": float(alphas[0]), "low": float(low), "high": float(high), "why": ""}
    return {"alpha": alpha, "draws": alphas, "shown": spectrum}


def _neighbours(directions: Tensor, narrower: Mapping[str, SAE], seed: int) -> dict[str, Any]:
    random = torch.randn(directions.shape, generator=torch.Generator().manual_seed(seed))
    chance = nearest(random, random, skip_self=True)[0][:, 0]
    crowded = chance.quantile(0.99).item() if len(chance) < 1 << 24 else chance.max().item()
    found = {"this": nearest(directions, directions, skip_self=True)[0][:, 0], "random": chance}
    for name, sae in narrower.items():
        other = sae.dictionary.directions().float()
        found[name] = nearest(other, other, skip_self=True)[0][:, 0]
    return {name: _spread(values.double().numpy(), crowded) for name, values in found.items()}


def _spread(values: np.ndarray, crowded: float) -> dict[str, Any]:
    """`crowded` is the share above what one random direction in a hundred reaches."""
    p50, p90, p99 = np.percentile(values, (50, 90, 99)).tolist()
    counts = np.histogram(values, bins=40, range=(-1, 1))[0].tolist()
    share = float((values > crowded).mean())
    return {"mean": float(values.mean()), "p50": p50, "p90": p90, "p99": p99, "crowded": share, "histogram": counts}


def _clusters(directions: Tensor, seen: Seen, alive: Tensor, close: float) -> tuple[list[Tensor], int]:
    """Tiling clusters at a threshold, largest first, and how many pairs are duplicates."""
    i, j, _ = pairs_above(directions[alive], None, close)
    left, right = alive[i], alive[j]
    jaccard = seen.together.jaccard(left, right)
    often = seen.together.both(left, right) >= 5
    tiles = often & (seen.together.lift(left, right) >= LEAST_LIFT) & (jaccard < DUPLICATE)
    labels = components(len(alive), i[tiles], j[tiles])
    return [alive[part] for part in members(labels, LEAST_SIZE)], int((jaccard >= DUPLICATE).sum())


def _cloud(sae: SAE, directions: Tensor, sample: Tensor, cluster: Tensor) -> dict[str, Any] | None:
    """Shape of what a cluster reconstructs; None where it fires too rarely in the sample."""
    inside, parts = torch.zeros(sae.n_latents, dtype=torch.bool), []
    inside[cluster] = True
    norms = sae.dictionary.norms()
    for x in sample.split(CHUNK):
        codes = sae.encode(x.to(sae.scale.mean)).compact()
        values = (codes.values * norms[codes.indices]).where(inside[codes.indices], 0)
        points = torch.bmm(values.float()[:, None], directions[codes.indices]).squeeze(1)
        parts.append(points[(values != 0).any(1)])
    points = torch.cat(parts)[:POINTS]
    if len(points) < 200:
        return None
    size = points.norm(dim=1)
    unit = F.normalize(points, dim=1)
    # A row on which one latent of the cluster fires alone is that latent's direction: no neighbourhood to measure.
    halves = [
        unit[torch.randperm(len(unit), generator=torch.Generator().manual_seed(s))[: len(unit) // 2]] for s in range(4)
    ]
    dims = np.array([two_nearest(half) for half in halves])
    dims = dims[np.isfinite(dims) & (dims > 0)]
    if len(dims) < 3:
        return None
    centre, spread = float(dims.mean()), max(float(dims.std()), 0.1 * float(dims.mean()))  # the estimator is biased too
    return {
        "dimension": centre, "participation": participation_ratio(unit), "radial": float(size.std() / size.mean()),
        "beta": 2 / centre, "beta_low": 2 / (centre + 2 * spread), "beta_high": 2 / max(centre - 2 * spread, 0.2),
    }  # fmt: skip


def _line(cluster: Tensor, seen: Seen, cloud: dict[str, Any] | None) -> dict[str, Any]:
    density = float(seen.together.left[cluster].max()) / seen.together.rows
    keys = ("dimension", "participation", "radial", "beta", "beta_low", "beta_high")
    return {"latents": cluster.tolist(), "density": density} | {key: cloud[key] if cloud else None for key in keys}


def _predict(
    n: int,
    tiled: list[list[tuple[int, dict[str, Any] | None]]],
    spectrum: dict[str, Any],
    generator: np.random.Generator,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Growth, and D and the tiling share at 2 and 10 times the width, over draws of all that is uncertain."""
    alphas, results = spectrum["draws"], []
    for _ in range(DRAWS):
        # Without an exponent of the frequencies anything from equal ones to a square law is possible.
        alpha = generator.uniform(-0.9, 1.0) if alphas is None else max(-0.95, float(generator.choice(alphas)))
        clusters = tiled[generator.integers(len(tiled))]
        counts = np.array([size for size, _ in clusters], float)
        gammas = np.array([(1 + alpha) / (1 + _draw_beta(cloud, generator)) for _, cloud in clusters])
        found = max(n - counts.sum() + len(counts), 1.0)  # each cluster is one feature
        results.append([(*_solve(n * times, found, counts, gammas),) for times in (1.0, 2.0, 10.0)])
    table = np.array(results)  # [R, 3, 2]
    growth = np.log(table[:, 2, 0] / table[:, 0, 0]) / math.log(10)
    low, median, high = np.percentile(growth, (2.5, 50, 97.5)).tolist()
    summary = {"median": median, "low": low, "high": high}
    summary |= {"benign": float((growth >= BENIGN).mean()), "pathological": float((growth < PATHOLOGICAL).mean())}
    lines = []
    for number, times in ((1, 2), (2, 10)):
        line: dict[str, Any] = {"times": times}
        for place, name in ((0, "found"), (1, "tiling")):
            ends = np.percentile(table[:, number, place], (50, 2.5, 97.5)).tolist()
            line |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
        lines.append(line)
    return summary, lines


def _draw_beta(cloud: dict[str, Any] | None, generator: np.random.Generator) -> float:
    if cloud is None:
        return float(np.exp(generator.uniform(math.log(0.2), math.log(2.0))))
    return float(np.exp(generator.uniform(math.log(cloud["beta_low"]), math.log(cloud["beta_high"]))))


def _solve(latents: float, found: float, counts: np.ndarray, gammas: np.ndarray) -> tuple[float, float]:
    """D and the share of latents that tile, when there are this many latents; by bisection on D."""

    def used(d: float) -> float:
        return d - len(counts) + float((counts * (d / found) ** gammas).sum())

    low, high = 1e-6 * found, latents + len(counts) + 1
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if used(middle) < latents else (low, middle)
    return low, float((counts * (low / found) ** gammas).sum()) / latents


def verdict(result: dict[str, Any]) -> dict[str, Any]:
    """The verdict, and the reasons for it in plain words."""
    growth, alpha, share = result["growth"], result["alpha"], result["share_in_clusters"]
    ten = result["predicted"][-1]
    now = f"{share:.1%} of {result['alive']:,} live latents lie in {len(result['clusters'])} tiling clusters"
    then = f"{ten['tiling']:.1%} would at 10 times the width [{ten['tiling_low']:.1%} to {ten['tiling_high']:.1%}]"
    ends = f"[{growth['low']:.2f} to {growth['high']:.2f}]"
    why = [f"{now}; {then}", f"features found grow as N^{growth['median']:.2f} {ends} over that decade"]
    if alpha["value"] is None:
        why.append(f"the exponent of the firing frequencies is not known: {alpha['why']}")
    else:
        why.append(f"firing frequencies: alpha = {alpha['value']:.2f} [{alpha['low']:.2f} to {alpha['high']:.2f}]")
    if not result["clusters"]:
        why.append(f"no cluster of {LEAST_SIZE} tiles or more was seen; smaller ones, and tiles far apart, are not")
    known = [cluster for cluster in result["clusters"] if cluster["beta"] is not None]
    if known:
        first = known[0]
        why.append(
            f"the largest cluster ({len(first['latents'])} latents) has beta = {first['beta']:.2f} "
            f"[{first['beta_low']:.2f} to {first['beta_high']:.2f}], from a dimension of {first['dimension']:.1f}"
        )
    blind = result["typical_firings"] < TYPICAL_FIRINGS
    if growth["benign"] >= SURE and not blind:
        return {"verdict": "benign", "why": why}
    if growth["pathological"] >= SURE:
        return {"verdict": "pathological", "why": why}
    tell = []
    if blind:
        tell.append(f"more rows: half of the latents fired at most {result['typical_firings']:.0f} times")
    if alpha["value"] is None or alpha["high"] - alpha["low"] > 0.3:
        tell.append("more rows, for the frequencies")
    if any(cluster["beta"] is None for cluster in result["clusters"][:LARGEST]):
        tell.append("more rows, for the dimension of clusters that fire rarely")
    if len([name for name in result["nearest"] if name not in ("this", "random")]) < 2:
        tell.append("narrower and wider SAEs of the same ladder: whether the clusters grow with the width")
    words = f"benign in {growth['benign']:.0%} of the draws, pathological in {growth['pathological']:.0%}"
    why.append(f"cannot tell ({words}); what would tell: {'; '.join(tell) or 'a wider SAE of the same ladder'}")
    return {"verdict": "cannot tell", "why": why}
