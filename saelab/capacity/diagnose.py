"""Is this SAE spending its latents on tiling a few manifolds?

    1  firing frequencies of latents outside the clusters of step 3: slope of ln density against ln rank in the middle
       of the spectrum; alpha = -slope - 1
    2  nearest-neighbour cosines, against a random dictionary of the same size and against narrower SAEs
    3  tiling clusters: latents joined by a cosine above CLOSE *and* firing together more often than by chance, but not
       always (those are duplicates); chains of neighbours, as tiles of one manifold are. Absorption makes pairs that
       are close and never fire together: they are not joined
    4  beta of a cluster: 2 / m, with m the intrinsic dimension (two nearest neighbours) of its unit reconstructions
    5  D(N) at 2 and 10 times the width, in worlds that look like that

What may have been missed is weighed too: circles of fewer than six tiles, tiles of which one at a time fires, manifolds
of many dimensions, whose tiles are far apart until there are hundreds. `saelab.capacity.hidden` draws worlds at random,
works out what steps 1 to 4 would have seen of each, and keeps them as far as they agree with what was seen. The verdict
is about growth, g = ln(D(10 N) / D(N)) / ln 10, in the worlds that are left: benign with probability P(g >= 0.9),
pathological with P(g < 0.8), and neither is said unless its probability is SURE. Otherwise it cannot be told, and what
would tell is worked out the same way: how many of the worlds that stand against the likelier answer more rows, or a
wider SAE, would show. (Model after Michaud et al. 2025, arXiv 2509.02565, as we read it; steps 3 to 5, the prior and
all thresholds are our choice.)

What it does not allow for: latents that are not shared out as theory says. That absorption and splitting bend the
spectrum is allowed for by a standard error of alpha and no more.

The file: {"format": 1, "kind": "diagnosis", "rows", "n_latents", "alive", "alpha": estimate, "frequencies": {"rank",
"density", "from", "to"}, "nearest": {name: {"mean", "p50", "p90", "p99", "crowded", "histogram": [40 counts from -1 to
1]}} with names "this", "random" and those of narrower SAEs, "typical_firings": median over live latents, "clusters":
[{"latents", "density", "beta", "beta_low", "beta_high", "dimension", "participation", "radial"}] largest first,
"share_in_clusters", "duplicates", "growth": {"median", "low", "high", "benign", "between", "pathological": chances,
"worlds": how many equally good ones that rests on, "unseen": of the latents of such worlds, the share on manifolds that
nothing was seen of}, "tell": [{"times", "rows", "shown": share of the worlds against the likelier answer}],
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

from saelab.capacity.hidden import ENOUGH, LIFT, DiagnosisView, Sight, Weighed, weigh, would_show
from saelab.geometry import Coactivation, components, members, nearest, pairs_above, participation_ratio
from saelab.geometry.dimension import two_nearest
from saelab.sae.autoencoder import Autoencoder

CLOSE, DUPLICATE = 0.5, 0.9
"""Cosine from which two latents may be neighbouring tiles; Jaccard index from which they are duplicates."""
LEAST_SIZE, LARGEST = 6, 8
"""Latents of a cluster; how many clusters get a beta of their own."""
POINTS, CHUNK = 1000, 2048
DRAWS = 200
BENIGN, PATHOLOGICAL, SURE = 0.9, 0.8, 0.9
MIDDLE = (0.02, 0.5)
"""Ranks, as shares of the live latents, between which the spectrum is fitted."""
LEAST_ALIVE, LEAST_FIRINGS, LEAST_RANKS = 50, 10, 20
LEAST_WORLDS = 10
"""Below so many equally good hypotheses nothing is concluded."""
WIDER, LONGER, SHOWS = (4, 16), 10, 0.5
"""Widths and rows, as multiples of those at hand, that are tried for what would tell; the share that they must show."""


@dataclass
class FiringPass:
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
    sae: Autoencoder, rows: Iterable[Tensor], narrower: Mapping[str, Autoencoder] | None = None, seed: int = 0
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
        raise ValueError("a transcoder cannot be diagnosed: it reads and writes different rows")
    seen = _look(sae, rows)
    alive = seen.alive
    if len(alive) < LEAST_ALIVE:
        raise ValueError(
            f"only {len(alive)} latents fired in {seen.together.rows:,} rows, {LEAST_ALIVE} are needed: give more rows"
        )
    directions = F.normalize(sae.dictionary.directions().float(), dim=1)
    generator = np.random.default_rng(seed)
    listed, duplicates = _clusters(directions, seen, alive, CLOSE)
    apart = alive[~torch.isin(alive, torch.cat([*listed, alive[:0]]))]
    spectrum = frequency_exponent(seen.together.left[apart].double().numpy() / seen.together.rows, seen.together.rows)
    clouds = [_cloud(sae, directions, seen.sample, cluster) for cluster in listed[:LARGEST]]
    clouds += [None] * (len(listed) - len(clouds))
    closest = nearest(directions[alive], directions[alive], skip_self=True)[0][:, 0]
    l0 = float(seen.together.left.sum()) / seen.together.rows
    sight = Sight(seen.together.rows, CLOSE, LEAST_SIZE, MIDDLE, LEAST_FIRINGS)
    view = _view(listed, clouds, closest, spectrum["alpha"])
    growth, predicted, tell = expected(weigh(view, len(alive), l0, sight, generator), l0, sight)
    result: dict[str, Any] = {
        "format": 1, "kind": "diagnosis", "rows": seen.together.rows, "n_latents": sae.n_latents, "alive": len(alive),
        "alpha": spectrum["alpha"], "frequencies": spectrum["shown"],
        "nearest": _neighbours(directions[alive], narrower or {}, seed),
        "clusters": [_line(cluster, seen, cloud) for cluster, cloud in zip(listed, clouds, strict=True)],
        "typical_firings": float(seen.together.left[alive].double().median()),
        "share_in_clusters": sum(map(len, listed)) / len(alive), "duplicates": duplicates,
        "growth": growth, "tell": tell, "predicted": predicted,
    }  # fmt: skip
    return result | verdict(result)


def _look(sae: Autoencoder, rows: Iterable[Tensor]) -> FiringPass:
    together, kept = Coactivation(sae.n_latents), list[Tensor]()
    for block in rows:
        for x in block.split(CHUNK):
            together.update(sae.encode(x.to(sae.device, sae.dtype)))
            if sum(len(part) for part in kept) < 20 * POINTS:
                kept.append(x.float())
    if not together.rows:
        raise ValueError("there are no rows to diagnose on")
    return FiringPass(together, torch.cat(kept))


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


def _neighbours(directions: Tensor, narrower: Mapping[str, Autoencoder], seed: int) -> dict[str, Any]:
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


def _clusters(directions: Tensor, seen: FiringPass, alive: Tensor, close: float) -> tuple[list[Tensor], int]:
    """Tiling clusters at a threshold, largest first, and how many pairs are duplicates."""
    i, j, _ = pairs_above(directions[alive], None, close)
    left, right = alive[i], alive[j]
    jaccard = seen.together.jaccard(left, right)
    often = seen.together.both(left, right) >= ENOUGH
    tiles = often & (seen.together.lift(left, right) >= LIFT) & (jaccard < DUPLICATE)
    labels = components(len(alive), i[tiles], j[tiles])
    return [alive[part] for part in members(labels, LEAST_SIZE)], int((jaccard >= DUPLICATE).sum())


def _cloud(sae: Autoencoder, directions: Tensor, sample: Tensor, cluster: Tensor) -> dict[str, Any] | None:
    """Shape of what a cluster reconstructs; None where it fires too rarely in the sample."""
    inside, parts = torch.zeros(sae.n_latents, dtype=torch.bool), []
    inside[cluster] = True
    norms = sae.dictionary.norms()
    for x in sample.split(CHUNK):
        codes = sae.encode(x.to(sae.device, sae.dtype)).compact()
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


def _line(cluster: Tensor, seen: FiringPass, cloud: dict[str, Any] | None) -> dict[str, Any]:
    density = float(seen.together.left[cluster].max()) / seen.together.rows
    keys = ("dimension", "participation", "radial", "beta", "beta_low", "beta_high")
    return {"latents": cluster.tolist(), "density": density} | {key: cloud[key] if cloud else None for key in keys}


def _view(
    listed: list[Tensor], clouds: list[dict[str, Any] | None], closest: Tensor, alpha: dict[str, Any]
) -> DiagnosisView:
    sizes = [len(cluster) for cluster in listed]
    known = [(cloud["dimension"], size) for cloud, size in zip(clouds, sizes, strict=True) if cloud]
    dimensions, weights = np.array(known).reshape(-1, 2).T
    exponent = alpha["value"]
    return DiagnosisView(
        seen=sum(sizes) / len(closest),
        largest=max(sizes, default=0) / len(closest),
        near=float((closest > CLOSE).float().mean()),
        alpha=exponent,
        error=(alpha["high"] - alpha["low"]) / 3.92 if exponent is not None else 0.0,
        dimension=float(np.average(dimensions, weights=weights)) if known else None,
    )


def expected(
    weighed: Weighed, l0: float, sight: Sight
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """Growth, D and the tiling share at 2 and 10 times the width, and what would tell; see the file's format."""
    found, tiling = weighed.later()
    growth = np.log(found[:, 2] / found[:, 0]) / math.log(10)
    benign, pathological = growth >= BENIGN, growth < PATHOLOGICAL
    summary: dict[str, Any] = dict(zip(("low", "median", "high"), _quantiles(growth, weighed.weight), strict=True))
    summary |= {"benign": weighed.share(benign), "pathological": weighed.share(pathological)}
    summary["between"] = max(0.0, 1 - summary["benign"] - summary["pathological"])
    missed = tiling[:, 0] - np.array([view.seen for view in weighed.views])
    summary |= {"worlds": weighed.effective, "unseen": _quantiles(missed, weighed.weight)[1:]}
    lines = []
    for number, times in ((1, 2), (2, 10)):
        line: dict[str, Any] = {"times": times}
        for values, name in ((found, "found"), (tiling, "tiling")):
            low, median, high = _quantiles(values[:, number], weighed.weight)
            line |= {name: median, f"{name}_low": low, f"{name}_high": high}
        lines.append(line)
    against = ~benign if summary["benign"] >= summary["pathological"] else ~pathological
    trials = [(1, LONGER), *((times, 1) for times in WIDER), *((times, times * LONGER) for times in WIDER)]
    tell = [
        {"times": times, "rows": rows, "shown": would_show(weighed, against, l0, sight, times, rows)}
        for times, rows in trials
    ]
    return summary, lines, tell


