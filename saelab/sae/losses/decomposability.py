"""Decomposability: directions that a meta-SAE explains well are not atomic, and pay for it.

    m_j  = meta(d_j)                                         another, small SAE, whose rows are the directions d_j
    loss = weight * mean over j of exp(-||d_j - sg(m_j)||^2 / sigma^2)      moves the directions
         + mean over j of ||sg(d_j) - m_j||^2 / variance of d_j             trains the meta-SAE

sg passes no gradient, so the SAE learns from the first term only and the meta-SAE from the second only. Joint training
of Levinson 2026 (arXiv 2604.03436): weight 1e-3, a meta-SAE of 4096 latents with k = 4; sigma = 1 is the default of the
author's code. The paper alternates some steps of the one with some of the other; here both move in every step, under
one optimizer. The meta-SAE is TopK there and here without its BatchTopK threshold and without AuxK.

Every step puts all L directions through the meta-SAE: as much work as encoding L rows with it. With shards its latents
are dealt out like the SAE's, and each shard sees the directions of all.
"""

# Shape letters: D output width, L latents of all shards, M latents of the meta-SAE.

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import Module

from saelab.sae.activations.topk import TopK
from saelab.sae.base import Forward, Loss, Sizes
from saelab.sae.dictionaries.dense import Dense
from saelab.sae.losses.auxk import normalised_error

SEED = 0x5AE
"""Sets the meta-SAE's start apart from the SAE's: from the same numbers it would begin as a copy of its directions."""


class Decomposability(Loss):
    """Train a meta-SAE on the directions, and drive them away from what it reconstructs.

    Args:
        n_meta: latents of the meta-SAE; by default a quarter of the SAE's.
        k: meta-latents kept per direction.
        weight: of the penalty on the directions; the meta-SAE's own term weighs 1.
        sigma: reconstruction error, as a distance, at which the penalty has fallen to 1/e; directions have norm 1.
    """

    def __init__(self, n_meta: int | None = None, k: int = 4, weight: float = 1e-3, sigma: float = 1.0):
        Module.__init__(self)
        self.n_meta = n_meta
        self.k = k
        self.weight = weight
        self.sigma = sigma

    def setup(self, sizes: Sizes) -> None:
        shards = sizes.mesh.shards
        n_meta = max(sizes.local_latents // 4, -(-self.k // shards)) * shards if self.n_meta is None else self.n_meta
        if n_meta < 1 or n_meta % shards:
            raise ValueError(f"Decomposability: n_meta must be positive and divide by {shards} shards, got {n_meta}")
        if not 1 <= self.k <= n_meta:
            raise ValueError(f"Decomposability: k must be from 1 to the meta-SAE's {n_meta} latents, got {self.k}")
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"Decomposability: weight must not be negative, infinite or NaN, got {self.weight}")
        if not 0 < self.sigma < float("inf"):
            raise ValueError(f"Decomposability: sigma must be positive and finite, got {self.sigma}")
        inner = Sizes(sizes.d_out, sizes.d_out, n_meta, seed=sizes.seed + SEED, mesh=sizes.mesh)
        self.meta, self.choose = Dense(), TopK(self.k)
        self.meta.setup(inner)
        self.choose.setup(inner)
        nothing = torch.zeros(1, sizes.d_out)  # directions have no known mean yet; probes set the encoder's scale
        self.meta.initialise(nothing, nothing, self.choose, replace(inner, seed=inner.seed + 1).generator())

    def forward(self, step: Forward) -> Tensor:
        mesh, own = step.sae.mesh, step.sae.dictionary.directions()
        directions = mesh.gather_latents(own).detach()
        rebuilt = self.rebuild(directions)
        gaps = (own - mesh.local_latents(rebuilt.detach())).square().sum(1)
        explained = mesh.sum_over_shards((-gaps / self.sigma**2).exp().sum()) / len(directions)
        return self.weight * explained + normalised_error(rebuilt, directions)

    def rebuild(self, directions: Tensor) -> Tensor:
        """The meta-SAE's reconstruction of directions [n, D]."""
        return self.meta.decode(self.choose(self.meta.pre(directions)))

    def before_step(self) -> None:
        self.meta.before_step()

    def after_step(self) -> None:
        self.meta.after_step()
