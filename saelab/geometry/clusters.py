"""Clusters as connected components of a graph: whatever can be reached over its pairs belongs together.

This is single linkage: one chain of close pairs joins two groups, so a manifold tiled by many latents is one cluster
though its ends are far apart. Where everything runs into one cluster, raise the threshold of the graph.
"""

# Shape letters: n nodes, N pairs.

import torch
from torch import Tensor


def components(n: int, left: Tensor, right: Tensor) -> Tensor:
    """The cluster of each of n nodes, from pairs [N] and [N] of nodes; [n] int64 on the CPU.

    Clusters are numbered from 0 in the order of their first nodes; a node without a pair is a cluster of its own.
    """
    from scipy.sparse import coo_matrix  # takes long to import, and only this needs it
    from scipy.sparse.csgraph import connected_components

    ones = torch.ones(len(left), dtype=torch.int8).numpy()
    graph = coo_matrix((ones, (left.cpu().numpy(), right.cpu().numpy())), shape=(n, n))
    labels = torch.from_numpy(connected_components(graph, directed=False)[1]).long()
    first = torch.full((int(labels.max()) + 1 if n else 0,), n).scatter_reduce(0, labels, torch.arange(n), "amin")
    rank = torch.empty_like(first)
    rank[first.argsort()] = torch.arange(len(first))
    return rank[labels]


def members(labels: Tensor, least: int = 2) -> list[Tensor]:
    """The nodes of each cluster of at least `least`, the largest cluster first; each [size] int64, ascending."""
    sizes = torch.bincount(labels) if len(labels) else torch.empty(0, dtype=torch.int64)
    order = labels.argsort(stable=True)
    parts = order.split(sizes.tolist())
    chosen = [number for number in sizes.argsort(descending=True, stable=True).tolist() if sizes[number] >= least]
    return [parts[number] for number in chosen]
