"""Real SAEs against the allocator:  python benchmarks/end_to_end.py --out DIR --curves CURVES

Trains ReLU + L1 SAEs of several widths on worlds of hollow manifolds with power-law frequencies, measures how many
features they find and how many latents each gets, and compares with the allocator, which is fed with the loss curve of
one such manifold (`benchmarks/manifold_curves.py` writes it to CURVES). Two worlds: circles with alpha = 0.5, and
spheres S^5 with alpha = 1.5. DIR/end_to_end.json holds one line for each SAE; those there are not trained again.

The objective is the one of the curves: ||x - x_hat||^2 + l1 sum_j f_j, whose L1 the toolkit divides by a row's norm;
rows of one active manifold have norm 1, rows of more have a longer one and a weaker penalty. The full grid would be
--widths 64 256 1024 4096 16384 --d_in 1024 --features 400 --rows 50000000 --seeds 3.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from saelab.core.files import read_json, write_json
from saelab.data.synthetic import ManifoldWorld
from saelab.metrics.truth import compare
from saelab.sae import SAE
from saelab.sae.activations.relu import ReLU
from saelab.scaling.allocate import Allocator
from saelab.scaling.manifolds import as_curve
from saelab.train.trainer import Trainer

WORLDS = {"circles": ("circle", 0.5, 2), "spheres": ("sphere5", 1.5, 6)}
HELD_OUT = 16_384


def world_of(name: str, options: argparse.Namespace) -> ManifoldWorld:
    shape, alpha, dims = WORLDS[name]
    n = min(options.features, options.d_in // dims)
    return ManifoldWorld(options.d_in, n, options.l0, alpha=alpha, shapes=[shape], radial=0.0, seed=1)


def measured(world: ManifoldWorld, n: int, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One SAE: features found, latents of each feature, purity."""
    sae = SAE(world.d_in, n, ReLU(options.l1), seed=seed)
    Trainer(sae, lr=options.lr, batch=512, decay=0.4).fit(world, options.rows, show=False)
    found = compare(sae, world, rows=HELD_OUT)
    per_feature = found.features["own_latents_per_feature"]
    line = {"n": n, "seed": seed, "found": int((per_feature > 0).sum()), "latents_per_feature": per_feature.tolist()}
    line |= {key: found.scores[key].value for key in ("purity", "fvu", "l0", "dead", "discovered")}
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--curves", type=Path, required=True)
    parser.add_argument("--worlds", nargs="+", default=list(WORLDS), choices=list(WORLDS))
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--d_in", type=int, default=128)
    parser.add_argument("--features", type=int, default=60)
    parser.add_argument("--l0", type=float, default=1.0)
    parser.add_argument("--l1", type=float, default=0.1)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = options.out / "end_to_end.json"
    result: dict[str, Any] = read_json(path) if path.exists() else {"format": 1, "kind": "end-to-end", "lines": []}
    done = {(line["world"], line["n"], line["seed"]) for line in result["lines"]}
    for name in options.worlds:
        world, shape = world_of(name, options), WORLDS[name][0]
        curve = as_curve(read_json(options.curves / f"{shape}-relu-r0.json"))
        allocator = Allocator(world.probability.numpy(), curve)
        for n in options.widths:
            for seed in range(options.seeds):
                if (name, n, seed) in done:
                    continue
                expected = allocator.allocate(n)
                line = {"world": name} | measured(world, n, seed, options)
                line |= {"predicted": expected.found, "predicted_latents": expected.of(world.n_features).tolist()}
                result["lines"].append(line)
                write_json(path, result)
                first = (line["latents_per_feature"][0], line["predicted_latents"][0])
                print(name, n, "found", line["found"], "predicted", line["predicted"], "n_1", *first, flush=True)


if __name__ == "__main__":
    main()
