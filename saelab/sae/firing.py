"""When each latent last fired, counted in rows."""

import torch
from torch import Tensor, nn

from saelab.core.codes import Codes


class Firing(nn.Module):
    """Rows seen since each latent was last active.

    Attributes:
        since: [L] int64; 0 for a latent active in the latest batch.
        rows: all rows seen in training.
    """

    since: Tensor
    rows: Tensor

    def __init__(self, n_latents: int):
        super().__init__()
        self.register_buffer("since", torch.zeros(n_latents, dtype=torch.int64))
        self.register_buffer("rows", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, codes: Codes) -> None:
        """Count a batch: latents active in it go to 0, the others age by its number of rows."""
        self.rows += len(codes)
        self.since += len(codes)
        self.since[codes.indices[codes.active]] = 0

    def dead(self, after: int) -> Tensor:
        """Latents active in none of the last `after` rows; [L] bool."""
        return self.since >= after
