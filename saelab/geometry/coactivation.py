"""How often latents are active in the same rows, from sparse codes.

    n11 rows where both are active, na and nb where each is, N rows in all

    Jaccard   n11 / (na + nb - n11)
    phi       (N n11 - na nb) / sqrt(na (N - na) nb (N - nb))       the correlation of the two firing patterns
    overlap   n11 / min(na, nb)                                     1 where one only fires with the other
    lift      N n11 / (na nb)                                       1 where they fire independently

Where a formula divides by zero (a latent that never fires; for phi, one that always does too) the value is 0.
"""

# Shape letters: B rows, K entries of a row, L and R latents on the two sides, N pairs.

import torch
from torch import Tensor

from saelab.core.codes import Codes
from saelab.geometry.pair_counts import PairCounts


class Coactivation:
    """Counts rows in which pairs of latents are active, of one SAE or of two that read the same rows.

    Args:
        n_left: latents of the first.
        n_right: latents of the second; None for pairs within one SAE.
        device: where the counts live.
    """

    def __init__(self, n_left: int, n_right: int | None = None, device: torch.device | str = "cpu"):
        self.within = n_right is None
        self.pairs = PairCounts(n_left, n_left if n_right is None else n_right, device)
        self.left = torch.zeros(n_left, dtype=torch.int64, device=device)
        """Rows in which each latent of the first was active, [L]."""
        self.right = self.left if n_right is None else torch.zeros(n_right, dtype=torch.int64, device=device)
        """The same of the second, [R]."""
        self.rows = 0

    def update(self, left: Codes, right: Codes | None = None) -> None:
        """Take in the codes of rows [B, K]; of both SAEs where there are two."""
        if (right is None) != self.within:
            raise ValueError("pairs within one SAE take its codes alone, pairs of two SAEs take the codes of both")
        left = left.compact()
        right = None if right is None else right.compact()
        self.pairs.add(left, left if right is None else right)
        self.left += left.counts()
        if right is not None:
            self.right += right.counts()
        self.rows += len(left)

    def both(self, left: Tensor, right: Tensor) -> Tensor:
        """Rows in which both latents of pairs [N], [N] were active; [N] float64, as in the methods below."""
        return self.pairs.counts(left, right).double()

    def jaccard(self, left: Tensor, right: Tensor) -> Tensor:
        """Rows where both are active over rows where either is."""
        both = self.both(left, right)
        return _ratio(both, self.left[left] + self.right[right] - both)

    def overlap(self, left: Tensor, right: Tensor) -> Tensor:
        """Rows where both are active over rows where the rarer one is."""
        return _ratio(self.both(left, right), torch.minimum(self.left[left], self.right[right]).double())

    def lift(self, left: Tensor, right: Tensor) -> Tensor:
        """How many times more often both are active than if they fired independently."""
        return _ratio(self.rows * self.both(left, right), self.left[left].double() * self.right[right].double())

    def phi(self, left: Tensor, right: Tensor) -> Tensor:
        """Correlation of the two firing patterns, from -1 to 1."""
        a, b = self.left[left].double(), self.right[right].double()
        spread = (a * (self.rows - a) * b * (self.rows - b)).sqrt()
        return _ratio(self.rows * self.both(left, right) - a * b, spread)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    return (above / below.where(below > 0, 1)).where(below > 0, 0)
