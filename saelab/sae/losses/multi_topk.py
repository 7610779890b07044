"""Multi-TopK: the same pre-activations should also serve with more latents active.

    f_K  = ReLU(the K largest pre-activations of a row)
    loss = weight * mean (decode(f_K) - target)^2 / variance

Gao et al. 2024 (arXiv 2406.04093) train with L(k) + L(4k) / 8, so that the code is progressive: usable at any number of
active latents up to about 4k, where plain TopK gets worse beyond the k it was trained with. K is four times the
activation's k there; here it is given, and the activation gives L(k).
"""

from torch import Tensor
from torch.nn import Module

from saelab.sae.base import Forward, Loss, Sizes


class MultiTopK(Loss):
    """Reconstruct with a second, larger k as well.

    Args:
        k: latents kept per row for this term, at least 1 and at most the number of latents; 4 times the activation's.
        weight: of the term in the objective.
    """

    def __init__(self, k: int = 128, weight: float = 1 / 8):
        Module.__init__(self)
        self.k = k
        self.weight = weight

    def setup(self, sizes: Sizes) -> None:
        if not 1 <= self.k <= sizes.n_latents:
            raise ValueError(f"MultiTopK: k must be from 1 to the number of latents, {sizes.n_latents}; got k={self.k}")
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"MultiTopK: weight must not be negative, infinite or NaN, got {self.weight}")

    def forward(self, step: Forward) -> Tensor:
        codes = step.pre.topk(self.k)
        return self.weight * step.error(step.decode(codes.with_values(codes.values.relu())))
