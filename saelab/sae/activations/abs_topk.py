"""AbsTopK:  f = the k pre-activations of a row that are largest in absolute value, with their signs; others zero.

Zhu et al. 2025, "AbsTopK: Rethinking sparse autoencoders for bidirectional features" (arXiv 2510.00404): one latent can
stand for both ends of a contrast. L0 = k, but for pre-activations that are exactly zero.
"""

from torch.nn import Module

from saelab.core.codes import Codes
from saelab.sae.base import Activation, PlainActivation, PreActivations, Sizes


class AbsTopK(Activation):
    """Keep the k pre-activations of each row that are largest in absolute value; codes are signed.

    Args:
        k: latents kept per row, at least 1 and at most the number of latents.
    """

    def __init__(self, k: int = 32):
        Module.__init__(self)
        self.k = k

    def setup(self, sizes: Sizes) -> None:
        if not 1 <= self.k <= sizes.n_latents:
            raise ValueError(f"AbsTopK: k must be from 1 to the number of latents, {sizes.n_latents}; got k={self.k}")

    def forward(self, pre: PreActivations) -> Codes:
        return pre.topk(self.k, absolute=True)

    def plain(self) -> PlainActivation:
        return PlainActivation("abstopk", self.k)
