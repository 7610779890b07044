"""Which latent stands for which feature.

    cos(i, j) = ||Q_i d_j||      Q_i: orthonormal rows that span feature i's subspace, d_j: unit direction of latent j

For a one-dimensional feature that is the cosine up to its sign. The sign counts for SAEs whose codes are never
negative, where a latent that points away from a feature cannot write it; where codes are signed it is dropped.

Features are matched to latents one to one so that the sum of cosines is largest (Hungarian algorithm). Their mean is
the MCC of O'Neill et al. 2024 (arXiv 2411.13117); like theirs it runs over the min(F, L) pairs, so an SAE with fewer
latents than features is not charged for the features left over (recovery is: they count as not recovered). Above
HUNGARIAN_ENTRIES pairs the table of cosines would not fit; each feature then gets its best latent, which one latent
may be for several features.

Latents that never fire take part. A large subspace is near to every direction: a random one has ||Q_i d|| of about
sqrt(dim_i / D).
"""

# Shape letters: F features, L latents, D input width, M largest dimension of a feature, n features of a block.

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from saelab.data.synthetic.world import World

HUNGARIAN_ENTRIES = 1 << 28
"""Largest F * L for one-to-one matching: 1 GiB of cosines, and 2 GiB more inside scipy."""
BLOCK_ENTRIES = 1 << 24
RECOVERED = 0.9
"""Cosine from which a feature counts as recovered, and a latent as the feature's own."""


@dataclass(frozen=True)
class Matching:
    """Who belongs to whom. All tensors are on the device of the directions."""

    latent: Tensor
    """[F] int64, each feature's matched latent; -1 where there is none."""
    cosine: Tensor
    """[F] float64, the cosine of the pair; NaN where there is none."""
    nearest: Tensor
    """[L] int64, each latent's nearest feature: the one with the largest cosine."""
    purity: Tensor
    """[L] float64, that cosine."""
    one_to_one: bool
    """Whether no latent is matched to two features."""

    @property
    def owner(self) -> Tensor:
        """[L] int64, the feature whose own each latent is: the nearest with a cosine of RECOVERED; else -1."""
        return self.nearest.where(self.purity >= RECOVERED, -1)


def cosines(unit: Tensor, bases: Tensor, dims: Tensor, signed: bool) -> Tensor:
    """Cosines of features with latents; [n, L].

    Args:
        unit: unit directions [L, D].
        bases: orthonormal rows [n, M, D], zero beyond a feature's dimension.
        dims: dimensions of the features [n].
        signed: whether codes may be negative, so that a direction and its opposite are the same.
    """
    n, width = bases.shape[:2]
    along = (bases.flatten(0, 1) @ unit.T).unflatten(0, (n, width))
    flat = along[:, 0].abs() if signed else along[:, 0]
    return flat if width == 1 else torch.where(dims[:, None] == 1, flat, along.norm(dim=1))


@torch.no_grad()
def match(directions: Tensor, world: World, signed: bool = False, limit: int = HUNGARIAN_ENTRIES) -> Matching:
    """Match the features of a world to latents with these directions [L, D], of any norm.

    Args:
        directions: of the latents.
        world: has the features.
        signed: see `cosines`.
        limit: largest F * L for one-to-one matching.

    Raises:
        ValueError: for directions of another width than the world's, or that are not finite.
    """
    if directions.shape[1] != world.d_in:
        raise ValueError(f"directions are {directions.shape[1]} wide, the world's rows are {world.d_in}")
    if not torch.isfinite(directions).all():
        raise ValueError("directions hold NaN or infinity")
    unit = F.normalize(directions.detach().float(), dim=1)
    size = max(1, BLOCK_ENTRIES // (len(unit) * int(world.dims.max())))
    one_to_one = world.n_features * len(unit) <= limit
    table, best_cosine, best_latent = [], [], []
    purity, nearest = unit.new_full((len(unit),), -torch.inf), unit.new_zeros(len(unit), dtype=torch.int64)
    for features in torch.arange(world.n_features).split(size):
        bases, dims = world.bases(features).to(unit), world.dims[features].to(unit.device)
        block = cosines(unit, bases, dims, signed)
        value, place = block.max(0)
        nearest = torch.where(value > purity, place + int(features[0]), nearest)
        purity = torch.maximum(purity, value)
        if one_to_one:
            table.append(block.cpu())
        else:
            best = block.max(1)
            best_cosine.append(best.values)
            best_latent.append(best.indices)
    if one_to_one:
        latent, cosine = (part.to(unit.device) for part in assign(torch.cat(table)))
    else:
        latent, cosine = torch.cat(best_latent), torch.cat(best_cosine).double()
    return Matching(latent, cosine, nearest, purity.double(), one_to_one)


def assign(table: Tensor) -> tuple[Tensor, Tensor]:
    """The one-to-one assignment of rows to columns with the largest sum of a table [F, L] on the CPU.

    Returns:
        Each row's column [F], -1 for rows left over, and its entry [F] float64, NaN for those.
    """
    from scipy.optimize import linear_sum_assignment  # takes long to import, and only this needs it

    rows, columns = (torch.from_numpy(part) for part in linear_sum_assignment(table.numpy(), maximize=True))
    latent, value = torch.full((len(table),), -1), torch.full((len(table),), torch.nan, dtype=torch.float64)
    latent[rows], value[rows] = columns, table[rows, columns].double()
    return latent, value
