"""Absorption: a latent of a child feature does the work of its parent's latent, which stays off.

A parent fires whenever one of its children does. A sparse SAE may save a latent by writing parent + child with the
child's latent (Chanin et al. 2024, arXiv 2409.14507). Per row in which the parent is active, with a its intensity,
f_j cos_j the contribution of latent j along the parent's direction, main the sum of these over the parent's main
latents, and others the sum of the largest three among other latents with cos_j >= .1 and a positive contribution:

    fraction = 0                                              where main >= a or others / a < .4
               1                                              else where main <= 0
               o / (o + main),  o = min(others, a - main)     else
    full     = all main latents off, and the latent with the largest contribution has cos_j >= .025 and
               a share f_j cos_j / a of at least .4

Formula and constants are those of SAEBench's code, with the truth in three places: the direction is the parent's own
and not a probe's; a is the parent's true intensity and not the row's projection, so other features that lie along the
direction are not counted; main latents are the parent's matched latent and all others with a cosine of at least 0.9,
and not found by a sparse probe. All rows with the parent active count, also those with no child.

Where features crowd (F > D), latents of other features lie along the parent's direction too and some of what they
contribute is taken for absorption: compare SAEs in the same world, not with 0.

Left out: parents of more than one dimension, and parents without a matched latent. Where a parent's matched latent is
itself the absorbing one, nothing is reported as absorbed; low recovery and recall show that case.
"""

# Shape letters: B rows, K and J entries of a row, L latents, Q parents, P pairs of a row and a parent active in it.

import torch
from torch import Tensor

from saelab.core.codes import Codes
from saelab.metrics.truth.matching import RECOVERED

ABSORBING_COSINE, FULL_COSINE = 0.1, 0.025
ABSORBING_LATENTS = 3
SHARE = 0.4


class Absorption:
    """Absorption of each parent feature, summed over rows.

    Args:
        parents: feature numbers of the parents [Q].
        cosines: of the parents with all latents, signed; [Q, L].
        matched: the parents' matched latents [Q].
        n_features: F.
        signed: whether codes may be negative: a direction and its opposite are then the same.
    """

    def __init__(self, parents: Tensor, cosines: Tensor, matched: Tensor, n_features: int, signed: bool = False):
        size = cosines.abs() if signed else cosines
        self.cosines, self.is_main = cosines, (size >= RECOVERED).scatter(1, matched[:, None], True)
        self.signed = signed
        self.place = torch.full((n_features,), -1, device=parents.device)
        self.place[parents] = torch.arange(len(parents), device=parents.device)
        self._sums = torch.zeros(3, len(parents), dtype=torch.float64, device=parents.device)

    def update(self, codes: Codes, truth: Codes) -> None:
        """Take in rows: contributions of latents [B, K], signed, and intensities of features [B, J]."""
        place = self.place[truth.indices]
        row, slot = (truth.active & (place >= 0)).nonzero(as_tuple=True)
        parent, latents = place[row, slot], codes.indices[row]
        fraction, full = absorbed(
            codes.values[row],
            self.cosines[parent[:, None], latents],
            self.is_main[parent[:, None], latents],
            truth.values[row, slot],
            self.signed,
        )
        terms = torch.stack([fraction.double(), full.double(), torch.ones_like(fraction, dtype=torch.float64)])
        self._sums.index_add_(1, parent, terms)

    @property
    def rows(self) -> Tensor:
        """Rows in which each parent was active; [Q] float64."""
        return self._sums[2]

    @property
    def fraction(self) -> Tensor:
        """Mean fraction absorbed of each parent; [Q] float64, NaN for one that was never active."""
        return self._sums[0] / self._sums[2]

    @property
    def full(self) -> Tensor:
        """Share of each parent's rows with full absorption; [Q] float64, NaN for one that was never active."""
        return self._sums[1] / self._sums[2]


def absorbed(
    codes: Tensor,
    cosine: Tensor,
    is_main: Tensor,
    intensity: Tensor,
    signed: bool = False,
    least: float = ABSORBING_COSINE,
) -> tuple[Tensor, Tensor]:
    """Absorption in P pairs of a row and a parent that is active in it.

    Args:
        codes: contributions of the row's latents, signed; [P, K]. Zero is not active.
        cosine: of those latents with the parent's direction; [P, K].
        is_main: whether they are main latents of the parent; [P, K].
        intensity: of the parent, positive; [P].
        signed: whether a direction and its opposite are the same.
        least: cosine from which other latents count for the fraction.

    Returns:
        The fraction absorbed [P], and whether absorption is full [P] bool.
    """
    along = codes * cosine
    size = cosine.abs() if signed else cosine
    main = along.where(is_main, 0).sum(1)
    others = along.where(~is_main & (size >= least), 0).clamp_min(0)
    others = others.topk(min(ABSORBING_LATENTS, others.shape[1]), dim=1).values.sum(1)
    taken = torch.minimum(others, intensity - main)
    fraction = (taken / (taken + main)).where(main > 0, 1.0)
    fraction = fraction.masked_fill((main >= intensity) | (others < SHARE * intensity), 0.0)
    top = along.max(1)
    top_size = size.gather(1, top.indices[:, None])[:, 0]
    full = (top_size >= FULL_COSINE) & (top.values >= SHARE * intensity) & ~(is_main & (codes != 0)).any(1)
    return fraction, full
