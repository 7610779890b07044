"""ReLU with an L1 penalty:  f = max(pre, 0),   penalty = l1 * mean over rows of  sum_i f_i ||d_i|| / ||x||_2.

The normalised L1 of Gao et al. 2024's baseline (arXiv 2406.04093, loss.py of the authors' code), weighted by the norms
of the directions d_i so that it cannot be escaped by shrinking codes and growing directions (Conerly et al. 2024).
Rows x are the scaled input; all-zero ones add nothing.
"""

import torch
from torch import Tensor
from torch.nn import Module

from saelab.core.codes import Codes
from saelab.sae.base import Activation, Forward, PlainActivation, PreActivations, Sizes
from saelab.sae.sparsity import over_norms


class ReLU(Activation):
    """Keep every positive pre-activation; the number active varies from row to row.

    Args:
        l1: weight of the L1 penalty, at least 0. Larger means sparser.
    """

    def __init__(self, l1: float = 1e-2):
        Module.__init__(self)
        self.l1 = l1

    def setup(self, sizes: Sizes) -> None:
        if not 0 <= self.l1 < float("inf"):
            raise ValueError(f"ReLU: l1 must not be negative, infinite or NaN, got {self.l1}")

    def forward(self, pre: PreActivations) -> Codes:
        return pre.above(torch.zeros_like(pre.bias))

    def forward_train(self, pre: PreActivations) -> Codes:
        return Codes.full(pre.dense().relu())

    def penalties(self, step: Forward) -> dict[str, Tensor]:
        norms = step.sae.dictionary.norms()[step.codes.indices]
        size = step.sae.mesh.sum_over_shards((step.codes.values.abs() * norms).sum(1))
        return {"sparsity": self.l1 * over_norms(size, step.x)}

    def thresholds(self) -> Tensor:
        return torch.zeros((), dtype=torch.float64)

    def plain(self) -> PlainActivation:
        return PlainActivation("relu")
