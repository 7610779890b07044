"""Hedging: a latent mixes its feature with others that fire together with it, since that lowers the error of an SAE
too narrow, or too sparse, to give each its own (Chanin et al. 2025, arXiv 2505.11756).

`static_hedging` reads it off one SAE with the truth at hand (our definition). For feature i with matched latent j,
unit direction d and C(i) the features correlated with i:

    own_i   = ||Q_i d||^2                        what lies in the feature's own subspace
    mixed_i = ||R d||^2                          R: projection on the span of C(i), less its part in that subspace
    chance  = rank(R) / (D - dim_i)              what a random direction of the remainder would give
    hedging_i = (mixed_i - chance (1 - own_i)) / (1 - chance)

If d's part outside the own subspace is one in that span, of squared norm h, plus one in a random direction, the
expectation of hedging_i is h. It is not clamped: without hedging it is 0 on average. C(i) are the features, at most 8,
whose firing has the largest |correlation| (phi coefficient) with i's over the rows, of at least 0.1 and 5 standard
errors, and with at least 5 rows with both (expected, where fewer than expected were found). Pairs with a cosine below
0.5 are left out: their latent stands for something else. A latent that absorbed its parent counts too: the direction
alone does not tell the two apart.

`hedging_rate` is the formula of the published procedure, which compares two SAEs trained on from one.
"""

# Shape letters: F features, D width, n features of a block, C correlated features kept, M dimensions of a subspace,
# w latents of the narrow SAE, m latents added.

import torch
import torch.nn.functional as F
from torch import Tensor

from saelab.data.synthetic.world import World
from saelab.geometry.pair_counts import PairCounts
from saelab.metrics.truth.matching import Matching

CORRELATION, STANDARD_ERRORS, TOGETHER = 0.1, 5.0, 5
STRONGEST = 8
MIXED = 0.5
"""Cosine from which a matched latent stands for its feature at all."""
BLOCK_ENTRIES = 1 << 20
TINY = 1e-6
"""Eigenvalues below this are no dimension of a span."""


def correlations(n_both: Tensor, n_left: Tensor, n_right: Tensor, rows: int) -> Tensor:
    """Phi coefficients of firing, float64, 0 where too few rows speak for them; shapes broadcast.

        phi = (N n_both - n_left n_right) / sqrt(n_left (N - n_left) n_right (N - n_right))

    Args:
        n_both: rows with both active.
        n_left: rows with the left one active.
        n_right: rows with the right one active.
        rows: N, of all.
    """
    both, left, right = n_both.double(), n_left.double(), n_right.double()
    spread = (left * (rows - left) * right * (rows - right)).sqrt()
    phi = ((rows * both - left * right) / spread.clamp_min(1)).where(spread > 0, 0)
    enough = torch.maximum(both, left * right / rows) >= TOGETHER
    return phi.where(enough & (phi.abs() >= max(CORRELATION, STANDARD_ERRORS / rows**0.5)), 0)


@torch.no_grad()
def static_hedging(
    directions: Tensor, world: World, matching: Matching, together: PairCounts, n_feature: Tensor, rows: int
) -> Tensor:
    """Share of each matched direction's squared norm mixed in from correlated features, beyond chance; [F] float64.

    NaN for features without correlated ones, without a matched latent of cosine 0.5, or where the correlated ones
    fill the whole remainder of the space.

    Args:
        directions: of the latents, [L, D].
        world: has the features.
        matching: of its features with these latents.
        together: counts of rows in which two features are active, features on both sides.
        n_feature: rows each feature was active in, [F].
        rows: how many rows were counted.
    """
    size = max(1, BLOCK_ENTRIES // max(world.n_features, STRONGEST * int(world.dims.max()) * world.d_in))
    found = []
    for start in range(0, world.n_features, size):
        features = torch.arange(start, min(start + size, world.n_features), device=n_feature.device)
        n_both = together.block(start, start + len(features))
        phi = correlations(n_both, n_feature[features, None], n_feature, rows)
        phi.scatter_(1, features[:, None], 0.0)
        top = phi.abs().topk(min(STRONGEST, world.n_features), dim=1)
        unit = F.normalize(directions[matching.latent[features]].detach().double(), dim=1)
        hedging = _mixed(unit, world, features, top.indices, top.values > 0)
        wanted = (top.values > 0).any(1) & (matching.cosine[features] >= MIXED)
        found.append(hedging.where(wanted, torch.nan))
    return torch.cat(found)


def _mixed(unit: Tensor, world: World, features: Tensor, others: Tensor, is_kept: Tensor) -> Tensor:
    """hedging_i of unit directions [n, D] of features [n] with correlated ones [n, C], of which some are kept."""
    own = world.bases(features.cpu()).to(unit)  # [n, M, D]
    span = world.bases(others.flatten().cpu()).to(unit).unflatten(0, others.shape) * is_kept[:, :, None, None]
    span = span.flatten(1, 2)  # [n, C M, D]
    span = span - span @ own.mT @ own
    values, vectors = torch.linalg.eigh(span @ span.mT)
    is_real = values > TINY
    along = (vectors.mT @ (span @ unit[:, :, None]))[:, :, 0]
    mixed = (along.square() / values.clamp_min(TINY)).where(is_real, 0).sum(1)
    own_share = (own @ unit[:, :, None]).square().sum((1, 2))
    room = unit.shape[1] - world.dims[features.cpu()].to(unit)
    chance = is_real.sum(1) / room.clamp_min(1)
    return ((mixed - chance * (1 - own_share)) / (1 - chance)).where(chance < 1, torch.nan)


@torch.no_grad()
def hedging_rate(control: Tensor, extended: Tensor, generator: torch.Generator, draws: int = 50) -> float:
    """Hedging rate of Chanin et al. 2025, from one narrow SAE trained on twice: as it is, and with latents added.

        rate = max(0, (p - b) / (1 - b)),   p = mean ||P delta|| / mean ||control||,   delta = extended[:w] - control

    P projects on the span of the added directions; b is p with random directions in their place. All directions are
    brought to unit norm first. If the old latents had mixed in what the added ones stand for, they change along them.

    Args:
        control: directions of the SAE without new latents, [w, D].
        extended: directions of the other one, [w + m, D], the new latents last.
        generator: of the random directions, on the CPU.
        draws: how many sets of random directions b is averaged over.

    Raises:
        ValueError: if `extended` does not have more directions than `control`, of the same width, or draws < 1.
    """
    width = len(control)
    if not width or len(extended) <= width or extended.shape[1:] != control.shape[1:]:
        raise ValueError(
            f"extended needs the directions of control and new ones, [w + m, D]; got {list(extended.shape)} "
            f"for control {list(control.shape)}"
        )
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    control, extended = (F.normalize(rows.detach().double().cpu(), dim=1) for rows in (control, extended))
    delta, new = extended[:width] - control, extended[width:]
    size = control.norm(dim=1).mean()
    found = _projected(delta, new) / size
    random = (torch.randn(new.shape, generator=generator, dtype=torch.float64) for _ in range(draws))
    chance = sum(_projected(delta, rows) for rows in random) / draws / size
    return max(0.0, ((found - chance) / (1 - chance)).item()) if chance < 1 else 0.0


def _projected(delta: Tensor, rows: Tensor) -> Tensor:
    """Mean norm of delta [w, D] projected on the span of rows [m, D], which may depend on each other."""
    _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
    return (delta @ vectors[values > 1e-10 * values.max()].T).norm(dim=1).mean()
