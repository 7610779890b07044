"""Dense latents: those active on many rows, and how many of them come in opposite pairs.

    dense          latents with density above `cut`
    antipodality   of latent i: largest  cos(e_i, e_l) cos(d_i, d_l)  over latents l of which both cosines are negative;
                   e encoder rows, d directions; 1 for an exactly opposite pair, 0 if there is none

Sun et al. 2025 (arXiv 2506.15679), as we read it: dense latents tend to come in pairs that read and write one
direction with opposite signs. The cut of 10 % is ours. Beside the mean over dense latents stands that over others.
Where the encoder cannot be read from outside, d stands for e. Cosines are taken of dense latents with all, in blocks.
"""

# Shape letters: L latents, D width, n latents looked at.

import torch
import torch.nn.functional as F
from torch import Tensor

from saelab.metrics.base import Metric, Score, Setting, Table, View, score_of_latents
from saelab.metrics.density import Density
from saelab.sae.autoencoder import Autoencoder

BLOCK_ENTRIES = 1 << 24
OTHERS = 256
"""Latents that are not dense, looked at for comparison; and at most so many times as many dense ones."""
PAIR = 0.81
"""Antipodality from which latents count as a pair: both cosines -0.9, say."""


class DenseLatents(Metric):
    """How many latents are dense, and whether they come in opposite pairs.

    Args:
        cut: density above which a latent is dense.
    """

    def __init__(self, cut: float = 0.1):
        self.cut, self.density = cut, Density()
        self.found: Table = {}

    def begin(self, setting: Setting) -> None:
        if not 0 < self.cut < 1:
            raise ValueError(f"DenseLatents: cut must be between 0 and 1, got {self.cut}")

    def update(self, view: View) -> None:
        self.density.update(view)

    def scores(self, sae: Autoencoder) -> dict[str, Score]:
        density = self.density.latents()["density"]
        dense = density > self.cut
        found = {"dense": score_of_latents(dense.double(), "share of latents")}
        latents, others = dense.nonzero().flatten(), ((~dense) & (density > 0)).nonzero().flatten()
        drawn = torch.randperm(len(others), generator=torch.Generator().manual_seed(0))[:OTHERS]
        for name, which in (("dense", latents), ("other", others[drawn])):
            if len(which) and sae.n_latents > 1:
                value, partner = antipodality(*encoder_and_decoder(sae), which)
                found[f"antipodality_{name}"] = score_of_latents(value, "product of cosines")
                if name == "dense":
                    found["dense_paired"] = score_of_latents((value >= PAIR).double(), "share of dense latents")
                    columns = {
                        "latent": latents,
                        "density": density[latents],
                        "partner": partner,
                        "antipodality": value,
                    }
                    self.found = {key: column.tolist() for key, column in columns.items()}
        return found

    def tables(self) -> dict[str, Table]:
        return {"dense": self.found} if self.found else {}


def encoder_and_decoder(sae: Autoencoder) -> tuple[Tensor, Tensor]:
    """What latents read along and write along, [L, n] and [L, D]."""
    directions = sae.dictionary.directions().detach().float()
    try:
        return sae.dictionary.encoder.detach().float(), directions
    except ValueError:  # an encoder that is not one weight, or an ensemble's
        return directions, directions


@torch.no_grad()
def antipodality(read: Tensor, written: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """Antipodality of some latents [n] and the latent that each is opposite to, -1 for none; [n] each, on the CPU."""
    read, written, which = F.normalize(read, dim=1), F.normalize(written, dim=1), which.to(read.device)
    size, values, partners = max(1, BLOCK_ENTRIES // len(read)), [], []
    for part in which.split(size):
        one, other = read[part] @ read.T, written[part] @ written.T
        product = (one * other).where((one < 0) & (other < 0), 0)
        product[torch.arange(len(part)), part] = 0
        best = product.max(1)
        values.append(best.values.cpu())
        partners.append(best.indices.where(best.values > 0, -1).cpu())
    return torch.cat(values).double(), torch.cat(partners)
