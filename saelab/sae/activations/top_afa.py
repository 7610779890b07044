"""Top-AFA:  keep as many latents as it takes for the norm of a row's codes to come nearest to the row's own norm.

    acts = ReLU(pre),   s_j = (acts_j ||d_j||)^2,   a = ||x - b_dec||_2
    order the latents by s, largest first;   c_m = s_1 + ... + s_m for m < L
    k = argmin over 1 <= m < L of |sqrt(c_m) - a|,     f = acts of the first k, 0 elsewhere

Lee et al. 2025 (arXiv 2503.24277), sae.py of the authors' code: if directions were orthonormal and the reconstruction
exact, the two norms would be equal. As there, k is the nearest and not the first to exceed, at least one latent is kept
and never all (theirs by a sentinel, c_L = 1e8); where all positive latents together are too short, all are kept but,
if there are L of them, the smallest. There the encoder has no bias, `Dense(encoder_bias=False)`, rows are
layer-normalised, and the `NormMatch` loss trains the norm. The choice passes no gradient, the values do.

Sorts all L pre-activations of every row; on several shards each holds them all.
"""

# Shape letters: B rows, L latents.

import torch
from torch import Tensor
from torch.nn import Module

from saelab.core.codes import Codes
from saelab.sae.base import Activation, PreActivations, Sizes


class TopAFA(Activation):
    """Keep the largest contributions of each row, up to the row's own norm. Has no setting; not for transcoders."""

    def __init__(self) -> None:
        Module.__init__(self)

    def setup(self, sizes: Sizes) -> None:
        if sizes.is_transcoder:
            raise ValueError("TopAFA is for SAEs: the norm of a transcoder's input says nothing about its codes")

    def forward(self, pre: PreActivations) -> Codes:
        acts = pre.dense().relu()
        with torch.no_grad():
            norms = pre.dictionary.directions().norm(dim=1)
            contributions = acts.to(norms.dtype) * norms
            every = pre.mesh.gather_latents(contributions.T).T
            chosen = nearest_norm(every, pre.centred.norm(dim=1))
            first = pre.mesh.shard * pre.n_latents
            own = chosen[:, first : first + pre.n_latents]
        return Codes.full(acts.where(own, 0))


def nearest_norm(contributions: Tensor, wanted: Tensor) -> Tensor:
    """Which of the largest contributions [B, L] have together the norm nearest to the one wanted [B]; [B, L] bool."""
    sizes, order = contributions.sort(dim=1, descending=True, stable=True)
    squares = sizes.square().cumsum(1)
    squares[:, -1] = torch.inf  # never all
    last = (squares.sqrt() - wanted[:, None]).abs().argmin(dim=1, keepdim=True)
    kept = torch.arange(order.shape[1], device=order.device) <= last
    return torch.zeros_like(kept).scatter(1, order, kept)
