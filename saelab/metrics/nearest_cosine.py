"""Nearest-neighbour cosine of directions:  c_j = max over l != j of  d_j . d_l / (||d_j|| ||d_l||).

Scores are the mean, 99th percentile and maximum over latents, and the mean of a random Gaussian dictionary of the same
size for comparison. The product of directions is taken in blocks, never [L, L] at once. Many latents with a very close
neighbour hint at tiled manifolds or duplicates (Michaud et al. 2025, arXiv 2509.02565).
"""

import torch
from torch import Tensor

from saelab.metrics.base import Metric, Score, score_of_latents
from saelab.sae.sae import SAE

BLOCK_ENTRIES = 1 << 24
RANDOM_PROBES = 1024


class NearestCosine(Metric):
    """How close each direction's nearest neighbour is."""

    def __init__(self) -> None:
        self.cosines = torch.empty(0)

    def latents(self) -> dict[str, Tensor]:
        return {"nearest_cosine": self.cosines} if len(self.cosines) else {}

    def scores(self, sae: SAE) -> dict[str, Score]:
        directions = sae.dictionary.directions().float()
        if len(directions) < 2:
            raise ValueError("a single latent has no neighbour")
        self.cosines = nearest_cosines(directions, directions, skip_self=True)
        generator = torch.Generator().manual_seed(0)
        random = torch.randn(directions.shape, generator=generator).to(directions.device)
        chance = nearest_cosines(random[:RANDOM_PROBES], random, skip_self=True).mean().item()
        count = len(self.cosines)
        return {
            "nearest_cosine": score_of_latents(self.cosines, "cosine"),
            "nearest_cosine_p99": Score(self.cosines.quantile(0.99).item(), None, None, count, "cosine"),
            "nearest_cosine_max": Score(self.cosines.max().item(), None, None, count, "cosine"),
            "nearest_cosine_random": Score(chance, None, None, min(count, RANDOM_PROBES), "cosine"),
        }


def nearest_cosines(probes: Tensor, directions: Tensor, skip_self: bool = False) -> Tensor:
    """Largest cosine of each probe [n, D] with any direction [L, D]; [n] on the CPU.

    With `skip_self`, probe j is direction j and is not compared with itself.
    """
    unit = torch.nn.functional.normalize(directions, dim=1)
    probes = torch.nn.functional.normalize(probes, dim=1)
    size = max(1, BLOCK_ENTRIES // len(unit))
    found = []
    for start in range(0, len(probes), size):
        cosines = probes[start : start + size] @ unit.T
        if skip_self:
            cosines.diagonal(start).fill_(-1)
        found.append(cosines.max(1).values.cpu())
    return torch.cat(found)
