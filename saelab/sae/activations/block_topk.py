"""BlockTopK:  latents in groups of `rank`; keep the k groups whose pre-activations have the largest norm.

    p_g = the pre-activations of latents g * rank ... (g + 1) * rank - 1
    f_i = pre_i  for i in the k groups of largest ||p_g||_2,  signed;  0 elsewhere              L0 = k * rank

The activation of SASA (arXiv 2606.06333), where a group is a subspace and p_g a point in it; there the encoder has no
bias, `Dense(encoder_bias=False)`, and `NuclearNorm` lowers the rank of groups that need less. The choice of groups
passes no gradient.
"""

# Shape letters: B rows, L latents, G groups of r latents, K groups kept per row.

import torch
from torch import Tensor
from torch.nn import Module

from saelab.core.codes import Codes
from saelab.sae.base import Activation, PreActivations, Sizes


class BlockTopK(Activation):
    """Keep the k groups of latents with the largest norm in each row; codes are signed.

    Args:
        k: groups kept per row, at least 1 and at most the number of groups.
        rank: latents in a group, at least 1; divides the number of latents of every shard.
    """

    def __init__(self, k: int = 8, rank: int = 4):
        Module.__init__(self)
        self.k = k
        self.rank = rank

    def setup(self, sizes: Sizes) -> None:
        if self.rank < 1 or sizes.local_latents % self.rank:
            where = "" if sizes.mesh.shards == 1 else " of a shard"
            raise ValueError(
                f"BlockTopK: rank must divide the number of latents{where}, {sizes.local_latents}; got rank={self.rank}"
            )
        n_groups = sizes.n_latents // self.rank
        if not 1 <= self.k <= n_groups:
            raise ValueError(f"BlockTopK: k must be from 1 to the number of groups, {n_groups}; got k={self.k}")

    def forward(self, pre: PreActivations) -> Codes:
        dense = pre.dense()
        norms, groups = self._norms(dense.detach()).topk(min(self.k, pre.n_latents // self.rank), dim=1)
        latents = groups[:, :, None] * self.rank + torch.arange(self.rank, device=dense.device)
        values = dense.gather(1, latents.flatten(1)).unflatten(1, (-1, self.rank))
        values = values.where(pre.mesh.largest(norms, self.k)[:, :, None], 0)
        return Codes(values.flatten(1), latents.flatten(1), pre.n_latents)

    def _norms(self, dense: Tensor) -> Tensor:
        """Of every group, [B, G]."""
        return dense.unflatten(1, (-1, self.rank)).norm(dim=2)
