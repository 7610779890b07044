"""When each latent last fired, counted in rows."""

import torch
from torch import Tensor, nn

from saelab.core.codes import Codes
from saelab.core.mesh import ALONE, Mesh

LONGEST, SHARE = 10_000_000, 8
"""Rows without firing after which a latent counts as dead where nothing else is said: those of Gao et al. 2024, or an
eighth of the run, which one shorter than 80 M rows would otherwise hardly reach."""
MEASURED_SHARE = 4
"""Of all rows seen in training, the share 1 / 4 bounds the horizon by which a finished SAE's dead latents are told."""


class Firing(nn.Module):
    """Rows seen since each latent was last active.

    Attributes:
        planned: rows of the whole run, where they are known.
        since: [L] int64; 0 for a latent active in the latest batch.
        rows: all rows seen in training.
    """

    sharded = ("since",)
    since: Tensor
    rows: Tensor

    def __init__(self, n_latents: int, mesh: Mesh = ALONE):
        super().__init__()
        self.mesh = mesh
        self.planned: int | None = None
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

    def dead(self, after: int | None) -> Tensor:
        """Latents active in none of the last `after` rows, by default as many as `window` says; [L] bool."""
        return self.since >= (self.window if after is None else after)

    @property
    def window(self) -> int:
        """An eighth of the run's rows, at most 10 M and at least 1; 10 M where its length is not known."""
        return LONGEST if self.planned is None else max(1, min(LONGEST, self.planned // SHARE))

    @property
    def horizon(self) -> int:
        """Rows without firing after which a latent of a trained SAE is dead: 10 M or a quarter of those seen.

        0 where there is no history of training.
        """
        return min(LONGEST, int(self.rows) // MEASURED_SHARE)
