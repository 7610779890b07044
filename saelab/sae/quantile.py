"""The threshold over which a given number of positive pre-activations lie: an exact quantile, in one pass.

With M to lie above it, it is half-way between the M-th and the next largest of all that are positive, and half the
M-th where there is no next, so that exactly M lie above it; where those two tie, all that tie are left out. At most
3 M values are held at once beside one part, on every process of a mesh. Nothing is estimated from a histogram or a
sample here.
"""

# Shape letters: M values that are to lie above the threshold.

from collections.abc import Iterable

import torch
from torch import Tensor

from saelab.core.mesh import ALONE, Mesh

BLOCK_ENTRIES = 1 << 22
"""Pre-activations worked out at once, for those who cut rows into parts."""


@torch.no_grad()
def threshold_over(parts: Iterable[Tensor], count: int, mesh: Mesh = ALONE) -> tuple[float, int]:
    """The threshold, and how many positive values there are, counted up to `count`.

    Args:
        parts: values of any shape, part after part; on a mesh every process gives its own, each value once.
        count: M, at least 1; with fewer positive values than that the threshold is 0.
        mesh: the processes, all of which have to call this.
    """
    assert count >= 1, count
    held, number = [torch.empty(0)], 0
    least = 0.0  # what is not above it does not count
    for part in parts:
        own = _largest(part[part > least], count + 1)
        held = [own] if not number else [*held, own]
        number += len(own)
        if number > 2 * (count + 1):
            held = [_largest(torch.cat(held), count + 1)]
            number, least = len(held[0]), held[0].min().item()
    values = _largest(torch.cat(held), count + 1)
    last, following = (mesh.nth_largest(values, place) for place in (count, count + 1))
    found = min(count, mesh.count(len(values)))
    return (last + following) / 2 if found == count else 0.0, found


def _largest(values: Tensor, count: int) -> Tensor:
    return values if len(values) <= count else values.topk(count, sorted=False).values
