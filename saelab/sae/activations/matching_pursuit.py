"""Matching pursuit:  k times, take the latent that fits the residual best and subtract what it explains.

    r_1 = x - centre,  f = 0
    for t = 1 ... k:   i = argmax_j pre_j(r_t)      a = max(pre_i(r_t), 0)      f_i += a      r_{t+1} = r_t - a d_i

with pre(r) = W_enc r + b_enc and d_i the decoder's direction. It is the classic algorithm (Mallat & Zhang 1993), where
a is the projection of the residual on d_i, with `Dense(tied=True, encoder_bias=False)`, which is how Costa et al. 2025
(arXiv 2506.03093) encode as we read it; the residual's norm then never grows. A latent taken twice has one code, the
sum. The gradient passes through all values and residuals, not through the choices. k dense products per batch.
"""

# Shape letters: B rows, L latents, K steps.

import torch
from torch import Tensor
from torch.nn import Module

from saelab.core.codes import Codes
from saelab.kernels.decode import decode
from saelab.sae.base import Activation, PreActivations, Sizes


class MatchingPursuit(Activation):
    """Choose k latents one after the other, each for what the earlier ones left over. For SAEs, not transcoders.

    Args:
        k: steps, so the most latents active in a row; at least 1 and at most the number of latents.
        signed: whether a latent is chosen by absolute value and may be negative.
    """

    def __init__(self, k: int = 32, signed: bool = False):
        Module.__init__(self)
        self.k = k
        self.signed = signed

    def setup(self, sizes: Sizes) -> None:
        if not 1 <= self.k <= sizes.n_latents:
            raise ValueError(
                f"MatchingPursuit: k must be from 1 to the number of latents, {sizes.n_latents}; got k={self.k}"
            )
        if sizes.is_transcoder:
            raise ValueError("MatchingPursuit is for SAEs: a transcoder's directions are not in the rows that it reads")

    def forward(self, pre: PreActivations) -> Codes:
        residual, directions = pre.centred, pre.dictionary.directions()
        values, indices = [], []
        for step in range(self.k):
            best = pre.for_rows(residual).topk(1, absolute=self.signed)
            if not self.signed:
                best = best.with_values(best.values.relu())
            values.append(best.values)
            indices.append(best.indices)
            if step + 1 < self.k:
                # The sum is what all shards go on with, each for its own latents: hence `shared`.
                explained = pre.mesh.replicated(pre.mesh.sum_over_shards(decode(best, directions)))
                residual = residual - explained
        return merged(torch.cat(values, 1), torch.cat(indices, 1), pre.n_latents)


def merged(values: Tensor, indices: Tensor, n_latents: int) -> Codes:
    """Codes from entries [B, K] that may name a latent several times in a row: its values are added up."""
    indices, order = indices.sort(dim=1, stable=True)
    is_new = torch.zeros_like(indices)
    is_new[:, 1:] = indices[:, 1:] != indices[:, :-1]
    slots = is_new.cumsum(1)
    values = torch.zeros_like(values).scatter_add(1, slots, values.gather(1, order))
    return Codes(values, torch.zeros_like(indices).scatter(1, slots, indices), n_latents)
