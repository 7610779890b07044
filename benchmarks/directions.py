"""Directions against directions:  python benchmarks/directions.py [--small 32768] [--large 131072] [--width 768]

Time and peak memory of what comparisons of SAEs stand on: the nearest direction of each, all pairs above a cosine, and
a one-to-one assignment with its bound. The smaller side is a noisy copy of rows of the larger one in random order, but
for every fourth, which is a stranger, so that what is found can be checked.
"""

import argparse
import resource
import time

import torch
import torch.nn.functional as F

from saelab.analysis.assignment import assign
from saelab.metrics.geometry import nearest, pairs_above

PARTS = ("nearest", "pairs", "assign")


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", type=int, default=32_768)
    parser.add_argument("--large", type=int, default=131_072)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    small, large, origin = planted(options.small, options.large, options.width)
    copied = origin >= 0
    print(f"{options.small:,} against {options.large:,} directions {options.width} wide, {options.threads} threads")
    for part in options.parts:
        start, cpu = time.perf_counter(), time.process_time()
        if part == "nearest":
            found = nearest(small, large)[1].squeeze(1)
            said = f"{(found == origin)[copied].double().mean():.4f} of the copies found"
        elif part == "pairs":
            i, j, _ = pairs_above(small, large, 0.7)
            said = f"{len(i):,} pairs, {(origin[i] == j).double().mean():.4f} of them copies"
        else:
            result = assign(small, large)
            right = (result.partner == origin)[copied].double().mean()
            said = (
                f"mean cosine {result.similarity.mean():.4f}, within {result.bound:.2g} of the best, {right:.4f} right"
            )
        wall, busy = time.perf_counter() - start, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{part:8} {wall:6.1f} s ({busy:.1f} s of CPU), peak {peak:.2f} GiB: {said}", flush=True)


if __name__ == "__main__":
    main()
