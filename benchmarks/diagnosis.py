"""Is the diagnosis as sure as it may be?  python benchmarks/diagnosis.py --out DIR [--worlds 120]

Plants worlds whose truth is known: alpha from -0.3 to 1.9, no manifolds, a share of them, or a few common ones, S^1
to S^7; latents shared out by the exact allocator (not by the formulas that the diagnosis reasons with), tiles spread
evenly over their spheres, an SAE of exactly these directions, rows made of exactly these features. Diagnoses each, and
asks: of the verdicts given with a probability of x, how many are right? The truth is the allocator's growth of D from N
to 10 N. DIR/diagnosis.json holds a line for each world; those there are not run again.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from saelab.capacity.allocate import Allocator, frequencies
from saelab.capacity.curves import DiscreteCurve, ShiftCurve
from saelab.capacity.diagnose import BENIGN, PATHOLOGICAL, diagnose
from saelab.core.files import write_json
from saelab.core.read import read_json
from saelab.sae import SAE
from saelab.sae.activations.topk import TopK

FEATURES = 200_000


def spread(n: int, dims: int, generator: torch.Generator) -> torch.Tensor:
    """n directions [n, dims] that lie about evenly: centres of the points nearest to each, ten times over."""
    tiles = F.normalize(torch.randn(n, dims, generator=generator), dim=1)
    points = F.normalize(torch.randn(40 * n + 400, dims, generator=generator), dim=1)
    for _ in range(10 if n > 1 else 0):
        own = (points @ tiles.T).argmax(1)
        tiles = F.normalize(torch.zeros_like(tiles).index_add_(0, own, points) + 1e-6 * tiles, dim=1)
    return tiles


def world_of(seed: int) -> dict[str, Any]:
    """A world's settings."""
    g = np.random.default_rng([7, seed])
    kind = ("none", "share", "few")[seed % 3]
    m = int(g.integers(1, 8)) if kind != "none" else 0
    share = float(np.exp(g.uniform(math.log(0.03), 0))) if kind == "share" else 0.0
    few, boost = (int(g.choice([1, 2, 5])), float(np.exp(g.uniform(0, math.log(300))))) if kind == "few" else (0, 1.0)
    own = {"alpha": float(g.uniform(-0.3, 1.9)), "m": m, "share": share, "few": few, "boost": boost}
    return {"seed": seed, "kind": kind, "n": int(g.choice([200, 400, 800])), "k": int(g.choice([6, 12, 24])), **own}


def diagnosed(world: dict[str, Any], rows: int) -> dict[str, Any]:
    """Plant it and diagnose it."""
    g, tg = np.random.default_rng([8, world["seed"]]), torch.Generator().manual_seed(world["seed"])
    p = frequencies(FEATURES, world["alpha"])
    kinds = (g.random(FEATURES) < world["share"]).astype(np.int8)
    if world["few"]:
        kinds[g.integers(0, 30, world["few"])] = 1
        p = np.where(kinds, p * world["boost"], p)
    beta = 2 / max(world["m"], 1)
    allocator = Allocator(p, [DiscreteCurve(), ShiftCurve(beta)], kinds)
    now, later = allocator.allocate(world["n"]), allocator.allocate(10 * world["n"])
    growth = math.log10(later.n_found / now.n_found)
    dims = np.where((now.count > 1), world["m"] + 1, 1)
    width = int(dims.sum())
    directions, starts = [], np.concatenate([[0], dims.cumsum()])
    for count, start, own in zip(now.count.tolist(), starts.tolist(), dims.tolist(), strict=False):
        tile = torch.zeros(count, width)
        tile[:, start : start + own] = spread(count, own, tg) if own > 1 else torch.ones(1, 1)
        directions.append(tile)
    weights = torch.cat(directions)
    sae = SAE(width, len(weights), TopK(world["k"]))
    sae.dictionary.W_enc.data.copy_(weights)
    sae.dictionary.W_dec.data.copy_(weights)
    often = p[now.feature]
    often = torch.from_numpy(np.minimum(often * 0.6 * world["k"] / often.sum(), 0.9)).float()
    which = torch.from_numpy(np.repeat(np.arange(len(dims)), dims))

    def block() -> torch.Tensor:
        x = torch.randn(2000, width, generator=tg)
        x[:, torch.from_numpy(dims == 1)[which]] = 1.0
        norms = torch.zeros(2000, len(dims)).index_add_(1, which, x.square()).sqrt()
        there = torch.rand(2000, len(dims), generator=tg) < often
        size = 0.8 + 0.4 * torch.rand(2000, len(dims), generator=tg)
        return x * (there * size / norms)[:, which]

    found = diagnose(sae, (block() for _ in range(rows // 2000)))
    clusters = [(len(c["latents"]), c["dimension"]) for c in found["clusters"][:3]]
    seen = {"verdict": found["verdict"], "clusters": clusters, "alpha_seen": found["alpha"]["value"]}
    tiling = float(now.count[now.count > 1].sum()) / world["n"]
    return (
        world | seen | {"tiling": tiling, "share_seen": found["share_in_clusters"], "truth": growth} | found["growth"]
    )


def report(lines: list[dict[str, Any]]) -> None:
    """Probabilities against truth."""
    said = [(line["benign"], line["truth"] >= BENIGN) for line in lines]
    said += [(line["pathological"], line["truth"] < PATHOLOGICAL) for line in lines]
    chance, right = np.array(said, float).T
    print("probability said    cases    said    right")
    for low, high in ((0, 0.05), (0.05, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 0.9), (0.9, 0.95), (0.95, 1.01)):
        own = (chance >= low) & (chance < high)
        if own.any():
            means = f"{chance[own].mean():>7.1%} {right[own].mean():>7.1%}"
            print(f"{low:>6.0%} to {min(high, 1):<8.0%} {own.sum():>6} {means}")
    for verdict in ("benign", "pathological", "cannot tell"):
        own = [line for line in lines if line["verdict"] == verdict]
        truths = [sum(line["truth"] >= BENIGN for line in own), sum(line["truth"] < PATHOLOGICAL for line in own)]
        print(f"{verdict}: {len(own)} worlds, of which benign {truths[0]}, pathological {truths[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--worlds", type=int, default=120)
    parser.add_argument("--rows", type=int, default=20_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = options.out / "diagnosis.json"
    result: dict[str, Any] = read_json(path) if path.exists() else {"format": 1, "kind": "calibration", "lines": []}
    done = {line["seed"] for line in result["lines"]}
    for seed in range(options.worlds):
        if seed in done:
            continue
        result["lines"].append(diagnosed(world_of(seed), options.rows))
        write_json(path, result)
        line = result["lines"][-1]
        keys = (
            "seed",
            "kind",
            "n",
            "alpha",
            "alpha_seen",
            "m",
            "tiling",
            "share_seen",
            "truth",
            "benign",
            "pathological",
        )
        print(*(f"{line[key]:.2f}" if isinstance(line[key], float) else line[key] for key in keys), flush=True)
        print("   ", line["clusters"], round(line["worlds"]), flush=True)
    report(result["lines"])


if __name__ == "__main__":
    main()
