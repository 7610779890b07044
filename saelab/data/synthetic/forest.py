"""Which features are active: a forest of gates, each of which fires only where its parent does.

One mechanism gives all worlds. Roots fire independently. Below a root every node has the same number of children, and
each child fires with probability `chance` where its parent does.

    independent features   roots alone
    hierarchy              roots and what is below them
    correlated features    children of roots that are hidden: gates that are no features
    anti-correlated ones   exclusive children of hidden roots: never two of one parent

Roots are drawn without looking at every cell of [rows, roots]. Hits of a Poisson process that reaches cell (b, i) with
intensity -log(1 - p_i) leave it empty with probability exactly 1 - p_i, independently of all others. So: draw the
number of hits, give each a root by the cumulative intensities and a row at random, and drop what was hit before. The
work grows with the number of hits, and with the logarithm of the number of roots. Children cost one random number for
every child of every active parent.

Nodes are numbered level by level: first all roots, then the children of root 0, those of root 1, and so on. Within a
level the frequent ones come first.
"""

# Shape letters: W rows of a window, F features, R roots, N active (row, feature) pairs.

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from operator import mul

import numpy as np
import torch
from torch import Tensor

from saelab.data.synthetic.frequencies import CAP, STEEPEST, power_law


class Forest:
    """Gates of F features.

    Args:
        n_features: F; a multiple of the features of one tree.
        l0: mean number of active features of a row.
        alpha: the roots fire with probabilities p_i proportional to i^-(1 + alpha).
        branching: children of each node, level by level.
        chance: probability that a child fires where its parent does.
        exclusive: whether at most one of a node's children fires.
        hidden: whether the roots are gates only, no features.

    Raises:
        ValueError: for a setting out of its range, by name.
    """

    def __init__(
        self,
        n_features: int,
        l0: float,
        alpha: float,
        branching: Sequence[int] = (),
        chance: float = 1.0,
        exclusive: bool = False,
        hidden: bool = False,
    ):
        self.n_features, self.l0, self.alpha = n_features, l0, alpha
        self.branching, self.chance, self.exclusive, self.hidden = list(branching), chance, exclusive, hidden
        self._check_tree()
        level_sizes = list(accumulate(self.branching, mul, initial=1))
        tree = sum(level_sizes) - hidden
        if n_features < 1 or n_features % tree:
            what = f"a multiple of {tree}, the features of one tree" if tree > 1 else "at least 1"
            raise ValueError(f"n_features must be {what}; got {n_features}")
        self.n_roots = n_features // tree
        self._levels = [size * self.n_roots for size in level_sizes]
        # Feature number of the first node of each level; hidden roots stand before feature 0.
        self._first = list(accumulate(self._levels[:-1], initial=-self.n_roots if hidden else 0))
        fires = accumulate((chance * children for children in self.branching), mul, initial=1.0)
        self._per_root = sum(fires) - hidden  # active features of a tree whose root fires, on average
        self._check_law()

    def _check_tree(self) -> None:
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in self.branching):
            raise ValueError(f"branching must be numbers of children of at least 1, got {self.branching}")
        if not 0 < self.chance <= 1:
            raise ValueError(f"chance must be above 0 and at most 1, got {self.chance}")
        if self.exclusive and self.chance * max(self.branching) > 1 + 1e-12:
            limit = 1 / max(self.branching)
            raise ValueError(f"chance of each of {max(self.branching)} exclusive children must be at most {limit:.4g}")

    def _check_law(self) -> None:
        limit = CAP * self.n_roots * self._per_root
        if not 0 < self.l0 <= limit:
            raise ValueError(f"l0 must be above 0 and at most {limit:.6g} with these features; got {self.l0}")
        if not -1 <= self.alpha <= STEEPEST:
            raise ValueError(f"alpha must be from -1 (all frequencies equal) to {STEEPEST:g}, got {self.alpha}")

    @cached_property
    def roots(self) -> Tensor:
        """Probability of each root; [R] float64."""
        return power_law(self.n_roots, self.l0 / self._per_root, self.alpha)

    @cached_property
    def probability(self) -> Tensor:
        """Probability of each feature; [F] float64."""
        levels = [self.roots]
        for children in self.branching:
            levels.append((levels[-1] * self.chance).repeat_interleave(children))
        return torch.cat(levels[self.hidden :])

    @cached_property
    def parent(self) -> Tensor:
        """The feature each feature needs, or -1; [F] int64."""
        levels = [torch.full((self.n_roots,), -1)]
        for children, size, first in zip(self.branching, self._levels, self._first, strict=False):
            levels.append((first + torch.arange(size)).clamp_min(-1).repeat_interleave(children))
        return torch.cat(levels[self.hidden :])

    @cached_property
    def _intensities(self) -> Tensor:
        """Cumulative Poisson intensities of the roots; [R] float64."""
        return -torch.log1p(-self.roots).cumsum(0)

    def draw(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The active pairs of some rows, by row and then by feature: row [N] and feature [N], int64."""
        row, node = self._draw_roots(rows, generator)
        keys = [row * self.n_features + node]
        for children, first in zip(self.branching, self._first[1:], strict=True):
            row, node = self._draw_children(row, node, children, generator)
            keys.append(row * self.n_features + (first + node))
        key = _sorted(torch.cat(keys[self.hidden :])) if self.branching else keys[0]
        row = key // self.n_features
        return row, key - row * self.n_features

    def _draw_roots(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        total = self._intensities[-1]
        hits = int(torch.poisson(rows * total, generator=generator))
        # Sorted positions are looked up several times faster; rows are drawn apart, so the order means nothing.
        places = _sorted(torch.rand(hits, dtype=torch.float64, generator=generator) * total)
        node = torch.searchsorted(self._intensities, places, right=True).clamp_(max=self.n_roots - 1)
        row = torch.randint(rows, (hits,), generator=generator)
        key = _sorted(row * self.n_roots + node)
        if hits:
            key = key[torch.cat([torch.ones(1, dtype=torch.bool), key[1:] != key[:-1]])]
        row = key // self.n_roots
        return row, key - row * self.n_roots

    def _draw_children(
        self, row: Tensor, node: Tensor, children: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Row and number within its level of every child that fires, given those of the parents that do."""
        if self.exclusive:
            # One number for all children: each has its own piece of [0, 1) of length `chance`.
            child = (torch.rand(len(row), dtype=torch.float64, generator=generator) / self.chance).long()
            event = (child < children).nonzero().squeeze(1)
            child = child[event]
        else:
            fires = torch.rand(len(row), children, dtype=torch.float64, generator=generator) < self.chance
            event, child = fires.nonzero(as_tuple=True)
        return row[event], node[event] * children + child


def _sorted(values: Tensor) -> Tensor:
    """Ascending; numpy's sort of numbers is about three times as fast as torch's on a CPU."""
    return torch.from_numpy(np.sort(values.numpy()))
