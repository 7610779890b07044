"""How latents are dealt out to features: purity, latents per feature n_i, features discovered D(N).

After the capacity-allocation reading of Michaud et al. 2025 (arXiv 2509.02565); the definitions are our choice:

    purity of latent j    max_i ||Q_i d_j||, and i is the latent's nearest feature (see `matching`)
    n_i                   latents that fire at all and whose nearest feature is i
    own latents of i      latents whose nearest feature is i with a purity of at least 0.9
    coverage of i         share of the rows with i active in which at least one of its own latents fires
    single coverage of i  the largest share that one of its own latents reaches alone
    D                     number of features with a coverage of at least a half

One latent per feature: both coverages agree. A tiled manifold is covered by its tiles together, each of which fires on
a part only, so the literal rule (one latent that fires on half of the activations) never finds it; both are given.
Features that never occurred in the rows count as not discovered. A latent between two features is nobody's own.
"""

# Shape letters: B rows, K and J entries of a row, F features, L latents.

import torch
from torch import Tensor

from saelab.core.codes import Codes
from saelab.geometry.pair_counts import PairCounts

DISCOVERED = 0.5
"""Coverage from which a feature counts as discovered."""


class Coverage:
    """In how many rows a feature and at least one of its own latents are active.

    Args:
        owner: the feature whose own each latent is [L], -1 for none.
        n_features: F.
    """

    def __init__(self, owner: Tensor, n_features: int):
        self.owner = owner
        self.rows = torch.zeros(n_features, dtype=torch.int64, device=owner.device)

    def update(self, codes: Codes, truth: Codes) -> None:
        """Take in rows: the latents' codes [B, K] and the features' [B, J]."""
        owner = self.owner[codes.indices].where(codes.active, -1)
        covered = (owner[:, :, None] == truth.indices[:, None, :]).any(1) & truth.active
        self.rows += torch.bincount(truth.indices[covered], minlength=len(self.rows))

    def share(self, n_feature: Tensor) -> Tensor:
        """Coverage of each feature that was active in n_feature [F] rows; [F] float64, 0 where it never was."""
        return self.rows.double() / n_feature.double().clamp_min(1)


def single_coverage(both: PairCounts, owner: Tensor, n_feature: Tensor) -> Tensor:
    """Largest share of each feature's rows that one of its own latents fires in; [F] float64.

    Args:
        both: counts with features on the left and latents on the right.
        owner: the feature whose own each latent is [L], -1 for none.
        n_feature: rows each feature was active in, [F].
    """
    latents = (owner >= 0).nonzero()[:, 0]
    features = owner[latents]
    share = both.counts(features, latents).double() / n_feature[features].double().clamp_min(1)
    return share.new_zeros(len(n_feature)).scatter_reduce(0, features, share, "amax")


def latents_per_feature(nearest: Tensor, counted: Tensor, n_features: int) -> Tensor:
    """Number of latents of each feature, [F] int64, from the latents' features [L]; -1 and uncounted [L] left out."""
    return torch.bincount(nearest[counted & (nearest >= 0)], minlength=n_features)
