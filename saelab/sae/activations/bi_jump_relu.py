"""Bi-Jump-ReLU: one latent for both poles of a direction; codes are signed.

    u    = pre
    f    = e^r_mag * u * 1[u > r_plus or u < -r_minus]           r_plus = exp(log_plus), r_minus = exp(log_minus)
    soft = ReLU(u - r_plus) - ReLU(-u - r_minus)                  the same gate, closing gradually
    sparsity = l1 * mean over rows of  sum_i |soft_i| ||d_i|| / ||x||_2
    gate     = mean (target - decode(soft))^2 / variance          decoder frozen

The activation of the sign-aware gated SAE (Wieciech et al. 2026, arXiv 2605.28149): a gate open on either sign, a
signed magnitude, an auxiliary reconstruction through a softened gate as in `Gated`, without which their latents died.
One threshold for both signs (`tied`) is what they recommend. Both thresholds learn through straight-through estimates
with a rectangle (`saelab.sae.straight_through`), as in `JumpReLU`, and from the softened gate.

Our choices, where we know no published formula: the signed shrinkage as the softened gate; e^r_mag, one a latent and 1
at the start, as the whole of the magnitude's path, so that what the softened gate shrinks need not shrink codes; the
division by the norm of the row, as for `ReLU`.
"""

# Shape letters: B rows, L latents.

import math

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from saelab.core.codes import Codes
from saelab.sae.base import Activation, Forward, PreActivations, Sizes
from saelab.sae.sparsity import weighted_l1
from saelab.sae.straight_through import jump


class BiJumpReLU(Activation):
    """Keep pre-activations beyond a learned threshold on either side of zero, with their sign.

    Args:
        l1: weight of the L1 penalty of the softened gate, at least 0. Larger means sparser.
        tied: whether one threshold serves both signs of a latent.
        threshold: where every threshold starts, positive.
        bandwidth: width of the rectangle around a threshold whose rows move it, in the unit of pre-activations.
        frozen: whether the reconstruction through the softened gate leaves the decoder alone.
    """

    sharded = ("r_mag", "log_plus", "log_minus")

    def __init__(
        self,
        l1: float = 1e-2,
        tied: bool = True,
        threshold: float = 0.1,
        bandwidth: float = 0.1,
        frozen: bool = True,
    ):
        Module.__init__(self)
        self.l1 = l1
        self.tied = tied
        self.threshold = threshold
        self.bandwidth = bandwidth
        self.frozen = frozen

    def setup(self, sizes: Sizes) -> None:
        if not 0 <= self.l1 < math.inf:
            raise ValueError(f"BiJumpReLU: l1 must not be negative, infinite or NaN, got {self.l1}")
        for name in ("threshold", "bandwidth"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"BiJumpReLU: {name} must be positive and finite, got {getattr(self, name)}")
        self.r_mag = Parameter(torch.zeros(sizes.local_latents))
        self.log_plus = Parameter(torch.full((sizes.local_latents,), math.log(self.threshold)))
        if not self.tied:
            self.log_minus = Parameter(self.log_plus.detach().clone())

    @property
    def both_thresholds(self) -> tuple[Tensor, Tensor]:
        """How far above zero and how far below it a latent opens, each [L] and positive."""
        plus = self.log_plus.exp()
        return plus, plus if self.tied else self.log_minus.exp()

    def forward(self, pre: PreActivations) -> Codes:
        u, (plus, minus) = pre.dense(), self.both_thresholds
        return Codes.full(u.where((u > plus) | (-u > minus), 0) * self.r_mag.exp())

    def forward_train(self, pre: PreActivations) -> Codes:
        u, (plus, minus) = pre.dense(), self.both_thresholds
        both = jump(u, plus, self.bandwidth) - jump(-u, minus, self.bandwidth)
        return Codes.full(both * self.r_mag.exp())

    def penalties(self, step: Forward) -> dict[str, Tensor]:
        u, (plus, minus) = step.pre.dense(), self.both_thresholds
        soft = (u - plus).relu() - (-u - minus).relu()
        return {
            "sparsity": self.l1 * weighted_l1(step, soft),
            "gate": step.error(step.decode(Codes.full(soft), frozen=self.frozen)),
        }

    @torch.no_grad()
    def rescale(self, factor: Tensor) -> None:
        self.log_plus.add_(factor.log())
        if not self.tied:
            self.log_minus.add_(factor.log())
