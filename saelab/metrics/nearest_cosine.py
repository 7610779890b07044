"""Nearest-neighbour cosine of directions:  c_j = max over l != j of  d_j . d_l / (||d_j|| ||d_l||).

Scores are the mean, 99th percentile and maximum over latents, and the mean of a random Gaussian dictionary of the same
size for comparison. Many latents with a very close neighbour hint at tiled manifolds or duplicates (Michaud et al.
2025, arXiv 2509.02565).
"""

import torch
from torch import Tensor

from saelab.geometry import nearest
from saelab.metrics.base import Metric, Score, score_of_latents
from saelab.sae.autoencoder import Autoencoder

RANDOM_PROBES = 1024


class NearestCosine(Metric):
    """How close each direction's nearest neighbour is."""

    def __init__(self) -> None:
        self.cosines = torch.empty(0)

    def latents(self) -> dict[str, Tensor]:
        return {"nearest_cosine": self.cosines} if len(self.cosines) else {}

    def scores(self, sae: Autoencoder) -> dict[str, Score]:
        directions = sae.dictionary.directions().float()
        if len(directions) < 2:
            raise ValueError("a single latent has no neighbour")
        self.cosines = nearest(directions, directions, skip_self=True)[0].squeeze(1).cpu()
        generator = torch.Generator().manual_seed(0)
        random = torch.randn(directions.shape, generator=generator).to(directions.device)
        chance = nearest(random[:RANDOM_PROBES], random, skip_self=True)[0].mean().item()
        count = len(self.cosines)
        return {
            "nearest_cosine": score_of_latents(self.cosines, "cosine"),
            "nearest_cosine_p99": Score(self.cosines.quantile(0.99).item(), None, None, count, "cosine"),
            "nearest_cosine_max": Score(self.cosines.max().item(), None, None, count, "cosine"),
            "nearest_cosine_random": Score(chance, None, None, min(count, RANDOM_PROBES), "cosine"),
        }
