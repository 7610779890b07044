"""Dead latents: active in none of the last H rows of training, H = 10 million or a quarter of the run if that is less.

Ten million tokens is Gao et al. 2024's horizon (arXiv 2406.04093). It is read from the counter the SAE keeps while it
trains, because a latent that is silent on a small evaluation set may just be rare. An SAE without training history
(a converted one) has no such score, which is said; see `silent` in the density spectrum.
"""

from saelab.metrics.base import Metric, Score, score_of_latents
from saelab.sae.sae import SAE

HORIZON = 10_000_000


class DeadLatents(Metric):
    """Share of latents that stopped firing in training."""

    def scores(self, sae: SAE) -> dict[str, Score]:
        horizon = min(HORIZON, int(sae.firing.rows) // 4)
        if not horizon:
            raise ValueError("the SAE has no history of training; `silent` says how many are silent on these rows")
        dead = sae.firing.dead(horizon).float().cpu()
        return {"dead": score_of_latents(dead, "share of latents")}
