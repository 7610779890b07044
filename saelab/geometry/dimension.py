"""How many dimensions a cloud of points fills.

    participation ratio   (sum of eigenvalues)^2 / sum of their squares       of the covariance; linear dimensions
    two nearest           n / sum_i ln(r2_i / r1_i)                          r1, r2: distances to the nearest two points

The first counts the directions that the variance is spread over; a circle has 2. The second is the maximum-likelihood
form of Facco et al. 2017 (TwoNN, as we read it) and follows the manifold: a circle has 1. It looks at the smallest
distances only, so noise of their size raises it. Of points that coincide, one is kept.
"""

# Shape letters: n points, D their width.

import math
from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_ENTRIES = 1 << 24
COINCIDE = 1e-6
"""Points closer than this share of the cloud's radius are the same point."""


def participation_ratio(points: Tensor) -> float:
    """Effective number of linear dimensions of points [n, D]: from 1 to D; NaN where they do not vary."""
    centred = points.double() - points.double().mean(0)
    small = centred.T @ centred if points.shape[1] <= len(points) else centred @ centred.T
    total, squares = small.diagonal().sum(), small.square().sum()
    return (total.square() / squares).item() if squares > 0 else math.nan


def two_nearest(points: Tensor) -> float:
    """Intrinsic dimension of points [n, D] from the distances to their two nearest neighbours; NaN below 3 points."""
    points = _apart(points.double() - points.double().mean(0))
    if len(points) < 3:
        return math.nan
    logs = []
    for start, distances in _distances(points):
        distances.diagonal(start).fill_(torch.inf)
        first, second = distances.topk(2, largest=False).values.unbind(1)
        logs.append((second / first).log())
    total = torch.cat(logs).sum().item()
    return len(points) / total if total > 0 else math.nan


def _apart(points: Tensor) -> Tensor:
    """The points that do not coincide with one before them."""
    least = COINCIDE * points.square().sum(1).mean().sqrt() if len(points) else 0.0
    again = [(distances <= least).tril(start - 1).any(1) for start, distances in _distances(points)]
    return points[~torch.cat(again)] if again else points


def _distances(points: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Number of a block's first point, and distances [n_block, n]."""
    size = max(1, BLOCK_ENTRIES // max(1, len(points)))
    for start in range(0, len(points), size):
        # Not through products: those lose the small distances that matter here.
        yield start, torch.cdist(points[start : start + size], points, compute_mode="donot_use_mm_for_euclid_dist")
