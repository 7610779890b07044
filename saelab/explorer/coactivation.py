"""Which latents fire together, from the codes of a sample of rows, for all latents at once.

    r(i, j)    Pearson correlation of the two latents' activations, zeros included
    share      rows in which both are active, of those in which i is

The sums over pairs are one product of sparse matrices. Only pairs that were active together in MIN_ROWS rows count.
"""

# Shape letters: n sampled rows, L latents, C kept of each, N pairs.

from dataclasses import dataclass

import numpy as np

from saelab.explorer.triples import Array

MIN_ROWS = 5


@dataclass(frozen=True)
class Correlated:
    """The latents that go most with each, [L, C]; number -1 for none."""

    number: Array
    r: Array
    share: Array


def correlated(latent: Array, row: Array, value: Array, n_latents: int, count: int = 10) -> Correlated:
    """The most correlated other latents of each, from sampled entries: latent, row and value, [E] each."""
    from scipy.sparse import csr_matrix  # takes long to import, and only this needs it

    rows, place = np.unique(row, return_inverse=True)
    n = max(1, len(rows))
    codes = csr_matrix((value.astype(np.float64), (place, latent)), shape=(n, n_latents))
    active = csr_matrix((np.ones(len(latent)), (place, latent)), shape=(n, n_latents))
    products, both = (codes.T @ codes).tocoo(), (active.T @ active).tocsr()
    fired = np.asarray(active.sum(0)).ravel()
    mean = np.asarray(codes.sum(0)).ravel() / n
    spread = np.sqrt(np.maximum(np.asarray(codes.multiply(codes).sum(0)).ravel() / n - mean**2, 1e-30))
    i, j = products.row, products.col
    together = np.asarray(both[i, j]).ravel()
    kept = (i != j) & (together >= MIN_ROWS)
    i, j, product, together = i[kept], j[kept], products.data[kept], together[kept]
    r = (product / n - mean[i] * mean[j]) / (spread[i] * spread[j])
    order = np.lexsort((j, -r, i))
    i, j, r, together = i[order], j[order], r[order], together[order]
    starts = np.searchsorted(i, np.arange(n_latents + 1))
    rank = np.arange(count)
    here = rank < np.diff(starts)[:, None]
    at = np.where(here, starts[:-1, None] + rank, 0)
    if not len(i):
        empty = np.zeros((n_latents, count))
        return Correlated(np.full((n_latents, count), -1), empty, empty)
    share = together / np.maximum(fired[i], 1)
    return Correlated(np.where(here, j[at], -1), np.where(here, r[at], 0), np.where(here, share[at], 0))
