"""Loss curves of single manifolds:  python benchmarks/manifold_curves.py --out DIR [--part tiling spheres radial kinds]

Each curve is a file DIR/NAME.json (see `saelab.capacity.manifolds`); those that are there are not trained again. Parts:

    radial     circle, ReLU + L1, radii uniform in 1 - s to 1 + s: where tiling ends
    spheres    hollow spheres, ReLU + L1 and TopK with k = 1: beta against 2 / m
    kinds      JumpReLU and BatchTopK: hollow S^1 to S^3, and the circle with radii that vary

The defaults are what docs/scaling.md reports; the full grid would be --spheres 1 2 3 4 5 6 7 --seeds 5 --steps 20000
--sizes 1 2 3 4 6 8 12 16 24 32 64 --activations relu topk jumprelu batchtopk.
"""

import argparse
from pathlib import Path

import torch

from saelab.capacity.manifolds import loss_curve
from saelab.capacity.small import Recipe
from saelab.core.files import write_json

WEIGHTS = {"relu": 0.1, "jumprelu": 0.01, "topk": 0.0, "batchtopk": 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", default=["radial", "spheres", "kinds"])
    parser.add_argument("--radial", type=float, nargs="+", default=[0.0, 0.1, 0.25, 0.5, 1.0])
    parser.add_argument("--spheres", type=int, nargs="+", default=[1, 2, 3, 5, 7])
    parser.add_argument("--activations", nargs="+", default=["topk", "relu"], help="of the part spheres")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 3, 4, 6, 8, 12, 16, 24, 32])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = {1: "circle", 2: "sphere", 3: "sphere3"}
    jobs: list[tuple[str, str, float]] = []
    if "radial" in options.parts:
        jobs += [("circle", "relu", radial) for radial in options.radial]
    if "spheres" in options.parts:
        jobs += [(names.get(m, f"sphere{m}"), kind, 0.0) for kind in options.activations for m in options.spheres]
    if "kinds" in options.parts:
        jobs += [(names[m], kind, 0.0) for kind in ("jumprelu", "batchtopk") for m in (1, 2, 3)]
        jobs += [("circle", kind, radial) for kind in ("jumprelu", "batchtopk") for radial in (0.25, 0.5)]
    for shape, kind, radial in dict.fromkeys(jobs):
        path = options.out / f"{shape}-{kind}-r{radial:g}.json"
        if path.exists():
            continue
        recipe = Recipe(kind, WEIGHTS[kind], steps=options.steps, batch=256, lr=6e-3)
        curve = loss_curve(shape, radial, recipe, options.sizes, options.seeds)
        write_json(path, curve)
        words = {key: curve[key] and curve[key]["value"] for key in ("beta", "beta_no_floor", "beta_fixed_floor")}
        print(path.name, curve["expected_beta"], words, flush=True)


if __name__ == "__main__":
    main()
