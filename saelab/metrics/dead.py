"""Dead latents: active in none of the last H rows of training, H = 10 million or a quarter of the run if that is less.

Ten million tokens is Gao et al. 2024's horizon (arXiv 2406.04093). It is read from the counter the SAE keeps while it
trains, because a latent that is silent on a small evaluation set may just be rare. An SAE without training history
(a converted one) has no such score, which is said; see `silent` in the density spectrum.
"""

from saelab.metrics.base import Metric, Score, score_of_latents
from saelab.sae.autoencoder import Autoencoder


class DeadLatents(Metric):
    """Share of latents that stopped firing in training."""

    def scores(self, sae: Autoencoder) -> dict[str, Score]:
        if not sae.firing.horizon:
            raise ValueError("the SAE has no training history; `silent` counts the latents silent on these rows")
        return {"dead": score_of_latents((~sae.alive()).float().cpu(), "share of latents")}