def _quantiles(values: np.ndarray, weight: np.ndarray) -> list[float]:
    """Ends and middle of 95 % of weighted values [H]; NaN is never among them, as there are none without weights."""
    if not len(values):
        return [0.0, 0.0, 0.0]
    order = np.argsort(values)
    at = np.searchsorted(weight[order].cumsum(), (0.025, 0.5, 0.975)).clip(max=len(values) - 1)
    return values[order][at].tolist()


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
    median, high = growth["unseen"]
    why.append(f"tiling that this could not see: {median:.1%} of the latents, up to {high:.1%}, in worlds that look so")
    known = [cluster for cluster in result["clusters"] if cluster["beta"] is not None]
    if known:
        first = known[0]
        why.append(
            f"the largest cluster ({len(first['latents'])} latents) has beta = {first['beta']:.2f} "
            f"[{first['beta_low']:.2f} to {first['beta_high']:.2f}], from a dimension of {first['dimension']:.1f}"
        )
    words = f"benign {growth['benign']:.0%}, pathological {growth['pathological']:.0%}, between {growth['between']:.0%}"
    why.append(f"probabilities, if latents are shared out as theory says: {words}")
    if growth["worlds"] < LEAST_WORLDS:
        why.append("hardly any world that theory knows looks like this SAE, so nothing can be concluded from it")
    elif growth["benign"] >= SURE:
        return {"verdict": "benign", "why": why}
    elif growth["pathological"] >= SURE:
        return {"verdict": "pathological", "why": why}
    why.append(f"what would tell: {what_would_tell(result)}")
    return {"verdict": "cannot tell", "why": why}


def what_would_tell(result: dict[str, Any]) -> str:
    """The least that would show most of the worlds which stand against the likelier answer, in words."""
    tell = []
    if result["alpha"]["value"] is None:
        tell.append("more rows, for the frequencies")
    if any(cluster["beta"] is None for cluster in result["clusters"][:LARGEST]):
        tell.append("more rows, for the dimension of clusters that fire rarely")
    for trial in result["tell"]:
        if trial["shown"] >= SHOWS:
            parts = [f"{trial['rows']} times the rows"] * (trial["rows"] > 1)
            parts += [f"an SAE {trial['times']} times as wide"] * (trial["times"] > 1)
            return "; ".join(
                [*tell, f"{' and '.join(parts)}, which would show {trial['shown']:.0%} of what may be hidden"]
            )
    best = max(trial["shown"] for trial in result["tell"])
    tell.append(f"no SAE up to {WIDER[-1]} times as wide would surely show it (the best: {best:.0%})")
    return "; ".join([*tell, "features found at several widths, counted by another method, would"])
