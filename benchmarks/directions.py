"""Directions against directions:  python benchmarks/directions.py [--small 32768] [--large 131072] [--width 768]

Time and peak memory of what comparisons of SAEs stand on: the nearest direction of each, all pairs above a cosine, a
one-to-one assignment with its bound, and all of `saelab match`. The smaller side is a noisy copy of rows of the larger
one in random order, but for every fourth, which is a stranger, so that what is found can be checked. At smaller sizes
(`--parts gaps`) the assignment is compared with the best one.
"""

import argparse
import resource
import time

import torch
import torch.nn.functional as F

from saelab.analysis.assignment import assign
from saelab.analysis.match import match
from saelab.geometry import nearest, pairs_above
from saelab.sae import SAE
from saelab.sae.activations.relu import ReLU

PARTS = ("nearest", "pairs", "assign", "match", "gaps")


def planted(n: int, m: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The two sides, and for each of the smaller one the number it was copied from, -1 for strangers."""
    generator = torch.Generator().manual_seed(0)
    large = F.normalize(torch.randn(m, width, generator=generator), dim=1)
    origin = torch.randperm(m, generator=generator)[:n]
    small = large[origin]
    small += 0.6 / width**0.5 * torch.randn(n, width, generator=generator)
    small[::4] = torch.randn(len(small[::4]), width, generator=generator)
    origin[::4] = -1
    return small, large, origin


def peak() -> float:
    """The most memory that this process has held, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def gaps(width: int) -> None:
    """How far the scalable assignment is from the best one, and from its own bound, where the best can be had."""
    for n, m, kind in [
        (2048, 8192, "copies"),
        (2048, 8192, "strangers"),
        (2048, 2048, "copies"),
        (2048, 2048, "strangers"),
    ]:
        small, large, _ = planted(n, m, width)
        if kind == "strangers":
            small = torch.randn(n, width, generator=torch.Generator().manual_seed(1))
        start = time.perf_counter()
        near = assign(small, large, exact_entries=0)
        middle = time.perf_counter()
        best = assign(small, large, exact_entries=n * m)
        end = time.perf_counter()
        gap = (best.similarity.mean() - near.similarity.mean()).item()
        same = (best.partner == near.partner).double().mean()
        print(
            f"{n:,} {kind} against {m:,}: mean cosine {near.similarity.mean():.5f}, {gap:.2g} below the best (said: at "
            f"most {near.bound:.2g}), {same:.4f} the same partners; {middle - start:.1f} s, the best "
            f"{end - middle:.1f} s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", type=int, default=32_768)
    parser.add_argument("--large", type=int, default=131_072)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = [part for part in options.parts if part != "gaps"]
    if table:
        print(f"{options.small:,} against {options.large:,} directions {options.width} wide, {options.threads} threads")
        small, large, origin = planted(options.small, options.large, options.width)
        print(f"the directions themselves: peak {peak():.2f} GiB", flush=True)
    for part in table:
        start, cpu = time.perf_counter(), time.process_time()
        said = one(part, small, large, origin)
        wall, busy = time.perf_counter() - start, time.process_time() - cpu
        print(f"{part:8} {wall:6.1f} s ({busy:.1f} s of CPU), peak {peak():.2f} GiB: {said}", flush=True)
    if "gaps" in options.parts:
        gaps(options.width)


def one(part: str, small: torch.Tensor, large: torch.Tensor, origin: torch.Tensor) -> str:
    """Do one part; what there is to say of its outcome."""
    copied = origin >= 0
    if part == "nearest":
        found = nearest(small, large)[1].squeeze(1)
        return f"{(found == origin)[copied].double().mean():.4f} of the copies found"
    if part == "pairs":
        i, j, _ = pairs_above(small, large, 0.7)
        return f"{len(i):,} pairs, {(origin[i] == j).double().mean():.4f} of them copies"
    if part == "assign":
        result = assign(small, large)
        right = (result.partner == origin)[copied].double().mean()
        return f"mean cosine {result.similarity.mean():.4f}, within {result.bound:.2g} of the best, {right:.4f} right"
    found = match(of(small), of(large))
    counts = ", ".join(f"{count:,} {kind}" for kind, count in found.a.counts().items())
    return f"all that `saelab match` does: {counts}; within {found.bound:.2g} of the best"


def of(directions: torch.Tensor) -> SAE:
    """An SAE with these directions; its encoder is left as it is made, as nothing looks at it."""
    sae = SAE(directions.shape[1], len(directions), ReLU(l1=0.0))
    sae.dictionary.W_dec.data = F.normalize(directions, dim=1)
    return sae


if __name__ == "__main__":
    main()
