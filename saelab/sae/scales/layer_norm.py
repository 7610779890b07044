"""LayerNorm: every row by its own mean and standard deviation, which are put back on the reconstruction.

    mu = mean_d x       s = sqrt( sum_d (x - mu)^2 / (D - 1) )
    x' = (x - mu) / (s + 1e-5)         x_hat = x_hat' s + mu

The deviation is the unbiased one, so that a scaled row has the norm sqrt(D - 1), and 1e-5 is added to it in one
direction only: so do OpenAI's SAEs of GPT-2 (v5, TopK), the authors' code of BatchTopK and of Top-AFA, and `layer_norm`
of SAELens. Paper B's text (Gao et al. 2024, arXiv 2406.04093) says `UnitNorm`. There is no gain and no bias, as the
layer normalisation inside a model has.

Training minimises the error of scaled rows: each row counts alike. FVU is in the data's units, where large rows count
more; the authors' normalised errors, of scaled rows, are other numbers. It cannot be folded into weights.
"""

# Shape letters: B rows, S sites, D width of a site.

from torch import Tensor

from saelab.sae.scale import RowScale

EPSILON = 1e-5


class LayerNorm(RowScale):
    """Each row to mean 0 and unbiased standard deviation 1."""

    def measured(self, parts: Tensor) -> tuple[Tensor, Tensor]:
        mean = parts.mean(2)
        # A single entry has no deviation from its mean.
        deviation = (parts - mean[:, :, None]).std(2) if parts.shape[2] > 1 else mean.new_zeros(mean.shape)
        return mean, deviation

    def divisor(self, size: Tensor) -> Tensor:
        return size + EPSILON
