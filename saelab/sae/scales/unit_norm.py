"""UnitNorm: every row without its mean over entries, at norm 1; both are put back on the reconstruction.

    mu = mean_d x       s = ||x - mu||       x' = (x - mu) / s       x_hat = x_hat' s + mu

As the text of Gao et al. 2024 (arXiv 2406.04093) says; the authors' code has `LayerNorm`, whose rows are sqrt(D - 1)
times as long. Whatever is in units of a scaled row is smaller by that factor: thresholds, bandwidths, an l1 penalty's
codes. A row without any deviation becomes zero.

Training minimises the error of scaled rows: each row counts alike, and normalised errors are those of LayerNorm. FVU is
in the data's units, where large rows count more. It cannot be folded into weights.
"""

import math

from torch import Tensor

from saelab.sae.scale import RowScale


class UnitNorm(RowScale):
    """Each row to mean 0 and norm 1."""

    def measured(self, parts: Tensor) -> tuple[Tensor, Tensor]:
        mean = parts.mean(2)
        return mean, (parts - mean[:, :, None]).norm(dim=2)

    @property
    def norm(self) -> float:
        return math.sqrt(self.sites)
