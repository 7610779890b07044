"""ConstantNorm: every row at norm sqrt(D), no mean removed; its norm is put back on the reconstruction.

    s = ||x|| / sqrt(D)       x' = x / s       x_hat = x_hat' s

`constant_norm_rescale` of SAELens, and what Llamascopium's `token-wise` does to rows. (SAELens'
`expected_average_only_in` divides all rows by one number: that is a `DataScale`.) A row of zeros stays one.

Training minimises the error of scaled rows: each row counts alike. FVU is in the data's units, where large rows count
more. It cannot be folded into weights.
"""

import math

from torch import Tensor

from saelab.sae.scale import RowScale


class ConstantNorm(RowScale):
    """Each row to norm sqrt(D)."""

    def measured(self, parts: Tensor) -> tuple[Tensor, Tensor]:
        size = parts.norm(dim=2) / math.sqrt(parts.shape[2])
        return size.new_zeros(size.shape), size
