"""TopK:  f = ReLU(the k largest pre-activations of a row, the others set to zero).

Gao et al. 2024, "Scaling and evaluating sparse autoencoders" (arXiv 2406.04093), as in the authors' code. L0 <= k
always; fewer than k latents are active where fewer than k pre-activations are positive.
"""

from torch.nn import Module

from saelab.core.codes import Codes
from saelab.sae.base import Activation, PlainActivation, PreActivations, Sizes


class TopK(Activation):
    """Keep the k largest pre-activations of each row, through a ReLU.

    Args:
        k: latents kept per row, at least 1 and at most the number of latents.
    """

    def __init__(self, k: int = 32):
        Module.__init__(self)
        self.k = k

    def setup(self, sizes: Sizes) -> None:
        if not 1 <= self.k <= sizes.n_latents:
            raise ValueError(f"TopK: k must be from 1 to the number of latents, {sizes.n_latents}; got k={self.k}")

    @property
    def topk_k(self) -> int:
        return self.k

    def forward(self, pre: PreActivations) -> Codes:
        codes = pre.topk(self.k)
        return codes.with_values(codes.values.relu())

    def thresholds(self) -> None:
        """None: a row keeps its k largest."""

    def plain(self) -> PlainActivation:
        return PlainActivation("topk", self.k)
