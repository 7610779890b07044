"""The L1 penalty that activations share:  mean over rows of  sum_i |m_i| ||d_i|| / ||x||_2.

The normalised L1 of Gao et al. 2024's baseline (arXiv 2406.04093, loss.py of the authors' code), weighted by the norms
of the directions d_i so that it cannot be escaped by shrinking codes and growing directions (Conerly et al. 2024). Rows
x are the scaled input. The magnitudes m are the codes, or whatever an activation keeps sparse in their place.
"""

# Shape letters: B rows, L latents.

from torch import Tensor

from saelab.sae.base import Forward

TINY = 1e-12
"""Keeps the quotient finite on an all-zero row."""


def weighted_l1(step: Forward, magnitudes: Tensor) -> Tensor:
    """The penalty of magnitudes [B, L] (this shard's latents, every latent in order), a scalar; over all shards."""
    size = step.sae.mesh.sum_over_shards((magnitudes.abs() * step.sae.dictionary.norms()).sum(1))
    return (size / step.x.norm(dim=1).clamp_min(TINY)).mean()
