"""The figures of docs/scaling.md:  python benchmarks/scaling_figures.py --laws L --curves C --worlds W --diagnosis FILE

    law-joint       --laws, a folder of `saelab scaling fit`: FVU against n, the joint law, what lies beyond the cells
    growth          D(N) of both regimes, by the exact allocator
    manifolds       --curves, of `manifold_curves.py`: TopK with k = 1 on hollow spheres beside n^-2/m
    radial          --curves: the circle with radii that vary, ReLU + L1
    tiling          three SAEs of eight latents, trained here: which latent serves which angle of a circle
    shared          --worlds, of `end_to_end.py`: latents of each circle in trained SAEs beside the allocator's
    diagnosis       --diagnosis, of `saelab scaling diagnose --out FILE`

Each is written to --out as a small SVG; those whose input is not given are left out.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from saelab.capacity.manifolds import points_of
from saelab.capacity.small import Recipe, Small, measure
from saelab.core.files import write_text
from saelab.core.read import read_json
from saelab.data.synthetic.shapes import shape_named
from saelab.figures.scaling import (
    Circle,
    diagnosis_figure,
    feature_latents_figure,
    growth_figure,
    law_figure,
    manifold_figure,
    tiling_figure,
    title_of,
)  # fmt: skip
from saelab.figures.svg import svg
from saelab.recipes.capacity import allocate
from saelab.scaling.files import read_fit

REGIMES = {"benign: alpha 0.5, beta 2": (0.5, 2.0), "tiling: alpha 1, beta 0.5": (1.0, 0.5)}
SPHERES = {"S^1": "circle", "S^2": "sphere", "S^3": "sphere3", "S^5": "sphere5", "S^7": "sphere7"}
SIZES = [10**power for power in range(1, 7)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/scaling"))
    parser.add_argument("--laws", type=Path)
    parser.add_argument("--curves", type=Path)
    parser.add_argument("--worlds", type=Path)
    parser.add_argument("--diagnosis", type=Path)
    parser.add_argument("--features", type=int, default=10_000_000, help="of the allocations")
    options = parser.parse_args()
    torch.set_num_threads(1)
    made: dict[str, Any] = {"tiling": tiling()}
    if options.laws:
        made["law-joint"] = law_figure(read_fit(options.laws / "law-joint.json"), title_of("joint"))
    if options.curves:
        made |= curves(options.curves)
    if options.worlds:
        lines = read_json(options.worlds / "end_to_end.json")["lines"]
        own = [line for line in lines if (line["world"], line["start"]) == ("circles", "random")]
        made["shared"] = feature_latents_figure(own, "Circles, alpha = 0.5, from random directions")
    if options.diagnosis:
        made["diagnosis"] = diagnosis_figure(read_json(options.diagnosis))
    made["growth"] = regimes(options.out, options.features)
    for name, figure in made.items():
        write_text(options.out / f"{name}.svg", svg(figure.to_plotly_json()))


def regimes(out: Path, features: int) -> Any:
    results = {}
    for name, (alpha, beta) in REGIMES.items():
        path = out / "allocation.json"
        allocate(alpha, beta, features, SIZES, out=str(path))
        results[name] = read_json(path)
        path.unlink()
    return growth_figure(results)


def curves(folder: Path) -> dict[str, Any]:
    found = {path.stem: read_json(path) for path in folder.glob("*.json")}
    spheres = {name: found[f"{shape}-topk-r0"] for name, shape in SPHERES.items() if f"{shape}-topk-r0" in found}
    names = {f"s = {radial}": f"circle-relu-r{radial}" for radial in ("0", "0.1", "0.25", "0.5", "1")}
    radial = {name: found[stem] for name, stem in names.items() if stem in found}
    for curve in radial.values():
        curve["rows"] = [row for row in curve["rows"] if row["n"] >= 3]
    return {
        "manifolds": manifold_figure(spheres, "TopK with k = 1 on hollow spheres"),
        "radial": manifold_figure(radial, "ReLU + L1 on a circle, radii 1 - s to 1 + s"),
    }


def tiling() -> Any:
    """The best of three seeds each; rows of radius 1 are shown."""
    cases = {"TopK, k = 1": ("topk", 0.0), "ReLU + L1": ("relu", 0.0), "ReLU + L1, radii 0.5 to 1.5": ("relu", 0.5)}
    shape, circles, angles = shape_named("circle"), {}, torch.arange(181) * torch.pi / 90
    for name, (kind, radial) in cases.items():
        small = Small(shape.dims, [8] * 3, [0, 1, 2], Recipe(kind, 0.1, steps=2000, batch=256, lr=1e-2))
        small.fit(lambda n, generator, radial=radial: points_of(shape, radial, n, generator))
        best = int(measure(small, points_of(shape, radial, 8192, torch.Generator().manual_seed(0)))["total"].argmin())
        with torch.no_grad():
            _, _, codes = small.terms(torch.stack([angles.cos(), angles.sin()], 1))
            x_hat = small.decode(codes)[:, best]
        circles[name] = Circle(small.decoder[best].detach(), codes[:, best], angles, x_hat)
    return tiling_figure(circles)


if __name__ == "__main__":
    main()
