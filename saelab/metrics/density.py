"""The density spectrum: how often each latent is active.

    density of latent j = share of rows in which it is active

Scores are the 10th, 50th and 90th percentile over latents that fired at all, the share of latents active in more than
1 % and 10 % of rows, and the share silent on all the rows measured (rare is not dead: the fewer rows, the more are
silent). Every latent's own density is kept beside the scores.
"""

import torch
from torch import Tensor

from saelab.metrics.base import Metric, Score, View, score_of_latents
from saelab.sae.autoencoder import Autoencoder


class Density(Metric):
    """How often latents are active."""

    def __init__(self) -> None:
        self.counts: Tensor | None = None
        self.rows = 0

    def update(self, view: View) -> None:
        counts = view.codes.counts().cpu()
        self.counts = counts if self.counts is None else self.counts + counts
        self.rows += len(view.x)

    def latents(self) -> dict[str, Tensor]:
        assert self.counts is not None
        return {"density": (self.counts.double() / self.rows).float()}

    def scores(self, sae: Autoencoder) -> dict[str, Score]:
        density = self.latents()["density"]
        fired = density[density > 0]
        scores = {
            "silent": score_of_latents((density == 0).float(), f"share of latents on {self.rows} rows"),
            "density_over_1pc": score_of_latents((density > 0.01).float(), "share of latents"),
            "density_over_10pc": score_of_latents((density > 0.1).float(), "share of latents"),
        }
        if len(fired):
            for percent in (10, 50, 90):
                value = torch.quantile(fired.double(), percent / 100).item()
                scores[f"density_p{percent}"] = Score(value, None, None, len(fired), "share of rows")
        return scores
