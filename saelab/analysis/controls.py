"""What a meta-SAE has to beat: other ways to write the same directions with the same number of bits.

Bits of one direction: every number is held with VALUE_BITS bits and every choice among m costs log2 m.

    meta-SAE           L0 (log2 n_meta + VALUE_BITS)
    PCA                r VALUE_BITS                                        r: as many components as the bits pay for
    k-means            log2 n_meta + VALUE_BITS                            one centroid and its size: fewer bits
    residual k-means   s (log2 (n_meta / s) + VALUE_BITS)                  s = L0 rounded: a centroid and its size in
                                                                           each of s rounds, of what was left before

Both k-means have n_meta rows of dictionary, as the meta-SAE has; PCA has r. The other two controls are made of other
rows: `random_directions` have nothing to find, `shuffled` ones keep each coordinate's distribution and lose how they
go together.
"""

# Shape letters: n rows, D their width, K centroids, R components, S rounds.

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from saelab.data.source import generator_for

VALUE_BITS = 8
ROUNDS = 25
BLOCK_ENTRIES = 1 << 24


def explained(rows: Tensor, rows_hat: Tensor) -> float:
    """Share of the variance of rows [n, D] about their own mean that reconstructions [n, D] explain; NaN for none."""
    rows = rows.double()
    spread = (rows - rows.mean(0)).square().sum()
    return (1 - (rows - rows_hat.double()).square().sum() / spread).item() if spread > 0 else math.nan


def bits(l0: float, n_meta: int) -> float:
    """Bits of a direction written as L0 of n_meta latents."""
    return l0 * (math.log2(n_meta) + VALUE_BITS)


def random_directions(n: int, width: int, seed: int) -> Tensor:
    """Random unit rows [n, D]."""
    return F.normalize(torch.randn(n, width, generator=generator_for(seed, 7)), dim=1)


def shuffled(rows: Tensor, seed: int) -> Tensor:
    """Rows [n, D] whose coordinates were dealt out anew among rows, each for itself; to unit norm again."""
    order = torch.rand(rows.shape, generator=generator_for(seed, 8)).argsort(0)
    return F.normalize(rows.gather(0, order.to(rows.device)), dim=1)


def pca(train: Tensor, held: Tensor, components: int) -> Tensor:
    """Rows `held` [n, D] from their first components about the mean of `train`."""
    mean = train.mean(0)
    count = min(components, train.shape[1])
    if not count:
        return mean.expand_as(held)
    basis = torch.linalg.eigh((train - mean).T @ (train - mean)).eigenvectors[:, -count:]
    return mean + (held - mean) @ basis @ basis.T


def residual_kmeans(train: Tensor, held: Tensor, centroids: int, stages: int, seed: int) -> Tensor:
    """Rows `held` [n, D] as sums of one centroid, at its best size, from each of `stages` rounds of k-means."""
    left, rest, total = train, held, torch.zeros_like(held)
    for stage in range(stages):
        found = kmeans(left, centroids, seed + stage)
        left = left - _nearest_sized(left, found)
        part = _nearest_sized(rest, found)
        total, rest = total + part, rest - part
    return total


def _nearest_sized(rows: Tensor, centroids: Tensor) -> Tensor:
    """Each row's best approximation by a multiple of one centroid; [n, D]."""
    norms = centroids.norm(dim=1).clamp_min(1e-12)
    chosen = torch.cat([(part @ (centroids / norms[:, None]).T).abs().argmax(1) for part in _split(rows, centroids)])
    unit = (centroids / norms[:, None])[chosen]
    return (rows * unit).sum(1, keepdim=True) * unit


def kmeans(rows: Tensor, count: int, seed: int = 0) -> Tensor:
    """Centroids [K, D] of rows [n, D] by Lloyd's rounds; K is at most n."""
    count = min(count, len(rows))
    centroids = _spread_out(rows, count, seed)
    for _ in range(ROUNDS):
        half = centroids.square().sum(1) / 2
        scores, chosen = (
            torch.cat(part)
            for part in zip(*((part @ centroids.T - half).max(1) for part in _split(rows, centroids)), strict=True)
        )
        sizes = torch.bincount(chosen, minlength=count)
        sums = torch.zeros_like(centroids).index_add_(0, chosen, rows)
        moved = sums / sizes.clamp_min(1)[:, None]
        empty = (sizes == 0).nonzero().squeeze(1)
        far = (rows.square().sum(1) / 2 - scores).topk(len(empty)).indices  # an empty one moves to a badly served row
        moved[empty] = rows[far]
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids


def _spread_out(rows: Tensor, count: int, seed: int) -> Tensor:
    """Rows to start from, each drawn with a chance that grows with its squared distance to those before (k-means++)."""
    generator = generator_for(seed, 9)
    chosen = [int(torch.randint(len(rows), (), generator=generator))]
    left = (rows - rows[chosen[0]]).square().sum(1)
    while len(chosen) < count:
        chance = left.double().cpu()
        chance = torch.ones_like(chance) if chance.sum() <= 0 else chance
        chosen.append(int(torch.multinomial(chance, 1, generator=generator)))
        left = torch.minimum(left, (rows - rows[chosen[-1]]).square().sum(1))
    return rows[chosen].clone()


def _split(rows: Tensor, centroids: Tensor) -> tuple[Tensor, ...]:
    return rows.split(max(1, BLOCK_ENTRIES // len(centroids)))
