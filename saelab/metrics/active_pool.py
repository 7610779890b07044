"""Sparse semantic dimension: how many latents the data need at all (arXiv 2602.11388, by its abstract).

    ssd(m) = expected number of latents that are active somewhere in m documents of those seen

by rarefaction: a latent active in c of G documents is in the pool of m with probability 1 - C(G - c, m) / C(G, m).

    ssd        the pool of all documents
    ssd_half   the pool of half of them: ssd / ssd_half is 1 where the pool is full, 2 where it only grows
    ssd_growth latents that the last tenth of the documents added, as a share of ssd

The paper bounds generalisation by the size of the pool and sees it explode off distribution: compare texts at equal
numbers of tokens and documents. Documents are counted in at most GROUPS groups. Intervals are by jackknife over the
documents, because a bootstrap of distinct things is biased down.
"""

# Shape letters: G documents with rows, L latents.

import math

import torch
from torch import Tensor

from saelab.metrics.base import Metric, Score, View
from saelab.metrics.chunks import GROUPS
from saelab.sae.autoencoder import Autoencoder


class SparseSemanticDimension(Metric):
    """Size of the pool of latents that are active on the data."""

    def __init__(self) -> None:
        self.active: Tensor | None = None
        self.rows = torch.zeros(GROUPS, dtype=torch.int64)

    def update(self, view: View) -> None:
        codes = view.codes
        if self.active is None:
            self.active = torch.zeros(GROUPS, codes.n_latents, dtype=torch.bool)
        row, slot = codes.active.nonzero(as_tuple=True)
        self.active[view.group[row.cpu()], codes.indices[row, slot].cpu()] = True
        self.rows += torch.bincount(view.group, minlength=GROUPS)

    def scores(self, sae: Autoencoder) -> dict[str, Score]:
        assert self.active is not None
        active = self.active[self.rows > 0]
        n, count = int(self.rows.sum()), active.sum(0)
        found = {"ssd": _jackknifed(active, n)}
        documents = len(active)
        if documents >= 10:
            pool = float((count > 0).sum())
            half = pool_of(count, documents, documents // 2)
            last = pool - pool_of(count, documents, documents - documents // 10)
            found["ssd_half"] = Score(half, None, None, n, f"latents in {documents // 2} documents")
            if pool:
                found["ssd_growth"] = Score(last / pool, None, None, n, "share of the pool")
        return found


def pool_of(count: Tensor, documents: int, some: int) -> float:
    """Expected pool of some of the documents, for latents active in `count` [L] of all."""
    left = documents - count.double()
    choose = torch.lgamma(left + 1) - torch.lgamma((left - some + 1).clamp_min(1))
    missing = torch.exp(choose - math.lgamma(documents + 1) + math.lgamma(documents - some + 1))
    return (1 - missing.where(left >= some, 0.0)).sum().item()


def _jackknifed(active: Tensor, n: int) -> Score:
    """The pool of documents [G, L] and 1.96 jackknife standard errors to either side, within what is possible."""
    count, documents = active.sum(0), len(active)
    pool = int((count > 0).sum())
    if documents < 2:
        return Score(pool, None, None, n, "latents", documents)
    alone = (active & (count == 1)).sum(1).double()  # what the pool lacks without each document
    error = math.sqrt((documents - 1) / documents * (alone - alone.mean()).square().sum().item())
    low, high = max(0.0, pool - 1.96 * error), min(float(active.shape[1]), pool + 1.96 * error)
    return Score(float(pool), low, high, n, f"latents in {documents} documents", documents)
