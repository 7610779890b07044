"""When each latent last fired, counted in rows."""

import torch
from torch import Tensor, nn

from saelab.core.codes import Codes
from saelab.core.mesh import ALONE, Mesh


class Firing(nn.Module):
    """Rows seen since each latent was last active.

    Attributes:
        since: [L] int64; 0 for a latent active in the latest batch.
        rows: all rows seen in training.
    """

    sharded = ("since",)
    since: Tensor
    rows: Tensor

    def __init__(self, n_latents: int, mesh: Mesh = ALONE):
        super().__init__()
        self.mesh = mesh
        self.register_buffer("since", torch.zeros(n_latents, dtype=torch.int64))
        self.register_buffer("rows", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, codes: Codes) -> None:
        """Count a batch: latents active in it, on any replica, go to 0; the others age by its number of rows."""
        rows = len(codes) * self.mesh.replicas
        self.rows += rows
        self.since += rows
        self.since[codes.indices[codes.active]] = 0
        self.mesh.smallest(self.since)

    def dead(self, after: int) -> Tensor:
        """Latents active in none of the last `after` rows; [L] bool."""
        return self.since >= after
