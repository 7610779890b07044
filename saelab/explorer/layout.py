"""A map of directions in two dimensions, by UMAP's method (McInnes et al. 2018, arXiv 1802.03426, as we read it).

    p(j|i) = exp(-max(0, dist_ij - rho_i) / sigma_i), sum over the k neighbours = log2 k      p = p + p^T - p * p^T
    q_ij   = 1 / (1 + a ||y_i - y_j||^(2b))

The cross entropy of p against q goes down by attraction along edges and repulsion from random points. Distances are
1 - cosine, neighbours exact, the start is the first two principal components. All edges step at once, each weighted by
p, which replaces sampling edges in proportion to p. Left out: other metrics, placing new points.
"""

# Shape letters: L points, C neighbours of each, E edges.

import torch
from torch import Tensor

A, B = 1.577, 0.895  # the curve's fit for min_dist = 0.1, spread = 1
REPELLED = 5
"""Random points that push each point in a step."""


def weights(cosines: Tensor) -> Tensor:
    """p(j|i) of each neighbour from cosines [L, C], nearest first; [L, C]."""
    distance = (1 - cosines.double()).clamp_min(0)
    beyond = distance - distance[:, :1]
    target = torch.log2(torch.tensor(float(max(2, cosines.shape[1]))))
    low, high = torch.full((len(cosines), 1), 1e-6).double(), torch.full((len(cosines), 1), 1e3).double()
    for _ in range(60):  # halving on a logarithmic scale
        sigma = (low * high).sqrt()
        small = torch.exp(-beyond / sigma).sum(1, keepdim=True) < target
        low, high = torch.where(small, sigma, low), torch.where(small, high, sigma)
    return torch.exp(-beyond / high).float()


def edges_of(cosines: Tensor, neighbours: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Edges [E], [E] of the symmetric graph, each pair once, and their weights p + p' - p p' [E]."""
    p, count = weights(cosines), len(cosines)
    own = torch.arange(count)[:, None].expand_as(neighbours)
    keys = torch.minimum(own, neighbours) * count + torch.maximum(own, neighbours)
    forward = (own < neighbours).flatten()
    unique, place = keys.flatten().unique(return_inverse=True)
    one, other = torch.zeros(2, len(unique))
    one.index_add_(0, place[forward], p.flatten()[forward])
    other.index_add_(0, place[~forward], p.flatten()[~forward])
    return unique // count, unique % count, one + other - one * other


@torch.no_grad()
def layout(start: Tensor, cosines: Tensor, neighbours: Tensor, steps: int = 200, seed: int = 0) -> Tensor:
    """Places [L, 2] from starting places [L, 2] and the nearest neighbours' cosines and numbers [L, C]."""
    count = len(start)
    places = 10 * start / start.abs().max().clamp_min(1e-12)
    if count < 3 or not cosines.numel():
        return places
    left, right, weight = edges_of(cosines, neighbours)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        rate = 1 - step / steps
        pull = places[left] - places[right]
        square = pull.square().sum(1, keepdim=True).clamp_min(1e-6)
        force = -2 * A * B * square ** (B - 1) / (1 + A * square**B) * pull * weight[:, None]
        force = force.clamp(-4, 4)
        move = torch.zeros_like(places).index_add_(0, left, force).index_add_(0, right, -force)
        for _ in range(REPELLED):
            away = places - places[torch.randint(count, (count,), generator=generator)]
            square = away.square().sum(1, keepdim=True)
            move += (2 * B / ((0.001 + square) * (1 + A * square**B)) * away).clamp(-4, 4)
        places = places + rate * move.clamp(-4, 4)
    return places - places.mean(0)
