"""How often features fire: a power law, rescaled so that a chosen number of them is active on average.

    p_i = min(CAP, c i^-(1 + alpha)),  i = 1..n,  c such that sum_i p_i = l0

The law is the one of "Understanding sparse autoencoder scaling in the presence of feature manifolds" (arXiv
2509.02565), as we read it. alpha = 0 is Zipf's law, alpha = -1 gives all features the same frequency. The cap and the
rescaling are ours: common features that reach the cap leave the rest of l0 to the others.
"""

# Shape letters: n features.

import torch
from torch import Tensor

CAP = 0.9
"""No feature fires in more than this share of rows."""
STEEPEST = 10.0
"""Beyond this alpha frequencies would leave the range of a float64."""


def power_law(n: int, l0: float, alpha: float) -> Tensor:
    """Probabilities of being active, in descending order; [n] float64, sum l0.

    Args:
        n: how many.
        l0: their sum; above 0 and at most CAP * n.
        alpha: steepness, from -1 to STEEPEST.
    """
    assert 0 < l0 <= CAP * n * (1 + 1e-12), (n, l0)
    assert -1 <= alpha <= STEEPEST, alpha
    weights = torch.arange(1, n + 1, dtype=torch.float64).pow(-(1 + alpha))
    tails = weights.flip(0).cumsum(0).flip(0)
    # With the first m at the cap, the others share what is left. The right m is the first that lifts none above it.
    capped = torch.arange(n, dtype=torch.float64)
    factors = (l0 - CAP * capped) / tails
    fits = factors * weights <= CAP
    m = int(fits.int().argmax()) if fits.any() else n
    probabilities = torch.full_like(weights, CAP)
    if m < n:
        probabilities[m:] = factors[m] * weights[m:]
    return probabilities
