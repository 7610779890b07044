"""Cosines of all pairs of directions, in square blocks: never a table of all pairs.

    largest, mean              over pairs i != j of  cos(d_i, d_j)      signed, as the authors of AFA log them
    largest_absolute           of |cos(d_i, d_j)|: the eps in which the directions are quasi-orthogonal

The mean needs no pairs: with unit directions it is (||sum_j d_j||^2 - L) / (L (L - 1)). Directions of norm zero have no
cosine and are left out.
"""

# Shape letters: L directions, D width.

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_ENTRIES = 1 << 22


@dataclass(frozen=True)
class Cosines:
    """What is known of the cosines."""

    largest: float = float("nan")
    largest_absolute: float = float("nan")
    mean: float = float("nan")
    count: int = 0


@torch.no_grad()
def cosines_of(directions: Tensor) -> Cosines:
    """Cosines of directions [L, D]."""
    unit = F.normalize(directions[directions.norm(dim=1) > 0].float(), dim=1)
    count = len(unit)
    if count < 2:
        return Cosines(count=count)
    largest, smallest = -1.0, 1.0
    parts = unit.split(max(1, math.isqrt(BLOCK_ENTRIES)))
    for number, part in enumerate(parts):
        for other in parts[number:]:
            cosines = part @ other.T
            if other is part:
                if len(part) == 1:
                    continue
                cosines.fill_diagonal_(cosines[0, 1].item())  # any pair stands for a latent with itself
            low, high = cosines.aminmax()
            smallest, largest = min(smallest, low.item()), max(largest, high.item())
    total = unit.double().sum(0).square().sum().item()
    mean = (total - count) / (count * (count - 1))
    return Cosines(largest, max(largest, -smallest), mean, count)
