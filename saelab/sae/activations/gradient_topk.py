"""GradientTopK:  in training, prefer latents whose direction changes the model's loss.

    training:  f = ReLU(pre) of the k largest of  pre_i + beta * pre_i |d_i . g|
    reading:   f = ReLU(pre) of the k largest of  pre_i

with d_i the direction of latent i and g the gradient of the model's loss at the row.

The selection of Gradient SAEs (arXiv 2411.10397), as we read it. g comes with the training data; where it is missing,
learning is plain TopK. It is used as it comes, so beta is in units of one over it: a loss that is a mean over many
tokens needs a larger beta than one that is a sum. The choice passes no gradient, the values do.
"""

# Shape letters: B rows, D width, L latents, K kept per row.

import torch
from torch import Tensor
from torch.nn import Module

from saelab.core.codes import Codes
from saelab.sae.base import Activation, PreActivations, Sizes


class GradientTopK(Activation):
    """Keep k latents per row; those learnt from are chosen by their effect on the loss as well. Not for transcoders.

    Args:
        k: latents kept per row, at least 1 and at most the number of latents.
        beta: weight of the effect on the loss in the choice, at least 0; 0 is plain TopK.
    """

    def __init__(self, k: int = 32, beta: float = 1.0):
        Module.__init__(self)
        self.k = k
        self.beta = beta

    def setup(self, sizes: Sizes) -> None:
        if not 1 <= self.k <= sizes.n_latents:
            raise ValueError(
                f"GradientTopK: k must be from 1 to the number of latents, {sizes.n_latents}; got k={self.k}"
            )
        if not 0 <= self.beta < float("inf"):
            raise ValueError(f"GradientTopK: beta must not be negative, infinite or NaN, got {self.beta}")
        if sizes.is_transcoder:
            raise ValueError("GradientTopK is for SAEs: a transcoder's directions are not in the rows that it reads")

    def forward(self, pre: PreActivations) -> Codes:
        codes = pre.topk(self.k)
        return codes.with_values(codes.values.relu())

    def forward_train(self, pre: PreActivations) -> Codes:
        if pre.gradient is None:
            return self(pre)
        dense = pre.dense()
        with torch.no_grad():
            scores, latents = self._scores(pre, pre.gradient).topk(min(self.k, pre.n_latents), dim=1)
            kept = pre.mesh.largest(scores, self.k)
        return Codes(dense.gather(1, latents).relu().where(kept, 0), latents, pre.n_latents)

    def _scores(self, pre: PreActivations, gradient: Tensor) -> Tensor:
        """What latents are chosen by, [B, L]."""
        directions = pre.dictionary.directions()
        effect = (gradient.to(directions.dtype) @ directions.T).abs()
        return pre.dense() * (1 + self.beta * effect)
