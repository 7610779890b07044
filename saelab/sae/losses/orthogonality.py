"""Orthogonality: no direction should have a near twin.

    loss = weight * mean over i of  max over j in i's chunk, j != i, of  cos(d_i, d_j)^2

OrtSAE, Korznikov et al. 2025 (arXiv 2509.22033), as we read it: every step deals the latents to random chunks and looks
for the nearest other direction within the chunk only, so that a step costs O(L * chunk) and every pair meets in time.
The default weight and chunk are our choice.

The search for the nearest runs without gradients, one chunk at a time; the gradient then is that of L cosines. Every
shard looks through the directions of all shards, so that sharding changes nothing.
"""

# Shape letters: D output width, L latents of all shards.

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from saelab.core.mesh import Mesh
from saelab.sae.base import Forward, Loss, Sizes
from saelab.sae.losses.matryoshka import drawn_for


class Orthogonality(Loss):
    """Penalise the nearest other direction among a random chunk of them.

    Args:
        chunk: most latents that are compared with each other in a step, at least 2.
        weight: of the term in the objective.
    """

    def __init__(self, chunk: int = 1024, weight: float = 0.25):
        Module.__init__(self)
        self.chunk = chunk
        self.weight = weight

    def setup(self, sizes: Sizes) -> None:
        if self.chunk < 2:
            raise ValueError(f"Orthogonality: chunk must be at least 2 latents, got {self.chunk}")
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"Orthogonality: weight must not be negative, infinite or NaN, got {self.weight}")

    def forward(self, step: Forward) -> Tensor:
        unit = F.normalize(all_directions(step.sae.dictionary.directions(), step.sae.mesh), dim=1)
        nearest = nearest_in(unit.detach(), self.chunks(step, len(unit)))
        cosines = (unit * unit[nearest]).sum(1)
        alone = nearest == torch.arange(len(unit), device=unit.device)
        return self.weight * cosines.square().masked_fill(alone, 0).mean()

    def chunks(self, step: Forward, n_latents: int) -> list[Tensor]:
        """This step's random partition of the latents, in parts of nearly equal size."""
        order = torch.randperm(n_latents, generator=drawn_for(step)).to(step.x.device)
        return list(order.tensor_split(-(-n_latents // self.chunk)))


def all_directions(own: Tensor, mesh: Mesh) -> Tensor:
    """Directions of all shards [L, D]; only this shard's own pass a gradient."""
    if mesh.shards == 1:
        return own
    parts = list(mesh.gather_latents(own).chunk(mesh.shards))
    parts[mesh.shard] = own
    return torch.cat(parts)


@torch.no_grad()
def nearest_in(unit: Tensor, chunks: list[Tensor]) -> Tensor:
    """For each unit direction [L, D] the number of the other one of its chunk with the largest |cosine|; [L].

    Itself, where it is alone in its chunk.
    """
    nearest = torch.empty(len(unit), dtype=torch.int64, device=unit.device)
    for chunk in chunks:
        cosines = (unit[chunk] @ unit[chunk].T).abs().fill_diagonal_(-1)
        nearest[chunk] = chunk[cosines.argmax(1)]
    return nearest
