"""How well rows are reconstructed. Sums run over the whole evaluation set before anything is divided.

    fvu          sum ||x - x_hat||^2 / sum ||x - x_bar||^2      x_bar: mean of the evaluation rows ("nmse_mean")
    mse          mean over rows and entries of (x - x_hat)^2
    mse_sum      mean over rows of ||x - x_hat||^2
    nmse_zero    mean over rows of ||x - x_hat||^2 / ||x||^2
    fvu_per_batch  mean over chunks of the chunk's own fvu (older SAELens: 1 - this is its "legacy" explained variance)
    cosine       mean over rows of cos(x, x_hat)
    l2_ratio     mean over rows of ||x_hat|| / ||x||
    relative_bias  sum ||x_hat||^2 / sum x . x_hat: 1 is unbiased, below 1 is shrinkage

Explained variance is 1 - fvu. Of a transcoder, x is the target.
"""

import torch
from torch import Tensor

from saelab.metrics.base import Metric, Score, Totals, View
from saelab.sae.autoencoder import Autoencoder


class Reconstruction(Metric):
    """FVU and the other reconstruction errors in use."""

    def __init__(self) -> None:
        self.totals = Totals()
        self.origin: Tensor | None = None
        self.chunks: list[float] = []

    def update(self, view: View) -> None:
        x, x_hat = view.x.double(), view.x_hat.double()
        if self.origin is None:
            # Sums of squares about a point near the mean: about zero they would cancel.
            self.origin = x.mean(0)
        error, size = (x - x_hat).square().sum(1), x.square().sum(1)
        centred = x - self.origin
        self.totals.add(
            view.group,
            rows=torch.ones_like(error),
            error=error,
            relative_error=error / size.clamp_min(1e-30),
            centred=centred,
            square=centred.square().sum(1),
            cosine=torch.cosine_similarity(x, x_hat, dim=1),
            ratio=(x_hat.square().sum(1) / size.clamp_min(1e-30)).sqrt(),
            size_hat=x_hat.square().sum(1),
            overlap=(x * x_hat).sum(1),
        )
        if len(x) > 1:
            self.chunks.append((error.sum() / (x - x.mean(0)).square().sum()).item())

    def scores(self, sae: Autoencoder) -> dict[str, Score]:
        totals, width = self.totals, sae.d_out or sae.d_in
        mean = totals.total("centred") / totals.n
        rows = totals.by_group("rows")
        spread = totals.by_group("square") - 2 * totals.by_group("centred") @ mean + rows * mean.square().sum()
        per_chunk = sum(self.chunks) / max(len(self.chunks), 1)
        return {
            "fvu": totals.score(lambda error, spread: error / spread, "share", spread=spread),
            "mse": totals.score(lambda error, rows: error / (rows * width), "squared units"),
            "mse_sum": totals.score(lambda error, rows: error / rows, "squared units"),
            "nmse_zero": totals.score(lambda relative_error, rows: relative_error / rows, "share"),
            "fvu_per_batch": Score(per_chunk, None, None, totals.n, "share"),
            "cosine": totals.score(lambda cosine, rows: cosine / rows, "cosine"),
            "l2_ratio": totals.score(lambda ratio, rows: ratio / rows, "ratio"),
            "relative_bias": totals.score(lambda size_hat, overlap: size_hat / overlap, "ratio"),
        }
