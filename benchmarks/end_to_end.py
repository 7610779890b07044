"""Real SAEs against the allocator:  python benchmarks/end_to_end.py --out DIR --curves CURVES

Trains ReLU + L1 SAEs of several widths on worlds of hollow manifolds with power-law frequencies, measures how many
features they find and how many latents each gets, and compares with the allocator, which is fed with the loss curve of
one such manifold (`benchmarks/manifold_curves.py` writes it to CURVES). Two worlds: circles with alpha = 0.5, and
spheres S^5 with alpha = 1.5. DIR/end_to_end.json holds one line for each SAE; those there are not trained again.

Each SAE is trained twice (--starts): from random directions, and from the allocator's answer (tiles of each feature,
spread over its subspace). The losses of the two, beside the allocator's, tell a wrong prediction from training that did
not get there. A seed has a world of its own, with its own planes and rows. The objective is the one of the curves,
||x - x_hat||^2 + l1 sum_j f_j, over rows of which most hold one feature or none. (The toolkit's own L1 divides by a
row's norm, which an empty row does not have.) The full grid would be
--widths 64 256 1024 4096 16384 --d_in 1024 --features 400 --l0 1 --rows 50000000 --seeds 3.
"""

import argparse
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saelab.capacity.allocate import Allocation, Allocator
from saelab.capacity.manifolds import as_curve
from saelab.core.files import write_json
from saelab.core.read import read_json
from saelab.data.synthetic import ManifoldWorld
from saelab.metrics.truth import compare
from saelab.sae import SAE
from saelab.sae.activations.relu import ReLU
from saelab.sae.base import Forward
from saelab.train.trainer import Trainer

WORLDS = {"circles": ("circle", 0.5, 2), "spheres": ("sphere5", 1.5, 6)}
HELD_OUT = 16_384


def world_of(name: str, seed: int, options: argparse.Namespace) -> ManifoldWorld:
    shape, alpha, dims = WORLDS[name]
    n = min(options.features, options.d_in // dims)
    return ManifoldWorld(options.d_in, n, options.l0, alpha=alpha, shapes=[shape], radial=0.0, seed=1 + seed)


class PlainL1(ReLU):
    """A penalty of l1 sum_j f_j ||d_j|| on scaled rows, whatever their norm."""

    def penalties(self, step: Forward) -> dict[str, Tensor]:
        norms = step.sae.dictionary.norms()[step.codes.indices]
        return {"sparsity": self.l1 * (step.codes.values.abs() * norms).sum(1).mean()}


def planted(world: ManifoldWorld, allocation: Allocation, n: int, seed: int) -> Tensor:
    """Directions [n, D]: tiles of each feature in its subspace, as many as it was allocated; the others at random."""
    generator, parts = torch.Generator().manual_seed(seed), []
    for feature, count in zip(allocation.feature.tolist(), allocation.count.tolist(), strict=True):
        basis = world.bases(torch.tensor([feature]))[0]
        tiles = F.normalize(torch.randn(count, len(basis), generator=generator), dim=1)
        points = F.normalize(torch.randn(100 * count, len(basis), generator=generator), dim=1)
        for _ in range(20):  # spread them
            own = (points @ tiles.T).argmax(1)
            tiles = F.normalize(torch.zeros_like(tiles).index_add_(0, own, points) + 1e-6 * tiles, dim=1)
        parts.append(tiles @ basis)
    parts.append(F.normalize(torch.randn(n - sum(map(len, parts)), world.d_in, generator=generator), dim=1))
    return torch.cat(parts)


@torch.no_grad()
def loss(sae: SAE, world: ManifoldWorld, l1: float) -> float:
    """Mean of ||x - x_hat||^2 + l1 sum_j f_j ||d_j||, in the world's own units."""
    x, norms = world.window(world.HELD_OUT), sae.dictionary.norms()
    codes = sae.encode(x)
    size = (codes.values * norms[codes.indices]).sum(1).mean() * sae.scale.scale.mean()
    return float((x - sae.decode(codes)).square().sum(1).mean() + l1 * size)


def measured(
    world: ManifoldWorld, allocation: Allocation, seed: int, start: str, options: argparse.Namespace
) -> dict[str, Any]:
    """One SAE: features found, latents of each feature, purity, loss."""
    n, unit = allocation.latents, (options.l0 / world.d_in) ** 0.5  # scaled rows have mean square 1 an entry
    sae = SAE(world.d_in, n, PlainL1(options.l1 / options.l0 * unit), seed=seed)
    if start == "planted":
        directions = planted(world, allocation, n, seed)
        sae.dictionary.W_enc.data.copy_(directions)
        sae.dictionary.W_dec.data.copy_(directions)
    Trainer(sae, lr=options.lr, batch=512, decay=0.4).fit(world, options.rows, show=False)
    found = compare(sae, world, rows=HELD_OUT)
    per_feature = found.features["own_latents_per_feature"]
    line = {"n": n, "seed": seed, "start": start, "found": int((per_feature > 0).sum())}
    line |= {"latents_per_feature": per_feature.tolist(), "loss": loss(sae, world, options.l1)}
    return line | {key: found.scores[key].value for key in ("purity", "fvu", "l0", "dead", "discovered")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--curves", type=Path, required=True)
    parser.add_argument("--worlds", nargs="+", default=list(WORLDS), choices=list(WORLDS))
    parser.add_argument("--widths", type=int, nargs="+", default=[12, 24, 48, 96, 192])
    parser.add_argument("--d_in", type=int, default=48)
    parser.add_argument("--features", type=int, default=24)
    parser.add_argument("--l0", type=float, default=0.3)
    parser.add_argument("--l1", type=float, default=0.1)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--starts", nargs="+", default=["random", "planted"], choices=["random", "planted"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = options.out / "end_to_end.json"
    result: dict[str, Any] = read_json(path) if path.exists() else {"format": 1, "kind": "end-to-end", "lines": []}
    done = {(line["world"], line["n"], line["seed"], line["start"]) for line in result["lines"]}
    for name in options.worlds:
        curve = as_curve(read_json(options.curves / f"{WORLDS[name][0]}-relu-r0.json"))
        for seed, start, n in product(range(options.seeds), options.starts, options.widths):
            if (name, n, seed, start) in done:
                continue
            world = world_of(name, seed, options)
            allocator = Allocator(world.probability.numpy(), curve)
            expected = allocator.allocate(n)
            line = {"world": name} | measured(world, expected, seed, start, options)
            line |= {
                "predicted": expected.n_found,
                "predicted_latents": expected.per_feature(world.n_features).tolist(),
            }
            line |= {"predicted_loss": expected.loss}
            result["lines"].append(line)
            write_json(path, result)
            counts = (line["latents_per_feature"][:6], line["predicted_latents"][:6])
            words = f"loss {line['loss']:.4f}, predicted {line['predicted_loss']:.4f}, purity {line['purity']:.2f}"
            head = f"{name} {n} {start} {seed}: found {line['found']}, predicted {line['predicted']}"
            print(head, words, *counts, flush=True)


if __name__ == "__main__":
    main()
