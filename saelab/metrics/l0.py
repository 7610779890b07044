"""L0: mean number of active (non-zero) latents of a row."""

import torch

from saelab.metrics.base import Metric, Score, Totals, View
from saelab.sae.autoencoder import Autoencoder


class L0(Metric):
    """Mean number of active latents of a row."""

    def __init__(self) -> None:
        self.totals = Totals()

    def update(self, view: View) -> None:
        active = view.codes.l0()
        self.totals.add(view.group, active=active, rows=torch.ones_like(active))

    def scores(self, sae: Autoencoder) -> dict[str, Score]:
        return {"l0": self.totals.score(lambda active, rows: active / rows, "latents")}
