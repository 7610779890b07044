"""NuclearNorm:  each group of directions should span as few dimensions as it needs.

    loss = weight * mean over groups of ||D_g||_*

D_g [r, D] holds the directions of latents g r to (g + 1) r - 1, and ||.||_* is the sum of singular values: for unit
directions from sqrt(r), all parallel, to r, orthonormal. The penalty of SASA (arXiv 2606.06333), for groups as in
`BlockTopK`; a sum over groups there, a mean here, so that the weight does not depend on how many there are.

Singular values are the roots of the eigenvalues of D_g D_g^T, [r, r]: cheap for wide rows, and the gradient U V^T needs
no gaps between them. Those too small to be told from zero, in single precision a thousandth or so of the largest, count
as zero and have no gradient, the least subgradient.
"""

# Shape letters: D width, L latents of this shard, G groups of r latents.

import torch
from torch import Tensor
from torch.nn import Module

from saelab.sae.activations.block_topk import BlockTopK
from saelab.sae.base import Forward, Loss, Sizes


class NuclearNorm(Loss):
    """Lower the rank of groups of directions.

    Args:
        rank: latents in a group, as in `BlockTopK`; at least 1 and divides the number of latents of every shard.
        weight: of the mean nuclear norm in the objective.
    """

    def __init__(self, rank: int = 4, weight: float = 1e-2):
        Module.__init__(self)
        self.rank = rank
        self.weight = weight

    def setup(self, sizes: Sizes) -> None:
        if self.rank < 1 or sizes.local_latents % self.rank:
            where = "" if sizes.mesh.shards == 1 else " of a shard"
            raise ValueError(
                f"NuclearNorm: rank must divide the number of latents{where}, {sizes.local_latents}; got "
                f"rank={self.rank}"
            )
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"NuclearNorm: weight must not be negative, infinite or NaN, got {self.weight}")

    def forward(self, step: Forward) -> Tensor:
        activation, mesh = step.sae.activation, step.sae.mesh
        if isinstance(activation, BlockTopK) and activation.rank != self.rank:
            raise ValueError(f"NuclearNorm: rank must be that of BlockTopK, {activation.rank}; got rank={self.rank}")
        groups = step.sae.dictionary.directions().unflatten(0, (-1, self.rank))
        return self.weight * mesh.sum_over_shards(nuclear_norms(groups).sum()) / (len(groups) * mesh.shards)


def nuclear_norms(groups: Tensor) -> Tensor:
    """Sum of the singular values of each matrix; [G] from [G, r, D]."""
    with torch.autocast(groups.device.type, enabled=False):
        squares = torch.linalg.eigvalsh(groups @ groups.mT)  # [G, r], ascending
    noise = 4 * groups.shape[1] * torch.finfo(groups.dtype).eps * squares[:, -1:]
    real = squares > noise.detach()
    return squares.where(real, 1).sqrt().where(real, 0).sum(1)
