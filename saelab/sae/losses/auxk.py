"""AuxK: dead latents learn to reconstruct what the others leave over.

    e     = target - x_hat                                   (no gradient)
    f_aux = ReLU(the k_aux largest pre-activations among dead latents)
    e_hat = decode(f_aux)
    loss  = weight * mean (e_hat - e)^2 / mean (e - e_bar)^2      e_bar: the batch mean of e

Gao et al. 2024 (arXiv 2406.04093), train.py of the authors' code: weight 1/32, k_aux a power of two near D / 2. As
there, both sides carry the decoder's bias and only e_hat's passes a gradient. A latent is dead when it was active on no
row of the last `dead_after` rows, the current batch included; of their 10 M, a run has at most an eighth of its rows.
Zero, with no gradient, when nothing is dead.

k_aux is far larger than k, so on every row this term would cost more than all the rest where many latents are dead. It
is taken on the first rows of the batch, which has no order; the mean over them estimates the mean over all.
"""

# Shape letters: B rows this term is taken on, D input width, N dead latents.

import math

import torch
from torch import Tensor
from torch.nn import Module

from saelab.core.codes import Codes
from saelab.core.mesh import ALONE, Mesh
from saelab.sae.base import Forward, Loss, Sizes
from saelab.sae.firing import SHARE

LEAST_ROWS = 200
"""Fewer would say too little of how the residual varies."""


class AuxK(Loss):
    """Revive dead latents by a second reconstruction, of the residual, with dead latents only.

    Args:
        k_aux: dead latents kept per row; by default the power of two nearest to D / 2.
        weight: of the term in the objective.
        dead_after: rows (tokens) without firing after which a latent counts as dead; by default an eighth of the run's,
            at most 10 M.
        share: of the batch's rows that the term is taken on, above 0 and at most 1; but at least 200 rows.
    """

    def __init__(
        self, k_aux: int | None = None, weight: float = 1 / 32, dead_after: int | None = None, share: float = 0.1
    ):
        Module.__init__(self)
        self.k_aux = k_aux
        self.weight = weight
        self.dead_after = dead_after
        self.share = share

    def setup(self, sizes: Sizes) -> None:
        if self.k_aux is not None and self.k_aux < 1:
            raise ValueError(f"AuxK: k_aux must be at least 1, got {self.k_aux}")
        if self.dead_after is not None and self.dead_after < 1:
            raise ValueError(f"AuxK: dead_after must be at least 1 row, got {self.dead_after}")
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"AuxK: weight must not be negative, infinite or NaN, got {self.weight}")
        if not 0 < self.share <= 1:
            raise ValueError(f"AuxK: share must be above 0 and at most 1, got {self.share}")
        self.width = self.k_aux or 2 ** round(torch.tensor(max(sizes.d_in / 2, 1)).log2().item())

    def no_effect_warning(self, rows: int) -> str | None:
        if self.dead_after is None or self.dead_after < rows:
            return None
        reach = f"leave dead_after out for an eighth of them, {max(1, rows // SHARE):,}"
        return f"AuxK has no effect: in {rows:,} rows no latent is silent for dead_after = {self.dead_after:,}; {reach}"

    def forward(self, step: Forward) -> Tensor:
        sae = step.sae
        dead = sae.firing.dead(self.dead_after).nonzero().squeeze(1)
        if not sae.mesh.total(dead.new_tensor(len(dead))):
            return step.x_hat.new_zeros(())
        rows = max(LEAST_ROWS, math.ceil(self.share * len(step.target)))
        error = (step.target[:rows] - step.x_hat[:rows]).detach()
        values, slots = step.pre.first(rows).for_latents(dead).topk(min(self.width, len(dead)), dim=1, sorted=False)
        values = values.relu().where(sae.mesh.largest(values, self.width), 0)
        codes = Codes(values, slots, len(dead))
        target = error + sae.dictionary.bias().detach()
        return self.weight * normalised_error(sae.dictionary.decode_among(codes, dead), target, sae.mesh)


def normalised_error(x_hat: Tensor, target: Tensor, mesh: Mesh = ALONE) -> Tensor:
    """Squared error over that of always predicting the batch mean; 0 where the target does not vary at all."""
    variance = mesh.mean((target - mesh.mean(target.mean(0))).square().mean())
    # Below this the variance is rounding of a target that does not vary.
    noise = mesh.mean(target.square().mean()) * (4 * torch.finfo(target.dtype).eps) ** 2
    error = (x_hat - target).square().mean() / variance.clamp_min(torch.finfo(target.dtype).tiny)
    return torch.where(variance > noise, error, 0.0)
