"""The L1 penalty that activations share:  mean over rows of  sum_i |m_i| ||d_i|| / ||x||_2.

The normalised L1 of Gao et al. 2024's baseline (arXiv 2406.04093, loss.py of the authors' code), weighted by the norms
of the directions d_i so that it cannot be escaped by shrinking codes and growing directions (Conerly et al. 2024). Rows
x are the scaled input. The magnitudes m are the codes, or whatever an activation keeps sparse in their place.
"""

# Shape letters: B rows, L latents.

from torch import Tensor

from saelab.sae.base import Forward

TINY = 1e-12
"""A row of a smaller norm has none to divide by, and counts as zero."""


def weighted_l1(step: Forward, magnitudes: Tensor) -> Tensor:
    """The penalty of magnitudes [B, L] (this shard's latents, every latent in order), a scalar; over all shards."""
    size = step.sae.mesh.sum_over_shards((magnitudes.abs() * step.sae.dictionary.norms()).sum(1))
    return over_norms(size, step.x)


def over_norms(size: Tensor, x: Tensor) -> Tensor:
    """Mean over rows x [B, D] of size [B] / ||x||, a scalar; all-zero rows add nothing to the sum."""
    norms = x.norm(dim=1)
    return (size / norms.clamp_min(TINY)).where(norms > TINY, 0).mean()
