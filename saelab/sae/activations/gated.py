"""Gated:  which latents are active and how strongly are decided apart, so that sparsity does not shrink codes.

    pi   = pre = W (x - centre) + b_gate                          the gate's pre-activation
    f    = 1[pi > 0] * ReLU(e^r_mag * (pi - b_gate) + b_mag)      r_mag, b_mag: one a latent, zero at the start
    sparsity = l1 * mean over rows of  sum_i ReLU(pi_i) ||d_i|| / ||x||_2
    gate     = mean (target - decode(ReLU(pi)))^2 / variance      decoder frozen: it teaches the gate only

Rajamanoharan et al. 2024 (arXiv 2404.16014). The gate's step passes no gradient: the gate learns from the two penalties
alone, through ReLU(pi). As in the paper the second reconstruction weighs as much as the first and its decoder, bias
included, is a frozen copy; `frozen=False` trains it too, as some code does. The sparsity penalty is divided by the norm
of the row, unlike there, so that l1 means the same as for `ReLU`.

Not for transcoders: folding their input scaling moves the mean into b_gate, which the magnitude must not see.
"""

# Shape letters: B rows, L latents.

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from saelab.core.codes import Codes
from saelab.sae.base import Activation, Forward, PlainActivation, PreActivations, Sizes
from saelab.sae.sparsity import weighted_l1


class Gated(Activation):
    """Latents are active where their pre-activation is positive, with a magnitude that has its own scale and bias.

    Args:
        l1: weight of the L1 penalty of the gate's pre-activations, at least 0. Larger means sparser.
        frozen: whether the gate's own reconstruction leaves the decoder alone.
    """

    sharded = ("r_mag", "b_mag")

    def __init__(self, l1: float = 1e-2, frozen: bool = True):
        Module.__init__(self)
        self.l1 = l1
        self.frozen = frozen

    def setup(self, sizes: Sizes) -> None:
        if not 0 <= self.l1 < float("inf"):
            raise ValueError(f"Gated: l1 must not be negative, infinite or NaN, got {self.l1}")
        if sizes.is_transcoder:
            raise ValueError(
                "Gated: is for SAEs, not for transcoders (d_out): a folded bias would hold their input mean"
            )
        self.r_mag = Parameter(torch.zeros(sizes.local_latents))
        self.b_mag = Parameter(torch.zeros(sizes.local_latents))

    def forward(self, pre: PreActivations) -> Codes:
        gate = pre.dense()
        magnitude = ((gate - pre.bias) * self.r_mag.exp() + self.b_mag).relu()
        return Codes.full(magnitude.where(gate > 0, 0))

    def penalties(self, step: Forward) -> dict[str, Tensor]:
        soft = step.pre.dense().relu()
        return {
            "sparsity": self.l1 * weighted_l1(step, soft),
            "gate": step.error(step.decode(Codes.full(soft), frozen=self.frozen)),
        }

    @torch.no_grad()
    def rescale(self, factor: Tensor) -> None:
        self.b_mag.mul_(factor)

    def plain(self) -> PlainActivation:
        return PlainActivation("gated", parts={"r_mag": self.r_mag.detach(), "b_mag": self.b_mag.detach()})
