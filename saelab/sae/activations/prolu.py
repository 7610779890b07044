"""ProLU:  f = m * 1[m + b > 0 and m > 0],   m = pre - b = W (x - centre),   b: the latents' bias.

The bias decides whether a latent is active but does not move its code, so codes stay in proportion to their rows
(Taggart 2024, "ProLU: A Nonlinearity for Sparse Autoencoders", as we read it). The bias has no true gradient; the two
published stand-ins, with g = 1[m + b > 0 and m > 0]:

    relu   df/dm = g              df/db = g           as if it were a ReLU
    ste    df/dm = g * (1 + m)    df/db = g * m       the step's derivative taken to be that of a ReLU, in m and in b

    penalty = l1 * mean over rows of  sum_i f_i ||d_i|| / ||x||_2       as for `ReLU`

A positive bias acts as none. Not for transcoders: folding their input scaling moves the mean into b, which m must not
see.
"""

# Shape letters: B rows, L latents.

from torch import Tensor
from torch.nn import Module

from saelab.core.codes import Codes
from saelab.core.components import near_miss
from saelab.sae.base import Activation, Forward, PreActivations, Sizes
from saelab.sae.sparsity import weighted_l1

GRADIENTS = ("relu", "ste")


class ProLU(Activation):
    """Keep what is positive both with and without the latent's bias, and return it without.

    Args:
        l1: weight of the L1 penalty, at least 0. Larger means sparser.
        gradient: what stands in for the bias's gradient, "relu" or "ste".
    """

    def __init__(self, l1: float = 1e-2, gradient: str = "relu"):
        Module.__init__(self)
        self.l1 = l1
        self.gradient = gradient

    def setup(self, sizes: Sizes) -> None:
        if not 0 <= self.l1 < float("inf"):
            raise ValueError(f"ProLU: l1 must not be negative, infinite or NaN, got {self.l1}")
        if self.gradient not in GRADIENTS:
            raise ValueError(f"ProLU: unknown gradient '{self.gradient}'{near_miss(self.gradient, GRADIENTS)}")
        if sizes.is_transcoder:
            raise ValueError(
                "ProLU: is for SAEs, not for transcoders (d_out): a folded bias would hold their input mean"
            )

    def forward(self, pre: PreActivations) -> Codes:
        m = pre.dense() - pre.bias
        return Codes.full(m.where((pre.dense() > 0) & (m > 0), 0))

    def forward_train(self, pre: PreActivations) -> Codes:
        m = pre.dense() - pre.bias
        # A summand or factor of the form (a - a.detach()) is worth nothing but its gradient.
        if self.gradient == "relu":
            kept = m + (pre.bias - pre.bias.detach())
        else:
            kept = m * (1 + (pre.dense() - pre.dense().detach()))
        return Codes.full(kept.where((pre.dense() > 0) & (m > 0), 0))

    def penalties(self, step: Forward) -> dict[str, Tensor]:
        return {"sparsity": self.l1 * weighted_l1(step, step.codes.dense())}
