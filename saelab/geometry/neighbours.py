"""Nearest directions, and pairs of directions that are close, by cosine; in blocks, never all pairs at once.

    cos(i, j) = p_i . d_j / (||p_i|| ||d_j||)

Products run in the precision of what is given. A zero direction has a cosine of 0 with everything. Where kernels are
compiled, small integers screen what can be near enough at all (`saelab.kernels.select`), and only that is computed in
float: the result is the same and is there two to three times as soon. An approximate index is left out: two cores
compare 32k with 131k directions 768 wide exactly in about a minute.
"""

# Shape letters: n probes, L directions, D their width, C neighbours of each, N pairs.

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from saelab.kernels import tier
from saelab.kernels.native.encode import is_worth_screening
from saelab.kernels.select import above_threshold, topk_linear

BLOCK_ENTRIES = 1 << 24
"""Cosines held at once."""
SCREENED_ROWS, SCREENED_ENTRIES = 8192, 1 << 28
"""Probes, and cosines, that go through the screen at once."""
MOST_PAIRS = 1 << 26
"""Pairs that `pairs_above` gives at most: 1.3 GiB."""


def blocks(
    probes: Tensor, directions: Tensor, skip_self: bool = False, block_entries: int = BLOCK_ENTRIES
) -> Iterator[tuple[int, Tensor]]:
    """Number of the first probe, and cosines [n_block, L], block by block; a block is overwritten by the next.

    Args:
        probes: [n, D]; directions: [L, D].
        skip_self: whether probe i is direction i and is not compared with itself; its cosine is then -2.
        block_entries: cosines of a block.

    Raises:
        ValueError: for probes and directions of different widths, or either not finite.
    """
    _check(probes, directions)
    unit = F.normalize(directions.detach(), dim=1)
    size = min(len(probes), max(1, block_entries // max(1, len(unit))))
    # One buffer for all blocks: fresh memory costs more in page faults than is gained by it.
    buffer = unit.new_empty(size, len(unit))
    for start in range(0, len(probes), size or 1):
        own = F.normalize(probes[start : start + size].detach(), dim=1)
        cosines = torch.mm(own, unit.T, out=buffer[: len(own)])
        if skip_self:
            cosines.diagonal(start).fill_(-2)
        yield start, cosines


@torch.no_grad()
def nearest(probes: Tensor, directions: Tensor, count: int = 1, skip_self: bool = False) -> tuple[Tensor, Tensor]:
    """The directions nearest to each probe, nearest first.

    Args:
        probes: [n, D]; directions: [L, D], of any norm.
        count: C, how many of each; fewer where there are fewer directions.
        skip_self: whether probe i is direction i and is no neighbour of itself.

    Returns:
        Cosines [n, C] and numbers of directions [n, C] int64, where the directions are.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    width = min(count, len(directions) - skip_self)
    values = directions.new_empty(len(probes), max(width, 0))
    indices = torch.empty(len(probes), max(width, 0), dtype=torch.int64, device=directions.device)
    if width < 1:
        return values, indices
    _check(probes, directions)
    if is_screened(probes, directions, width + skip_self):
        return _by_screen(probes, directions, width, skip_self)
    for start, cosines in blocks(probes, directions, skip_self):
        place = slice(start, start + len(cosines))
        found = cosines.max(1, keepdim=True) if width == 1 else cosines.topk(width, dim=1)
        values[place], indices[place] = found.values, found.indices
    return values, indices


def _check(probes: Tensor, directions: Tensor) -> None:
    if probes.ndim != 2 or directions.ndim != 2 or probes.shape[1] != directions.shape[1]:
        raise ValueError(f"directions must be as wide as probes, got {list(directions.shape)} and {list(probes.shape)}")
    for name, part in (("probes", probes), ("directions", directions)):
        if not torch.isfinite(part.sum()):
            raise ValueError(f"{name} hold NaN or infinity")


def is_screened(probes: Tensor, directions: Tensor, count: int) -> bool:
    """Whether kernels are compiled that find the `count` largest products without making all of them."""
    return tier.is_native(probes, directions) and is_worth_screening(probes, directions, count)


def _by_screen(probes: Tensor, directions: Tensor, width: int, skip_self: bool) -> tuple[Tensor, Tensor]:
    """`nearest` where compiled kernels can screen."""
    unit = F.normalize(directions.detach(), dim=1)
    centre, bias = unit.new_zeros(unit.shape[1]), unit.new_zeros(len(unit))
    parts = []
    for start in range(0, len(probes), SCREENED_ROWS):
        own = F.normalize(probes[start : start + SCREENED_ROWS].detach(), dim=1)
        values, entries = topk_linear(own, centre, unit, bias, width + skip_self)
        indices = entries.indices
        if skip_self:
            # Itself is left out where it is among them, else the last: of equal directions it need not be.
            other = indices != torch.arange(start, start + len(own))[:, None]
            other[:, -1] &= ~other.all(1)
            values, indices = values[other].view(-1, width), indices[other].view(-1, width)
        parts.append((values, indices))
    values, indices = (torch.cat(part) for part in zip(*parts, strict=True))
    return values, indices


@torch.no_grad()
def pairs_above(left: Tensor, right: Tensor | None, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """All pairs with a cosine of at least a threshold: numbers on the left [N], on the right [N], cosines [N].

    Args:
        left: [n, D].
        right: [L, D]; None for pairs i < j of `left` itself.
        threshold: above -1.

    Raises:
        ValueError: where there are more than MOST_PAIRS.
    """
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    total = 0
    for i, j, values in _close(left, left if right is None else right, threshold):
        if right is None:
            i, j, values = i[i < j], j[i < j], values[i < j]
        total += len(i)
        if total > MOST_PAIRS:
            raise ValueError(f"more than {MOST_PAIRS:,} pairs have a cosine of {threshold}; ask for a larger one")
        found.append((i, j, values))
    if not found:
        none = torch.empty(0, dtype=torch.int64, device=left.device)
        return none, none, left.new_empty(0)
    i, j, values = (torch.cat(part) for part in zip(*found, strict=True))
    return i, j, values


def _close(left: Tensor, right: Tensor, threshold: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The pairs of `pairs_above`, itself with itself among them, block by block."""
    _check(left, right)
    if not (threshold > 0 and is_screened(left, right, 1)):
        for start, cosines in blocks(left, right):
            i, j = (cosines >= threshold).nonzero().unbind(1)
            yield i + start, j, cosines[i, j]
        return
    unit = F.normalize(right.detach(), dim=1)
    centre, bias = unit.new_zeros(unit.shape[1]), unit.new_zeros(len(unit))
    below = torch.nextafter(torch.full_like(bias, threshold), bias)  # the kernel leaves out what equals its threshold
    # Rows that the screen leaves open are held in full.
    size = max(128, SCREENED_ENTRIES // len(right))
    for start in range(0, len(left), size):
        own = F.normalize(left[start : start + size].detach(), dim=1)
        codes = above_threshold(own, centre, unit, bias, below)
        i, slot = codes.active.nonzero().unbind(1)
        yield i + start, codes.indices[i, slot], codes.values[i, slot]


@torch.no_grad()
def neighbour_graph(directions: Tensor, threshold: float, count: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs i < j of close directions, where one is among the `count` nearest of the other: [N], [N], cosines [N].

    It holds at most L * count pairs, whatever the threshold, and at least the nearest neighbour of each.
    """
    values, indices = nearest(directions, directions, count, skip_self=True)
    own = torch.arange(len(directions), device=directions.device)[:, None].expand_as(indices)
    close = values >= threshold
    i, j, cosine = own[close], indices[close], values[close]
    keys = torch.minimum(i, j) * len(directions) + torch.maximum(i, j)
    keys, place = keys.unique(return_inverse=True)
    kept = cosine.new_empty(len(keys))
    kept[place] = cosine  # the same from either side, up to rounding
    return keys // len(directions), keys % len(directions), kept
