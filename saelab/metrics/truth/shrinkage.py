"""How much too small a matched latent's contribution is.

    slope_i = sum f_j cos(i, j) a_i / sum a_i^2      over rows in which feature i and its latent j are both active
    shrinkage = 1 - slope

a_i is the feature's true intensity and f_j the norm of the latent's contribution to the reconstruction, both in the
data's units: f_j cos(i, j) is what it contributes along the true direction. 0 is no shrinkage, negative is too much.
One-dimensional features only: several latents share a manifold. A latent that barely points along its feature has a
low slope for that reason alone, so the score is the mean over features with a cosine of at least 0.9.
"""

# Shape letters: B rows, K and J entries of a row, F features.

import torch
import torch.nn.functional as F
from torch import Tensor

from saelab.core.codes import Codes
from saelab.data.synthetic.world import World

BLOCK_ENTRIES = 1 << 22


class Shrinkage:
    """Regression through the origin of matched latents' contributions on true intensities.

    Args:
        matched: each feature's latent [F], -1 for none.
    """

    def __init__(self, matched: Tensor):
        self.matched = matched
        self.product = torch.zeros(len(matched), dtype=torch.float64, device=matched.device)
        self.square = torch.zeros_like(self.product)

    def update(self, codes: Codes, truth: Codes) -> None:
        """Take in rows: contributions of latents [B, K], signed, and intensities of features [B, J]."""
        wanted = self.matched[truth.indices].where(truth.active, -1)
        is_pair = (codes.indices[:, :, None] == wanted[:, None, :]) & codes.active[:, :, None]
        contribution = codes.values.double()[:, :, None].where(is_pair, 0).sum(1)
        intensity = truth.values.double().where(is_pair.any(1), 0)
        self.product.index_add_(0, truth.indices.flatten(), (contribution * intensity).flatten())
        self.square.index_add_(0, truth.indices.flatten(), intensity.square().flatten())

    def slope(self, cosine: Tensor) -> Tensor:
        """Slope of each feature, [F] float64, for the signed cosines [F] of the pairs; NaN where never both active."""
        return (self.product * cosine / self.square).where(self.square > 0, torch.nan)


def pair_cosines(directions: Tensor, world: World, matched: Tensor) -> Tensor:
    """Signed cosines of one-dimensional features with their latents, [F] float64; NaN for all others.

    Args:
        directions: of the latents, [L, D].
        world: has the features.
        matched: each feature's latent [F], -1 for none.
    """
    found = torch.full(matched.shape, torch.nan, dtype=torch.float64, device=matched.device)
    features = ((world.dims.to(matched.device) == 1) & (matched >= 0)).nonzero()[:, 0]
    for some in features.split(max(1, BLOCK_ENTRIES // (world.d_in * int(world.dims.max())))):
        unit = F.normalize(directions[matched[some]].double(), dim=1)
        found[some] = (world.bases(some.cpu())[:, 0].to(unit) * unit).sum(1)
    return found
