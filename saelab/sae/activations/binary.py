"""Binary:  f = s * h,   h = 1[pre > 0],   s = exp(log_size): each latent is on or off, at a size of its own.

    entropy = weight * sum_j H(p_j)       H(p) = -p log2 p - (1 - p) log2 (1 - p), p_j: mean of h_j over the batch

The Binary Autoencoder (Cho et al. 2025, arXiv 2509.20997) penalises the entropy of the bits over a batch, which favours
bits that are rarely on, or rarely off. The sum of the bits' own entropies, an upper bound of their joint entropy, is
our reading; a further term against correlated bits is left out. In training the step's derivative is replaced by the
sigmoid's, in the codes and in p alike. A bit that is the same on all rows costs nothing and gets no gradient from the
penalty, where H has no finite one.

Directions have unit norm here, so bits need sizes for a reconstruction of any scale: s is trained, and it is what grows
when input scaling is folded in, the bits staying what they are. It starts where random unit directions reconstruct
random rows best, s = sqrt(2 pi) D / (L + pi D). A latent that is always on counts as active on every row; from bits
that start on half of the time the penalty drives about as many to always on as to always off.

With rows dealt to replicas p is the mean over all rows; its gradient is right once gradients are averaged.
"""

# Shape letters: B rows, D input width, L latents.

import math

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from saelab.core.codes import Codes
from saelab.sae.base import Activation, Forward, PreActivations, Sizes


class Binary(Activation):
    """Latents are on, at a learned size, where their pre-activation is positive.

    Args:
        entropy: weight of the entropy of the bits over the batch, in bits, at least 0. Larger means sparser.
    """

    sharded = ("log_size",)

    def __init__(self, entropy: float = 1e-3):
        Module.__init__(self)
        self.entropy = entropy

    def setup(self, sizes: Sizes) -> None:
        if not 0 <= self.entropy < math.inf:
            raise ValueError(f"Binary: entropy must not be negative, infinite or NaN, got {self.entropy}")
        start = math.sqrt(2 * math.pi) * sizes.d_in / (sizes.n_latents + math.pi * sizes.d_in)
        self.log_size = Parameter(torch.full((sizes.local_latents,), math.log(start)))

    def forward(self, pre: PreActivations) -> Codes:
        return Codes.full((pre.dense() > 0) * self.log_size.exp())

    def forward_train(self, pre: PreActivations) -> Codes:
        return Codes.full(bits(pre.dense()) * self.log_size.exp())

    def penalties(self, step: Forward) -> dict[str, Tensor]:
        mesh, own = step.sae.mesh, bits(step.pre.dense()).mean(0)
        # The value of all replicas' rows with the gradient of this replica's.
        on = mesh.mean(own.detach()) + (own - own.detach())
        return {"entropy": self.entropy * mesh.sum_over_shards(entropies(on).sum())}

    @torch.no_grad()
    def rescale(self, factor: Tensor) -> None:
        self.log_size.add_(factor.log())


def bits(pre: Tensor) -> Tensor:
    """1 where a pre-activation is positive, else 0, with the gradient of a sigmoid; [B, L]."""
    soft = pre.sigmoid()
    return (pre > 0).to(pre.dtype) + (soft - soft.detach())


def entropies(on: Tensor) -> Tensor:
    """Entropy in bits of bits that are on with these probabilities [L]; no gradient where it is 0 or 1."""
    varies = (on > 0) & (on < 1)
    p = on.where(varies, 0.5)
    return (-(p * p.log2() + (1 - p) * (1 - p).log2())).where(varies, 0)
